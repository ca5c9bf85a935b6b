"""A sequence split across ranks is the sequence: two and four gloo processes, outputs and gradients, float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bayesmem.ops import context_parallel as cp
from bayesmem.ops.exchange import exchange_tail
from ops.cases import Design, assert_close, make_case
from ops.ranks import NAMES


@pytest.mark.parametrize("world", NAMES)
def test_ranks(world: int, tmp_path: Path):
    """Everything in ``ops.ranks``, in one go: processes start slowly."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "ops.ranks", str(rank), str(world), tmp_path],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]
    errors = [rank.communicate(timeout=300)[1].decode() for rank in ranks]
    assert not any(rank.returncode for rank in ranks), "\n".join(errors)
    failed = {rank: json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world)}
    texts = [f"{name} on rank {rank}: {text}" for rank, found in failed.items() for name, text in found.items()]
    assert not texts, "\n".join(texts)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_elements_compose_to_the_covariance_of_the_whole(covariance: str):
    """Without processes: three segments, applied in turn to the belief that enters."""
    case = make_case(Design(covariance, "prior_mixing"), length=11, key_dim=4)
    cov = case.tensors["cov"]
    for start, stop in ((0, 4), (4, 5), (5, 11)):
        part = case.between(start, stop)
        x, a = part.tensors, part.assumptions()
        problem = cp.normalised(x["q"], x["k"], x["v"], x["log_decay"], x["obs_noise"], a, None, None)
        if covariance == "full":
            element = cp.segment.covariance_element(problem, a, True, cp.Backend("chunk", 3))
            cov = cp.segment.through_covariance(element, cov)
        else:
            cov = cp.segment.through_moebius(cp.segment.moebius_element(problem, True), cov)
    assert_close(cov, case.run("recurrent").final_belief.cov, 1e-11)


@pytest.mark.parametrize(
    ("bounds", "lengths", "rank", "place"),
    [
        ((0, 9), (4, 5), 1, cp.Place((0, 5), True)),
        ((0, 4, 9), (4, 5), 1, cp.Place((0, 5), False)),
        ((0, 4, 9), (4, 5), 0, cp.Place((0, 4), False)),
        ((0, 2, 3, 7, 9), (4, 5), 0, cp.Place((0, 2, 3, 4), False)),
        ((0, 2, 3, 7, 9), (4, 5), 1, cp.Place((0, 3, 5), True)),
    ],
)
def test_places(bounds, lengths, rank, place):
    assert cp.place_of(torch.tensor(bounds), lengths, rank) == place


def test_without_a_process_group_it_is_refused():
    x = make_case(Design("full", "prior_mixing")).tensors
    with pytest.raises(ValueError, match="needs a process group"):
        cp.context_parallel_filter(x["q"], x["k"], x["v"], x["log_decay"], x["obs_noise"], group=None)
    with pytest.raises(ValueError, match="needs a process group"):
        exchange_tail(torch.ones(1, 2, 3), 3, None)
