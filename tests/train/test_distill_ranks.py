"""Two processes distil as one does, copies or shards of the arms alike."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bayesmem.experiments import distill
from bayesmem.report.records import records_in
from train.small_distill import ranked, teacher

pytestmark = pytest.mark.slow


def logged(out):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    names = ("loss", "grad_norm", "align", "kl", "ce", "eval_loss")
    return [(row["step"], name, row[name]) for row in rows for name in names if name in row]


def test_two_processes_are_one(tmp_path):
    teacher(tmp_path)
    distill.run(ranked(tmp_path), tmp_path / "alone")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "train.distill_ranks", tmp_path],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=240) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    arms = ("teacher", "student", "control-tokens")
    for kind in ("ddp", "fsdp"):
        assert all(" ".join((kind, *arms)) in out for out, _ in told)
        assert [record.name for record in records_in(tmp_path / kind).all()] == list(arms)
        for name in arms:
            one, other = (records_in(tmp_path / run).find("distill", name).figures for run in ("alone", kind))
            assert other["bits_per_byte"] == pytest.approx(one["bits_per_byte"], rel=1e-4)
        for name in arms[1:]:
            pairs = zip(*(logged(tmp_path / run / "runs" / name) for run in ("alone", kind)), strict=True)
            for one, other in pairs:
                assert one[:2] == other[:2] and other[2] == pytest.approx(one[2], rel=2e-3, abs=1e-6), (kind, name, one)
            models = [AutoModelForCausalLM.from_pretrained(tmp_path / run / name) for run in ("alone", kind)]
            for x, y in zip(*(model.parameters() for model in models), strict=True):
                torch.testing.assert_close(x, y, rtol=0, atol=3e-4)
