"""One rank of the two-process tests: ``python -m train.ranks FOLDER``, started with torchrun's variables set.

With copies of the model (``FOLDER/ddp``) and shards of it (``FOLDER/fsdp``): trains until a signal that one rank alone
gets, stops, and goes on to the end. Then shards once more under mixed precision (``FOLDER/fsdp_bf16``); without
torchrun's variables, that alone in one process (``FOLDER/alone_bf16``).
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from bayesmem.experiments import pretrain
from bayesmem.train import Interrupted, TokenRows
from train.small import config


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    if "RANK" not in os.environ:
        pretrain.run(config(folder, bf16=True), folder / "alone_bf16")
        return
    row = TokenRows.__getitem__

    def asked(rows, index):
        if os.environ["RANK"] == "1" and len(rows) == 40 and index >= 12:
            os.kill(os.getpid(), signal.SIGTERM)
            TokenRows.__getitem__ = row
        return row(rows, index)

    for kind in ("ddp", "fsdp"):
        options = config(folder, fsdp=kind == "fsdp", micro_batch=1, prepared=str(folder / "data"))
        TokenRows.__getitem__ = asked
        try:
            pretrain.run(options, folder / kind)
        except Interrupted as stopped:
            print(kind, stopped)
        TokenRows.__getitem__ = row
        sharded = any(path.is_dir() for path in (folder / kind / "checkpoint-4").iterdir())
        result = pretrain.run(options, folder / kind, resume=True)
        print(kind, "resumed from", result.language.training.resumed_from, "sharded" if sharded else "whole")
    pretrain.run(replace(options, bf16=True), folder / "fsdp_bf16")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
