"""A tiny run that the tests of this folder share; also a program: ``python -m train.small FOLDER KILL``.

KILL says where the program kills itself, as ``kill -9`` would: ``step`` (within one), ``write`` (while a checkpoint is
written), ``move`` (when it is written and not in its place) or ``first`` (before there is any checkpoint).
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from bayesmem.experiments import pretrain
from bayesmem.train import RunConfig, TokenRows, trainer

TEXT = "In the beginning there was a small text of 12 words, said again.\n" * 40
MODEL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "mixer": {"num_heads": 1, "head_dim": 4},
}


def config(folder: Path, **changes) -> RunConfig:
    for name in ("train", "held_out"):
        path = folder / f"{name}.txt"
        if not path.is_file():
            path.write_text(TEXT if name == "train" else TEXT[:500])
    small = RunConfig(
        data=(str(folder / "train.txt"),),
        held_out=(str(folder / "held_out.txt"),),
        model=MODEL,
        tokens=10 * 4 * 16,
        length=16,
        batch_size=4,
        learning_rate=1e-2,
        evaluate_every=5,
        save_every=3,
        log_every=2,
    )
    return replace(small, **changes)


def kill(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, where: str) -> None:
    torch.set_num_threads(1)
    row, write, saved = TokenRows.__getitem__, torch.save, []
    if where in ("step", "first"):
        at = {"step": 7, "first": 2}[where] * 4 + 2
        TokenRows.__getitem__ = lambda rows, i: kill() if len(rows) == 40 and i == at else row(rows, i)
    elif where == "write":  # the optimiser of the second checkpoint, half of it

        def half(what, path, *rest, **options):
            write(what, path, *rest, **options)
            saved.append(str(path))
            if sum(name.endswith("optimizer.pt") for name in saved) == 2:
                os.truncate(path, os.path.getsize(path) // 2)
                kill()

        torch.save = half
    elif where == "move":
        publish = trainer.publish
        trainer.publish = lambda written, *rest: kill() if "6" in written.name else publish(written, *rest)
    pretrain.run(config(folder), folder / "out")
    print("not killed", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
