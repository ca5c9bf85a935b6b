"""The order of the language study: from its records to the jobs that are due next."""

import json
from collections.abc import Iterable
from typing import Any

from bayesmem.experiments.job_queue import Due
from bayesmem.experiments.language_config import EXPERIMENT, Job, Sweep
from bayesmem.report.records import Record

Found = dict[str, dict[str, Any]]


def due(sweep: Sweep, text: dict[str, str], records: Iterable[Record]) -> Due[Job]:
    """The jobs that have no record yet: learning rates at the first seed, then the other seeds at the best.

    Args:
        sweep: the study.
        text: fingerprints of its tokens.
        records: those there are.
    """
    found = {_key(r.settings): r.figures for r in records if r.experiment == EXPERIMENT}
    wanted: dict[str, Job] = {}
    waiting: list[str] = []
    for matched in sweep.matched:
        rates = {model: _rates(sweep, model, matched, text) for model in sweep.models}
        jobs = [job for tried in rates.values() for job in tried]
        best = {model: best_rate(tried, found) for model, tried in rates.items()}
        waiting += [f"matched by {matched}: learning rates of {model}" for model in sweep.models if best[model] is None]
        for seed in sweep.seeds[1:]:
            for model, rate in best.items():
                if rate is not None:
                    jobs.append(sweep.job(model, matched, text, learning_rate=rate, seed=seed))
        for job in jobs:
            wanted.setdefault(_key(job.settings), job)
    left = [job for key, job in wanted.items() if key not in found]
    return Due(left, waiting, len(wanted) - len(left))


def best_rate(tried: list[Job], found: Found) -> float | int | None:
    """The learning rate of fewest bits a byte on the text kept for choosing; ``None`` while any has no record."""
    scores = {}
    for job in tried:
        figures = found.get(_key(job.settings))
        if figures is None:
            return None
        scores[job.learning_rate] = figures.get("choice", float("inf"))  # one that diverged has none
    return min(scores, key=lambda rate: scores[rate])


def _rates(sweep: Sweep, model: str, matched: str, text: dict[str, str]) -> list[Job]:
    seed = sweep.seeds[0]
    return [sweep.job(model, matched, text, learning_rate=rate, seed=seed) for rate in sweep.learning_rates]


def _key(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
