"""Whether the predictions hold: coverage, precision, stated errors and calibration, from the records of the study."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bayesmem.report.records import Record, Records

SWEEPS = ("repeats", "collision", "angle", "noise", "load", "wrong", "changes", "calibration")
LEVEL, LEAST_P = 0.95, 1e-3
SLOPE_WITHIN = 0.02
GAIN_WITHIN = 1e-9


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim and whether it holds.

    Attributes:
        what: the claim.
        found: what was measured.
        wanted: what was asked of it.
        holds: whether it is so.
    """

    what: str
    found: str
    wanted: str
    holds: bool


def sweeps(records: Records) -> dict[str, Record]:
    """The newest record of every sweep of the collision study, in the order of ``SWEEPS``."""
    newest = {r.name: r for r in records.all() if r.experiment == "collision" and "curves" in r.figures}
    return {name: newest[name] for name in SWEEPS if name in newest}


def verdicts(found: Mapping[str, Record]) -> list[Verdict]:
    """The claims of the study, as far as the sweeps that were run can tell."""
    if not found:
        return []
    precision = max(record.settings["precision"] for record in found.values())
    curves = [curve for record in found.values() for curve in record.figures["curves"]]
    points = {kind: [p for c in curves if c["kind"] == kind for p in c["points"]] for kind in KINDS}
    rows = []
    if points["exact"]:
        rows += [_coverage(points["exact"]), _precision(points["exact"], precision)]
    if points["identity"]:
        rows.append(_gains(points["identity"]))
    if points["approximate"]:
        rows.append(_approximate(points["approximate"]))
    return rows + [_slope(c, precision) for c in curves if c["panel"] == "slope"]


def as_figures(rows: list[Verdict]) -> dict[str, Any]:
    """Verdicts as a record holds them."""
    return {"verdicts": [asdict(row) for row in rows]}


KINDS = ("exact", "approximate", "identity")


def binomial_tail(count: int, trials: int, share: float | int) -> float:
    """Probability of at most ``count`` successes in ``trials`` of probability ``share`` each.

    Args:
        count: 0 to ``trials``.
        trials: how many.
        share: in (0, 1).

    Raises:
        ValueError: numbers outside these.
    """
    if not (0 <= count <= trials and 0 < share < 1):
        raise ValueError(
            f"got count {count}, trials {trials}, share {share}; expected 0 <= count <= trials, 0 < share < 1."
        )

    def log_mass(i: int) -> float:
        ways = math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1)
        return ways + i * math.log(share) + (trials - i) * math.log1p(-share)

    return min(1.0, math.fsum(math.exp(log_mass(i)) for i in range(count + 1)))


def covers(point: dict[str, Any], within: float | int = 0.0) -> bool:
    """Whether a point's interval reaches its prediction, or what is within a share of it."""
    return abs(point["simulated"] - point["predicted"]) <= point["half_width"] + within * abs(point["predicted"])


def pooled_slope(curve: dict[str, Any]) -> tuple[float, float]:
    """Mean of a curve's independent points, weighted by their precision, and its 95% half-width."""
    weights = [p["half_width"] ** -2 for p in curve["points"]]
    mean = sum(w * p["simulated"] for w, p in zip(weights, curve["points"], strict=True)) / sum(weights)
    return mean, sum(weights) ** -0.5


def _coverage(points: list[dict[str, Any]]) -> Verdict:
    covered = sum(map(covers, points))
    tail = binomial_tail(covered, len(points), LEVEL)
    return Verdict(
        "exact predictions inside their point's 95% interval",
        f"{covered} of {len(points)} ({covered / len(points):.1%}), binomial p = {tail:.2g}",
        f"not below 95% at p < {LEAST_P:g}",
        tail >= LEAST_P,
    )


def _precision(points: list[dict[str, Any]], precision: float | int) -> Verdict:
    widest = max(p["half_width"] / abs(p["simulated"]) for p in points)
    return Verdict(
        "widest of those intervals, half of it, over the value",
        f"{widest:.2%}",
        f"at most {precision:.0%}",
        widest <= precision,
    )


def _gains(points: list[dict[str, Any]]) -> Verdict:
    worst = max(abs(p["simulated"] / p["predicted"] - 1) for p in points)
    return Verdict(
        f"gains of repeated writes ({len(points)}): largest relative deviation",
        f"{worst:.0e}",
        f"at most {GAIN_WITHIN:.0e}",
        worst <= GAIN_WITHIN,
    )


def _approximate(points: list[dict[str, Any]]) -> Verdict:
    reached = sum(covers(p, p["bound"]) for p in points)
    tail = binomial_tail(reached, len(points), LEVEL)
    worst = max(points, key=lambda p: abs(p["simulated"] / p["predicted"] - 1))
    off = worst["simulated"] / worst["predicted"] - 1
    return Verdict(
        "approximate predictions within their stated error of their point's interval",
        f"{reached} of {len(points)}, binomial p = {tail:.2g}; farthest {off:+.1%}, stated {worst['bound']:.1%}",
        f"not below 95% at p < {LEAST_P:g}",
        tail >= LEAST_P,
    )


def _slope(curve: dict[str, Any], precision: float | int) -> Verdict:
    slope, half = pooled_slope(curve)
    within = max(SLOPE_WITHIN, precision)
    return Verdict(
        f"calibration slope of {curve['label']} on its own memory",
        f"{slope:.4f} ± {half:.4f}",
        f"within {within:.0%} of 1",
        abs(slope - 1) <= within,
    )
