"""A tiny distillation that the tests share; also a program: ``python -m train.small_distill FOLDER``.

The program kills itself, as ``kill -9`` would, within step 8 of the first control: its checkpoint is of step 6.
"""

import sys
from pathlib import Path

import torch

from bayesmem.experiments import distill
from bayesmem.experiments.distill_config import DistillConfig
from bayesmem.models import BayesMemConfig, BayesMemForCausalLM
from bayesmem.tasks.tokenizer import byte_tokenizer
from bayesmem.train import DistillOptions, TokenRows
from train.small import config, kill

SIZES = {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 16}
MIXER = {"num_heads": 1, "head_dim": 4, "design": "gated_deltanet"}


def teacher(folder: Path, **options) -> Path:
    """A teacher of random weights that is large enough to matter."""
    torch.manual_seed(0)
    model = BayesMemForCausalLM(BayesMemConfig(**SIZES | {"mixer": MIXER, "initializer_range": 0.2} | options))
    model.save_pretrained(folder / "theirs")
    byte_tokenizer().save_pretrained(folder / "theirs")
    return folder / "theirs"


def settings(folder: Path, run: dict | None = None, **changes) -> DistillConfig:
    start = changes.pop("start", None) or str(folder / "theirs")
    base = config(folder, model={}, start=start, **{"log_every": 2, "learning_rate": 3e-3} | (run or {}))
    return DistillConfig(**{"run": base, "controls": ("tokens", "flops"), "retention": 0.2} | changes)


def ranked(folder: Path, **run) -> DistillConfig:
    """The same for one process and for two."""
    options = DistillOptions(align="mixer", trains="mixers")
    return settings(folder, {"prepared": str(folder / "data"), **run}, options=options, controls=("tokens",))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    row, trained = TokenRows.__getitem__, set()

    def fetched(rows, i):
        if len(rows) == 40:
            trained.add(id(rows))
            if len(trained) == 2 and i == 30:
                kill()
        return row(rows, i)

    TokenRows.__getitem__ = fetched
    distill.run(settings(folder), folder / "out")
    print("not killed", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
