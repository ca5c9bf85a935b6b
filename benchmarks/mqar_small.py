"""MQAR at a size for two CPU cores: width 32, 512 tokens, up to 16 pairs trained and 32 asked; not Zoology's.

The same code as ``bayesmem run mqar``, its queue and its records: ``python benchmarks/mqar_small.py``, and with
``ablations`` after it the Bayesian Layer with one choice changed at a time, at the better of two learning rates.
"""

import sys
from pathlib import Path

from bayesmem.experiments.mqar_config import Scale
from bayesmem.experiments.mqar_queue import run_queue
from bayesmem.experiments.mqar_stages import Sweep

SCALE = Scale(
    vocab_size=512,
    trained=((64, 4, 4000), (64, 8, 4000), (64, 16, 4000)),
    tested=((64, 16), (128, 16), (128, 24), (128, 32)),
    test_rows=200,
    choice_rows=64,
    milestone=(64, 16),
    milestone_rows=64,
)
SWEEP = Sweep(
    models=("deltanet", "gated_deltanet", "kalman_diagonal", "bayesian_static", "bayesian_prior_mixing", "bayesian"),
    widths=(32,),
    learning_rates=(3.2e-3, 1e-2),
    seeds=(0, 1),
    steps=1000,
    batch_size=64,
    precision="float32",
    save_every=1000,
    scale=SCALE,
)

if __name__ == "__main__":
    stages = ("learning-rates", "seeds", *sys.argv[1:])
    run_queue(SWEEP, stages, Path("runs/mqar_small"), jobs=2)
