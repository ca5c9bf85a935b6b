"""What the MQAR study says of its bounds and of the models beside the Bayesian Layer, in sentences."""

from typing import Any

from bayesmem.report.mqar_data import ATTENTION, BAYESIAN, RESET, SEEDS, Arm, Slice, Study, mean

# The bounds that were set before anything was run: at width 64, means of three seeds, 8,192 state numbers a layer.
BOUNDS: dict[Slice, float] = {(512, 128): 0.90, (1024, 256): 0.40}
BOUND_WIDTH, BOUND_STATE, RESET_STATE = 64, 8192, (8192, 9216)


def verdict(found: Study) -> list[str]:
    """Whether the bounds are reached, in sentences; that nothing can be said, where it cannot."""
    group = next((g for g in found.groups if g.main and g.width == BOUND_WIDTH), None)
    arms = {} if group is None else group.arms
    bayesian = [arms[name] for name in BAYESIAN if name in arms and arms[name].rows]
    if not bayesian:
        elsewhere = any(g.arms[name].rows for g in found.groups for name in BAYESIAN if name in g.arms)
        others = (
            "Those at other sizes or on other rows, below, settle nothing about the bounds."
            if elsewhere
            else "What follows compares the others among themselves and says nothing for or against the claim that "
            "restoring the full covariance helps."
        )
        return [
            f"**No comparison with the Bayesian Layer can be drawn: none of its variants ({', '.join(BAYESIAN)}) has a "
            f"record on Zoology's rows at width {BOUND_WIDTH}, matched by state.** {others}"
        ]
    said = [_bound(arm) for arm in bayesian if arm.rows[0].figures["state_per_layer"] == BOUND_STATE]
    low, high = RESET_STATE
    rivals = [
        arms[name]
        for name in RESET
        if name in arms and arms[name].rows and low <= arms[name].rows[0].figures["state_per_layer"] <= high
    ]
    absent = [name for name in RESET if name not in {arm.model for arm in rivals}]
    said += [_against(found, arm, rivals) for arm in bayesian]
    rest = [arm for arm in arms.values() if arm.rows and arm.model not in (*BAYESIAN, *RESET, ATTENTION)]
    said += [_ahead(found, bayesian, rest)] if rest else []
    if absent:
        said.append(
            f"Covariance-reset models of {low:,} to {high:,} state numbers without a record: {', '.join(absent)}."
        )
    return said


def _bound(arm: Arm) -> str:
    seeds = f"{len(arm.rows)} seed{'s' if len(arm.rows) > 1 else ''}"
    cells = []
    for at, least in BOUNDS.items():
        numbers = arm.accuracy(at)
        if numbers:
            word = "reached" if mean(numbers) >= least else "**not reached**"
            cells.append(f"{named(at)} {mean(numbers):.3f}, at least {least:.2f} asked: {word}")
        else:
            cells.append(f"{named(at)}: not tested")
    few = "" if len(arm.rows) >= SEEDS else f"; {SEEDS} seeds were asked, so this settles nothing"
    return f"`{arm.model}` ({seeds}): {'; '.join(cells)}{few}."


def _against(found: Study, arm: Arm, rivals: list[Arm]) -> str:
    if not rivals:
        return f"`{arm.model}` has no covariance-reset model beside it to be compared with."
    lost = [
        f"{named(at)} to `{rival.model}` ({mean(rival.accuracy(at)):.3f} against {mean(arm.accuracy(at)):.3f})"
        for at in found.beyond
        for rival in rivals
        if mean(rival.accuracy(at)) >= mean(arm.accuracy(at))
    ]
    names = ", ".join(f"`{rival.model}`" for rival in rivals)
    if lost:
        return (
            f"`{arm.model}` is **not** better than {names} at every slice beyond the trained range: {'; '.join(lost)}."
        )
    return f"`{arm.model}` is better than {names} at every slice beyond the trained range."


def _ahead(found: Study, bayesian: list[Arm], others: list[Arm]) -> str:
    """Where models that are neither Bayesian Layers nor covariance-reset are ahead of all Bayesian Layers."""
    ahead = []
    for other in others:
        slices = [
            f"{named(at)} {mean(other.accuracy(at)):.3f} against {best:.3f}"
            for at in found.beyond
            if mean(other.accuracy(at)) > (best := max(mean(arm.accuracy(at)) for arm in bayesian))
        ]
        if slices:
            ahead.append(f"`{other.model}` ({len(other.rows)} seed{'s' * (len(other.rows) > 1)}): {'; '.join(slices)}")
    names = ", ".join(f"`{arm.model}`" for arm in others)
    if not ahead:
        return f"Of the models without a reset, {names}, none is ahead of the best Bayesian Layer beyond that range."
    return f"Without a reset, and **ahead** of the best Bayesian Layer beyond that range: {'. '.join(ahead)}."


def named(at: Any) -> str:
    """A slice as (length, pairs)."""
    return f"({at[0]}, {at[1]})"
