"""MQAR with overwritten keys, at the size of ``mqar_small.py``: what may a memory that grows certain learn to do?

    python benchmarks/mqar_overwritten.py

A third of the shown associations are second values, and the last one counts. Every rate on every seed, delta rules and
diagonal matched by state (wider keys) and by parameters (keys as wide as the Bayesian Layers'). The same code as
``bayesmem run mqar``, its queue and its records, in runs/mqar_overwritten; stopped, it goes on from there.
"""

from dataclasses import replace
from pathlib import Path

from bayesmem.experiments.job_queue import Due
from bayesmem.experiments.mqar_config import EXPERIMENT, Job
from bayesmem.experiments.mqar_queue import run_due
from bayesmem.report.records import records_in
from bayesmem.tasks.mqar_variants import FORGETTING
from mqar_small import SWEEP

OUT = Path("runs/mqar_overwritten")
RIVALS = ("deltanet", "gated_deltanet", "kalman_diagonal")
BAYESIAN = ("bayesian_static", "bayesian_prior_mixing", "bayesian_forgetting", "bayesian")
SETTINGS = replace(SWEEP, models=(*RIVALS, *BAYESIAN))
ARMS = [(model, "state") for model in (*RIVALS, *BAYESIAN)] + [(model, "parameters") for model in RIVALS]
JOBS = [
    SETTINGS.job(model, matched=matched, learning_rate=rate, seed=seed, data=FORGETTING)
    for seed in SWEEP.seeds
    for rate in SWEEP.learning_rates
    for model, matched in ARMS
]


def due() -> Due[Job]:
    """Jobs without a record."""
    found = records_in(OUT)
    left = [job for job in JOBS if found.find(EXPERIMENT, job.model, job.settings) is None]
    return Due(left, [], len(JOBS) - len(left))


if __name__ == "__main__":
    run_due(due, JOBS, OUT, jobs=2)
