"""The sweeps over one or two keys, and all sweeps by name."""

from collections.abc import Callable
from functools import partial

from bayesmem.experiments import collision_simulations as simulations
from bayesmem.experiments.collision_change import calibration, changes
from bayesmem.experiments.collision_config import (
    COSINES,
    COUNTS,
    KEY_DIM,
    NOISES,
    CollisionRun,
    Curve,
    between,
    integers,
    rules_at,
)
from bayesmem.experiments.collision_load import loads, wrong
from bayesmem.experiments.collision_rules import Rule
from bayesmem.experiments.measure import Simulate

COLLIDING = ("linear_attention", "deltanet", "bayesian_steady", "bayesian_static")
REPEATING = (*COLLIDING[:2], "gated_deltanet", "bayesian_steady", "bayesian", "bayesian_forgetting", "rls")


def repeats(config: CollisionRun) -> list[Curve]:
    """One key written again and again: gains, and squared errors."""
    noise, curves = config.noise_var, []
    rules = rules_at(noise)
    for rule in rules.values():
        dim = 1 if rule.name.startswith("kalman") else KEY_DIM
        if rule.name == "linear_attention":
            continue  # its gain is 1
        gains = partial(lambda n, rule, dim: float(rule.gains(n, dim)[-1]), rule=rule, dim=dim)
        curves.append(
            Curve(
                "gain",
                rule.name,
                rule.label or rule.name,
                COUNTS,
                gains,
                measured=partial(lambda n, rule, dim: simulations.gain(rule, n, dim), rule=rule, dim=dim),
                line=integers(COUNTS[-1]),
            )
        )
    for name in (*REPEATING, "bayesian_static"):
        rule = rules[name]
        curves.append(
            Curve(
                "error",
                name,
                rule.label or name,
                COUNTS,
                partial(rule.error_of_repeats, noise_var=noise, key_dim=KEY_DIM),
                partial(simulations.collide, rule, writes_b=0, noise_var=noise),
                line=integers(COUNTS[-1]),
            )
        )
    return curves


def collision(config: CollisionRun) -> list[Curve]:
    """A second key is written over a first one."""
    noise, curves = config.noise_var, []
    for name in COLLIDING:
        rule = rules_at(noise)[name]
        curves.append(
            Curve(
                "error",
                name,
                rule.label or name,
                COUNTS,
                partial(_collided, rule, config.writes_a, cosine=config.cosine, noise_var=noise),
                partial(simulations.collide, rule, config.writes_a, noise_var=noise, cosine=config.cosine),
                line=integers(COUNTS[-1]),
            )
        )
    return curves


def angle(config: CollisionRun) -> list[Curve]:
    """The same, over the angle between the keys: as many writes of either, and four times as many of the second."""
    noise, n_a, curves = config.noise_var, config.writes_a, []
    for panel, n_b in (("equal", n_a), ("more", 4 * n_a)):
        for name in COLLIDING:
            rule = rules_at(noise)[name]

            def predict(c: float | int, rule: Rule = rule, n_b: int = n_b) -> float:
                return _collided(rule, n_a, n_b, cosine=c, noise_var=noise)

            def simulate(c: float | int, rule: Rule = rule, n_b: int = n_b) -> Simulate:
                return simulations.collide(rule, n_a, n_b, noise, c)

            line = between(COSINES[0], COSINES[-1])
            curves.append(Curve(panel, name, rule.label or name, COSINES, predict, simulate, line=line))
    return curves


def noise(config: CollisionRun) -> list[Curve]:
    """Over the values' noise, known to the filter: after repeats, and after a collision."""
    n_a, curves = config.writes_a, []
    for panel, n_b in (("repeats", 0), ("collision", 4 * n_a)):
        for name in COLLIDING:

            def predict(s: float | int, name: str = name, n_b: int = n_b) -> float:
                rule = rules_at(s)[name]
                return _collided(rule, n_a, n_b, cosine=config.cosine, noise_var=s)

            def simulate(s: float | int, name: str = name, n_b: int = n_b) -> Simulate:
                return simulations.collide(rules_at(s)[name], n_a, n_b, s, config.cosine)

            line = between(NOISES[0], NOISES[-1], log=True)
            label = rules_at(1)[name].label or name
            curves.append(Curve(panel, name, label, NOISES, predict, simulate, line=line))
    return curves


def _collided(rule: Rule, writes_a: int, writes_b: int, cosine: float | int, noise_var: float | int) -> float:
    """Squared error of the first association's recall, values of variance 1."""
    recall = rule.retrieval(writes_a, writes_b, cosine, KEY_DIM)
    bias = (recall.weight_a - 1) ** 2 + recall.weight_b**2
    return float(bias + recall.variance(noise_var))


SWEEPS: dict[str, Callable[[CollisionRun], list[Curve]]] = {
    "repeats": repeats,
    "collision": collision,
    "angle": angle,
    "noise": noise,
    "load": loads,
    "wrong": wrong,
    "changes": changes,
    "calibration": calibration,
}
