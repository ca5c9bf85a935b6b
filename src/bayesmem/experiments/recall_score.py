"""What a model of the recall study is worth: excess risk on every axis, and what its variance knows."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayesmem.experiments.measure import seed_of, student_quantile
from bayesmem.experiments.recall import auroc
from bayesmem.experiments.recall_config import AXES, RecallStudy
from bayesmem.experiments.recall_model import ContinuousRecall
from bayesmem.tasks.observations import Observations, ObservationsConfig, make
from bayesmem.tasks.optimal import Posterior, gaussian_nll, posterior

BINS = 10
COVERAGES = tuple(i / 20 for i in range(1, 21))
STRANGERS = 0.5
CHUNK = 2**15  # tokens a model reads at a time


@dataclass(frozen=True, slots=True)
class Point:
    """Rows to be tested on.

    Attributes:
        x: where on its axis.
        beyond: whether that lies outside the trained range.
        data: the rows.
        best: the posterior of what they ask.
    """

    x: float | int
    beyond: bool
    data: Observations
    best: Posterior


@dataclass(frozen=True, slots=True)
class Tests:
    """All that a world's models are tested on, the same rows for each.

    Attributes:
        axes: points of every axis.
        strangers: points against the number of pairs at which half of the queries are for keys never shown.
        fitted: rows of the trained settings on which the variance's scale is fitted.
        trained: others of the same.
    """

    axes: dict[str, list[Point]]
    strangers: list[Point]
    fitted: list[Point]
    trained: list[Point]


def tests(config: RecallStudy, world: str) -> Tests:
    """Draw them; they depend on the settings of the data alone, not on the model's seed."""

    def drawn(what: str, x: float | int, beyond: bool, one: ObservationsConfig, rows: int = config.test_rows) -> Point:
        data = make(one, rows, seed_of(world, what, repr(x), repr(one)))
        return Point(x, beyond, data, posterior(data))

    known, few = config.trained(world), max(2, config.test_rows // 4)
    return Tests(
        {axis: [drawn(axis, *point) for point in config.tested(world, axis)] for axis in AXES},
        [
            drawn("strangers", x, beyond, replace(one, strangers=STRANGERS))
            for x, beyond, one in config.tested(world, "pairs")
        ],
        [drawn(f"fitted {i}", 0.0, False, one, few) for i, one in enumerate(known)],
        [drawn(f"trained {i}", 0.0, False, one, few) for i, one in enumerate(known)],
    )


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model says of some rows' queries.

    Attributes:
        mean: predicted values.
        var: the memory's own variance, in the units of its head; ``None`` for a model without.
    """

    mean: Float[Tensor, "B Q V"]
    var: Float[Tensor, "B Q"] | None


@torch.no_grad()
def answers(model: ContinuousRecall, data: Observations) -> Answers:
    """Ask a model; its variance is that of the last layer that has one, averaged over heads."""
    model.eval()
    device, features = next(model.parameters()).device, data.features
    knows = any(block.knows for block in model.layers)
    means, variances = [], []
    for part in features.split(max(1, CHUNK // features.shape[1])):
        out = model(part.to(device), output_uncertainty=knows)
        means.append(out.logits[:, data.config.context :].cpu().double())
        if knows:
            last = [layer for layer in out.predictive_var if layer is not None][-1]
            variances.append(last[:, data.config.context :].mean(-1).cpu().double())
    return Answers(torch.cat(means), torch.cat(variances) if knows else None)


def score(model: ContinuousRecall, on: Tests) -> dict[str, Any]:
    """All figures of a model."""
    said = {axis: [answers(model, p.data) for p in points] for axis, points in on.axes.items()}
    figures: dict[str, Any] = {
        "trained": _excess(on.trained, [answers(model, p.data) for p in on.trained]),
        "axes": {
            axis: [[p.x, p.beyond, *_excess([p], [a])] for p, a in zip(points, said[axis], strict=True)]
            for axis, points in on.axes.items()
        },
    }
    fitted = [answers(model, p.data) for p in on.fitted]
    if any(a.var is None for a in fitted):
        return figures | {"variance": None}
    scale = float(_pooled([_ratio(p, a) for p, a in zip(on.fitted, fitted, strict=True)]).mean())
    beyond = [(p, a) for axis, points in on.axes.items() for p, a in zip(points, said[axis], strict=True) if p.beyond]
    strange = [(p, answers(model, p.data)) for p in on.strangers]
    far = [(p, a) for p, a in strange if p.beyond] or strange
    figures["variance"] = {
        "scale": scale,
        "trained": _calibration([(p, answers(model, p.data)) for p in on.trained], scale),
        "beyond": _calibration(beyond, scale) if beyond else None,
        "coverage": _coverage(far),
        "auroc": [[p.x, p.beyond, *_auroc(p, a)] for p, a in strange],
    }
    return figures


def _excess(points: list[Point], said: list[Answers]) -> list[float]:
    """Excess risk, the half-width of its 95% interval over independent rows, and the least risk there is."""
    rows = _pooled([(a.mean - p.best.mean).square().mean((1, 2)) for p, a in zip(points, said, strict=True)])
    half = student_quantile(len(rows) - 1) * rows.std(ddof=1) / math.sqrt(len(rows))
    least = _pooled([p.best.var for p in points]).mean()
    return [float(f"{x:.6g}") for x in (rows.mean(), half, least)]


def _calibration(asked: list[tuple[Point, Answers]], scale: float | int) -> dict[str, Any]:
    """Squared error against the variance that is told for it, and the density of the truth."""
    told = _pooled([scale * _var(a) for _, a in asked])
    found = _pooled([_error(p, a) for p, a in asked])
    nll = _pooled([gaussian_nll(a.mean - p.data.targets, scale * _var(a)) for p, a in asked])
    best_told, best_found = _pooled([p.best.var for p, _ in asked]), _pooled([_best_error(p) for p, _ in asked])
    return {
        "slope": float((found / told).mean()),
        "nll": float(nll.mean()),
        "optimal_nll": float(_pooled([p.best.nll for p, _ in asked]).mean()),
        "bins": _bins(told, found),
        "optimal_bins": _bins(best_told, best_found),
    }


def _coverage(asked: list[tuple[Point, Answers]]) -> list[list[float]]:
    """For each share of the queries that is answered, the surest: the risk, and that of the best predictor."""
    curves = [
        _surest(_pooled([_var(a) for _, a in asked]), _pooled([_error(p, a) for p, a in asked])),
        _surest(_pooled([p.best.var for p, _ in asked]), _pooled([_best_error(p) for p, _ in asked])),
    ]
    return [[share, *risks] for share, *risks in zip(COVERAGES, *curves, strict=True)]


def _surest(var: np.ndarray, error: np.ndarray) -> list[float]:
    ordered = error[np.argsort(var, kind="stable")]
    return [float(ordered[: max(1, round(share * len(ordered)))].mean()) for share in COVERAGES]


def _auroc(p: Point, a: Answers) -> tuple[float, float]:
    strange = p.data.stranger.flatten().numpy()
    return auroc(_var(a).flatten().numpy(), strange), auroc(p.best.var.flatten().numpy(), strange)


def _bins(var: np.ndarray, error: np.ndarray) -> list[list[float | int]]:
    order = np.argsort(var, kind="stable")
    return [[float(var[part].mean()), float(error[part].mean()), len(part)] for part in np.array_split(order, BINS)]


def _ratio(p: Point, a: Answers) -> Tensor:
    return _error(p, a) / _var(a)


def _error(p: Point, a: Answers) -> Tensor:
    return (a.mean - p.data.targets).square().mean(-1)


def _best_error(p: Point) -> Tensor:
    return (p.best.mean - p.data.targets).square().mean(-1)


def _var(a: Answers) -> Tensor:
    assert a.var is not None
    return a.var.clamp(min=1e-12)


def _pooled(parts: list[Tensor]) -> np.ndarray:
    return torch.cat([part.flatten() for part in parts]).numpy()
