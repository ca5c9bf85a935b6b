"""Sweeps of memories that change, and of calibration under the right assumptions."""

from functools import partial

from bayesmem.experiments import collision_simulations as simulations
from bayesmem.experiments.collision_config import (
    BEFORE,
    FEW_COUNTS,
    KEY_DIM,
    LEVELS,
    TOKENS,
    WALK_VAR,
    CollisionRun,
    Curve,
    between,
    integers,
    rules_at,
)
from bayesmem.experiments.collision_rules import Rule, jump_error, walk_error
from bayesmem.experiments.measure import Simulate
from bayesmem.tasks.changing import ChangingConfig
from bayesmem.theory import calibration as calibrated

Changes = tuple[float, float, float]


def changes(config: CollisionRun) -> list[Curve]:
    """A memory that really changes: its value jumps, or walks at random."""
    noise, curves = config.noise_var, []
    rules = rules_at(noise)
    for name in ("deltanet", "bayesian_steady", "bayesian", "bayesian_forgetting", "bayesian_static"):
        rule, label = rules[name], rules[name].label or name
        if rule.decay == 1:  # the theory of a jump knows no decay
            jumped = partial(lambda n, rule: jump_error(rule, BEFORE, n, noise, KEY_DIM), rule=rule)
            simulate = partial(simulations.collide, rule, BEFORE, noise_var=noise, cosine=1.0, query="b")
            curves.append(Curve("jump", name, label, FEW_COUNTS, jumped, simulate, line=integers(128)))

        def walked(n: int, rule: Rule = rule) -> float:
            return walk_error(rule, n, WALK_VAR, noise, KEY_DIM)

        def ratio(n: int, rule: Rule = rule) -> float:
            return walk_error(rule, n, WALK_VAR, noise, KEY_DIM) / rule.reported(n, KEY_DIM)

        def walk(n: int, rule: Rule = rule, what: str = "error") -> Simulate:
            memory = ChangingConfig(KEY_DIM, 32, n, one_key=True, walk_var=WALK_VAR, noise_var=noise)
            return simulations.change(rule, memory, what)

        curves.append(Curve("walk", name, label, FEW_COUNTS, walked, walk, line=integers(128)))
        curves.append(Curve("ratio", name, label, FEW_COUNTS, ratio, partial(walk, what="ratio"), line=integers(128)))
    return curves


def calibration(config: CollisionRun) -> list[Curve]:
    """Random keys under the right assumptions, each rule on its own memory; and its bands."""
    noise, a = config.noise_var, 0.95
    refill = 1 / (1 + noise)
    own = {  # each rule, and the memory that it is the filter of: decay, walk, refill
        "deltanet": (Rule("deltanet", noise), (1.0, 0.0, refill)),
        "gated_deltanet": (Rule("gated_deltanet", noise, decay=a), (a, 1 - a**2, a**2 * refill)),
        "bayesian_forgetting": (Rule("bayesian_forgetting", noise, decay=a), (a, 1 - a**2, 0.0)),
        "bayesian_static": (Rule("bayesian_static", noise), (1.0, 0.0, 0.0)),
    }
    curves = []
    for name, (rule, changes) in own.items():
        label = name if rule.decay == 1 else f"{name}, a = {a}"

        def slope(tokens: int, rule: Rule = rule, changes: Changes = changes) -> Simulate:
            memory = ChangingConfig(KEY_DIM, 32, tokens, False, *changes, noise)
            return simulations.change(rule, memory, "ratio")

        def covered(level: float | int, rule: Rule = rule, changes: Changes = changes) -> Simulate:
            memory = ChangingConfig(KEY_DIM, 32, 24, False, *changes, noise)
            return simulations.change(rule, memory, "coverage", level)

        curves.append(Curve("slope", name, label, TOKENS, lambda _: 1.0, slope))
        curves.append(Curve("coverage", name, label, LEVELS, float, covered))
    for factor, label in ((0.1, "bayesian_static, r / 10"), (10.0, "bayesian_static, r × 10")):
        curves.append(_wrong_coverage(Rule("bayesian_static", noise * factor), label, noise))
    return curves


def _wrong_coverage(rule: Rule, label: str, noise: float | int) -> Curve:
    """Bands of a memory that assumes the wrong noise, at one key written eight times."""
    ratio = calibrated.repeat_ratio(8, rule.obs_noise, 1.0, noise, 1.0)
    memory = ChangingConfig(KEY_DIM, 32, 8, one_key=True, noise_var=noise)

    def simulate(level: float | int) -> Simulate:
        return simulations.change(rule, memory, "coverage", level)

    def predict(level: float | int) -> float:
        return float(calibrated.gaussian_coverage(ratio, level))

    return Curve("coverage", rule.name, label, LEVELS, predict, simulate, line=between(0.5, 0.98))
