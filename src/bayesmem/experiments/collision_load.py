"""Sweeps of many keys, and of wrong assumptions."""

import math
from collections.abc import Callable
from functools import partial

from bayesmem.experiments import collision_simulations as simulations
from bayesmem.experiments.collision_config import (
    AGES,
    ASSOCIATIONS,
    FACTORS,
    FEW_COUNTS,
    KEY_DIM,
    LOAD_KEY_DIM,
    CollisionRun,
    Curve,
    between,
    integers,
    rules_at,
)
from bayesmem.experiments.collision_rules import Rule
from bayesmem.experiments.measure import Simulate
from bayesmem.theory import calibration as calibrated
from bayesmem.theory import capacity, load, steady_state


def loads(config: CollisionRun) -> list[Curve]:
    """Many associations: over their number, over their age, and the variance of a settled memory."""
    noise, dim = config.noise_var, LOAD_KEY_DIM
    rules = rules_at(noise)
    curves = []
    for name in ("linear_attention", "deltanet", "gated_deltanet", "bayesian_steady"):
        rule = rules[name]
        curves.append(_load("load", rule, noise))
        if name != "linear_attention":
            curves.append(
                Curve(
                    "age",
                    name,
                    rule.label or name,
                    AGES,
                    partial(_aged_error, beta=rule.beta(dim), noise_var=noise, decay=rule.decay),
                    partial(simulations.load, rule, dim, dim, noise),
                    line=range(dim),
                )
            )
    static = rules["bayesian_static"]
    clear = static.but(obs_noise=0.01, label="bayesian_static, r = 0.01, no noise")
    curves += [_load("load", static, noise), _load("load", clear, 0.0)]
    every_age = float(load.bayesian_error(dim, dim, noise, noise_var=noise))
    aged = partial(simulations.load, static, dim, dim, noise)
    curves.append(
        Curve("age", "bayesian_static", "bayesian_static", AGES, lambda _: every_age, aged, bound=_large_k(noise))
    )
    for r, label in ((0.1, "bayesian, r = 0.1"), (1.0, "bayesian, r = 1")):
        curves.append(_settled(r, label))
    return curves


def _aged_error(age: float | int, beta: float | int, noise_var: float | int, decay: float | int) -> float:
    return float(load.delta_rule_error(age, LOAD_KEY_DIM, LOAD_KEY_DIM, beta, noise_var, decay=decay))


def _load(panel: str, rule: Rule, noise: float | int) -> Curve:
    dim = LOAD_KEY_DIM

    def predict(count: float | int) -> float:
        if rule.name == "linear_attention":
            return float(load.linear_attention_error(count, dim, noise))
        if rule.name == "bayesian_static":
            return float(load.bayesian_error(count, dim, rule.obs_noise, noise_var=noise))
        return float(capacity.delta_rule_mean_error(count, dim, rule.beta(dim), noise, decay=rule.decay))

    def simulate(count: int) -> Simulate:
        return simulations.load(rule, count, dim, noise)

    bound = _large_k(rule.obs_noise) if rule.name == "bayesian_static" else None
    line = integers(ASSOCIATIONS[-1])[1:]
    return Curve(
        panel, rule.name, rule.label or rule.name, ASSOCIATIONS, predict, simulate, line=line, bound=bound, least=32
    )


def _large_k(obs_noise: float | int) -> Callable[[float | int], float]:
    """How good the large-K limit is at K = 64: 2.5%, but with little noise 11% just below capacity.

    At a few keys and little noise it is high by 3 / K, for it counts N keys where a key meets N - 1 others.
    """

    def bound(count: float | int) -> float:
        filled = count / LOAD_KEY_DIM
        if obs_noise >= 0.2:
            return 0.025
        return 0.05 if filled <= 0.25 else 0.11 if 0.6 <= filled <= 1.1 else 0.025

    return bound


def _settled(obs_noise: float | int, label: str) -> Curve:
    """Mean-field variance over the live load, against the exact filter's; the claims are those of ``steady_state``."""
    dim = LOAD_KEY_DIM
    claims = (
        {0.08: 0.002, 0.8: 0.07, 1.6: 0.11, 7.8: 0.12} if obs_noise < 1 else dict.fromkeys((0.08, 0.8, 1.6, 7.8), 0.025)
    )

    def retention(live: float | int) -> float:
        return math.sqrt(1 - 1 / (dim * live))

    def simulate(live: float | int) -> Simulate:
        rule = Rule("bayesian", obs_noise, retention=retention(live))
        return simulations.settled_var(rule, dim, max(256, round(5 * dim * live)))

    return Curve(
        "settled",
        "bayesian" if obs_noise < 1 else "bayesian_forgetting",
        label,
        tuple(claims),
        lambda live: float(steady_state.posterior_var(retention(live), obs_noise, dim)),
        simulate,
        line=between(0.08, 7.8, log=True),
        bound=claims.__getitem__,
        least=16,
    )


def wrong(config: CollisionRun) -> list[Curve]:
    """Assumptions off by a factor of ten, over the writes of one key; and the noise alone, over many keys."""
    noise, curves = config.noise_var, []
    right = Rule("bayesian_static", noise)
    variants = {
        "r / 10": right.but(obs_noise=noise / 10),
        "r × 10": right.but(obs_noise=noise * 10),
        "p₀ / 10": right.but(prior_var=0.1),
        "p₀ × 10": right.but(prior_var=10.0),
        "as it is": right,
    }
    for label, rule in variants.items():
        error = partial(rule.error_of_repeats, noise_var=noise, key_dim=KEY_DIM)
        simulate = partial(simulations.collide, rule, writes_b=0, noise_var=noise)
        curves.append(Curve("error", rule.name, label, FEW_COUNTS, error, simulate, line=integers(128)))

        def ratio(n: int, rule: Rule = rule) -> float:
            return float(calibrated.repeat_ratio(n, rule.obs_noise, rule.prior_var, noise, 1.0))

        over = partial(simulations.collide, rule, writes_b=0, noise_var=noise, over_var=True)
        curves.append(Curve("ratio", rule.name, label, FEW_COUNTS, ratio, over, line=integers(128)))
    for label in ("r / 10", "r × 10", "as it is"):
        rule = variants[label].but(name="deltanet")
        error = partial(rule.error_of_repeats, noise_var=noise, key_dim=KEY_DIM)
        simulate = partial(simulations.collide, rule, writes_b=0, noise_var=noise)
        curves.append(Curve("delta", rule.name, label, FEW_COUNTS, error, simulate, line=integers(128)))
    for name in ("deltanet", "bayesian_static"):
        curves.append(_wrong_load(name, noise))
    return curves


def _wrong_load(name: str, noise: float | int) -> Curve:
    def at(factor: float | int) -> Curve:
        return _load("load", Rule(name, noise * factor), noise)

    bounds = {factor: at(factor).bound for factor in FACTORS}

    def bound(factor: float | int) -> float:
        claim = bounds[factor]
        assert claim is not None
        return claim(48)

    def simulate(factor: float | int) -> Simulate:
        curve = at(factor)
        assert curve.simulate is not None
        return curve.simulate(48)

    return Curve(
        "load",
        name,
        name,
        FACTORS,
        lambda factor: at(factor).predict(48),
        simulate,
        line=between(0.1, 10, log=True),
        bound=bound if name == "bayesian_static" else None,
        least=32,
    )
