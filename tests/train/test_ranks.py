"""Two processes train as one does, copies or shards of the model alike, stop together and resume."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bayesmem.experiments import pretrain
from train.small import config


def logged(out):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(r["step"], name, r[name]) for r in rows for name in ("loss", "grad_norm", "eval_loss") if name in r]


def test_two_processes_are_one(tmp_path):
    config(tmp_path)  # the texts
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "train.ranks", tmp_path],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    pretrain.run(config(tmp_path), tmp_path / "alone")
    told = [rank.communicate(timeout=240) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    for kind, form in (("ddp", "whole"), ("fsdp", "sharded")):
        for out, _ in told:  # they stop where they log, and so agree
            assert f"{kind} stopped at step 4 of 10" in out and f"{kind} resumed from 4 {form}" in out
        for one, other in zip(logged(tmp_path / "alone"), logged(tmp_path / kind), strict=True):
            assert one[:2] == other[:2] and one[2] == pytest.approx(other[2], rel=1e-4)
        models = [AutoModelForCausalLM.from_pretrained(tmp_path / name / "model") for name in ("alone", kind)]
        for x, y in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-4)
