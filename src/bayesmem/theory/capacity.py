"""Capacity: how many associations a memory holds before the error passes a target.

The setting is that of ``load``: random unit keys, one write each, errors against the clean values. A capacity
is the largest N whose error is at most ``target_error``, as a real number: round it down. It is 0 where no N meets
the target, infinite where every large N does. ``bayesian_capacity`` inherits the large-K limit of
``load.bayesian_error``; the others are exact (docs/math.md section 6.6).
"""

from collections.abc import Callable

import numpy as np

from bayesmem.theory.cubic import largest_root
from bayesmem.theory.domains import Floats, Numbers, checked


def bayesian_capacity(
    target_error: Numbers,
    key_dim: Numbers,
    obs_noise: Numbers,
    prior_var: Numbers = 1.0,
    noise_var: Numbers = 0.0,
    value_var: Numbers = 1.0,
) -> Floats:
    """Associations that the static Bayesian memory holds at a target error: the root of a cubic.

    With ``l = r / p0``, ``N = K (1 + u)(u - l) / u`` at the largest root u of the cubic
    ``(v - e) u^3 + (s - e) u^2 - (s + e) l u + (s - e) l = 0``, v and s short for ``value_var`` and ``noise_var``,
    e the target. Without noise the error increases with the load; with noise it may first fall and then rises as far as
    targets below ``value_var`` go, so that the largest N is well defined.

    Validity is that of ``load.bayesian_error``, large K. At K = 64 without noise N is within 2% of the simulated
    capacity for l from .001 to 1, save where it is a handful (4.8 for 5). The error at this N is then within 2.5% of
    the target for l >= .1, but up to 12% above it at l = .01 and 50% at l = .001, just below N = K where it is steep.

    Args:
        target_error: e; from ``value_var`` on the capacity is infinite, as recalling nothing would do.
        key_dim: key channels K.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: p0, positive.
        noise_var: actual noise variance of the values.
        value_var: variance of the clean values.

    Returns:
        N, not rounded; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.6.
    """
    e, dim, r, p0 = checked(target_error=target_error, key_dim=key_dim, obs_noise=obs_noise, prior_var=prior_var)
    s, v = checked(noise_var=noise_var, value_var=value_var)
    ridge, bounded = r / p0, e < v
    u = largest_root(np.where(bounded, v - e, 1.0), s - e, -(s + e) * ridge, (s - e) * ridge)  # Eq. (52)
    u = np.maximum(u, ridge)
    return np.where(bounded, dim * (1 + u) * (u - ridge) / u, np.inf)  # Eq. (50)


def linear_attention_capacity(
    target_error: Numbers, key_dim: Numbers, noise_var: Numbers = 0.0, value_var: Numbers = 1.0
) -> Floats:
    """Associations that linear attention holds at a target error: ``1 + K (e - s) / (v + s)``. Exact.

    Args:
        target_error: e; below ``noise_var``, s, the capacity is 0.
        key_dim: key channels K.
        noise_var: actual noise variance of the values.
        value_var: variance v of the clean values.

    Returns:
        N, not rounded; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.6.
    """
    e, dim = checked(target_error=target_error, key_dim=key_dim)
    s, v = checked(noise_var=noise_var, value_var=value_var)
    with np.errstate(divide="ignore", invalid="ignore"):
        others = np.where(v + s > 0, dim * (e - s) / (v + s), np.inf)
    return np.where(e < s, 0.0, 1 + others)  # Eq. (53)


def delta_rule_capacity(
    target_error: Numbers,
    key_dim: Numbers,
    beta: Numbers,
    noise_var: Numbers = 0.0,
    value_var: Numbers = 1.0,
    decay: Numbers = 1.0,
) -> Floats:
    """Associations before the **oldest** errs by more than the target under the (gated) delta rule.

    Solved by bisection to rounding. The oldest's error is ``C - A s^n - B f^n + D t^n`` in its age ``n = N - 1``, with
    A, B and D positive and ``t < s, f``: it may fall at first and then rises for good, which is why the largest N
    is well defined. For ``beta <= 1`` the oldest is the worst age if there is no noise, or no decay and
    ``noise_var <= value_var`` (checked over a grid in the tests); else the newest may be worse.

    Args:
        target_error: e.
        key_dim: key channels K.
        beta: step size, in (0, 2), at most K.
        noise_var: actual noise variance of the values.
        value_var: variance of the clean values.
        decay: a, the mean's transition at each token, in [0, 1].

    Returns:
        N, not rounded; infinite where the oldest's error stays at most e for ever; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain, or beta above K.

    Source: own derivation, docs/math.md section 6.6.
    """
    dim, step, sigma2, power, a = _delta_rule(key_dim, beta, noise_var, value_var, decay)
    (target,) = checked(target_error=target_error)

    def oldest(count: Floats) -> Floats:
        faded, overlap, pair = _rates(dim, step, a)
        n = count - 1
        gathered = step**2 / dim * (1 - faded**n) / (1 - faded)
        spread = gathered + step**2 * ((1 - 1 / dim) * pair**n + faded**n / dim)  # Eq. (54)
        return power * (1 - 2 * step * overlap**n + spread) + sigma2 * spread

    return _last_below(oldest, target)


def delta_rule_mean_error(
    associations: Numbers,
    key_dim: Numbers,
    beta: Numbers,
    noise_var: Numbers = 0.0,
    value_var: Numbers = 1.0,
    decay: Numbers = 1.0,
) -> Floats:
    """Error of the (gated) delta rule averaged over the ages of all N associations. Exact.

    The mean of ``load.delta_rule_error`` over ages 0 to N - 1, its geometric sums in closed form.

    Args:
        associations: N.
        key_dim: key channels K.
        beta: step size, in (0, 2), at most K.
        noise_var: actual noise variance of the values.
        value_var: variance of the clean values.
        decay: a, the mean's transition at each token, in [0, 1].

    Returns:
        Expected squared error, in value units squared; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain, or beta above K.

    Source: own derivation, docs/math.md section 6.6.
    """
    (count,) = checked(associations=associations)
    return _mean_error(count, *_delta_rule(key_dim, beta, noise_var, value_var, decay))


def delta_rule_mean_capacity(
    target_error: Numbers,
    key_dim: Numbers,
    beta: Numbers,
    noise_var: Numbers = 0.0,
    value_var: Numbers = 1.0,
    decay: Numbers = 1.0,
) -> Floats:
    """Associations before the error averaged over ages exceeds the target under the (gated) delta rule.

    Solved by bisection to rounding. For ``beta <= 1`` the average rises with N if there is no noise, or no decay and
    ``noise_var <= value_var``; else it may fall first (both checked over a grid in the tests).

    Args:
        target_error: e.
        key_dim: key channels K.
        beta: step size, in (0, 2), at most K.
        noise_var: actual noise variance of the values.
        value_var: variance of the clean values.
        decay: a, the mean's transition at each token, in [0, 1].

    Returns:
        N, not rounded; infinite where the average stays at most e for ever; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain, or beta above K.

    Source: own derivation, docs/math.md section 6.6.
    """
    settings = _delta_rule(key_dim, beta, noise_var, value_var, decay)
    (target,) = checked(target_error=target_error)
    return _last_below(lambda count: _mean_error(count, *settings), target)


def _mean_error(count: Floats, dim: Floats, step: Floats, sigma2: Floats, power: Floats, a: Floats) -> Floats:
    faded, overlap, pair = _rates(dim, step, a)
    shrink, gather = step * (2 - step), step**2 / (dim * (1 - faded))

    def total(factor: Floats) -> Floats:
        return np.where(factor < 1, (1 - factor**count) / np.where(factor < 1, 1 - factor, 1), count)

    last = faded ** (count - 1)
    apart = faded - pair
    mixed = np.where(apart > 0, (faded**count - pair**count) / np.where(apart > 0, apart, 1), count * last)
    squared = (1 - 1 / dim) * total(pair) + total(faded) / dim
    reached = (1 - 1 / dim) * (total(pair) - mixed) + (total(faded) - count * last) / dim
    newer = gather * (count - total(faded))
    older = a**2 * gather * (total(faded) - count * last - shrink * reached)
    spread = newer + older + step**2 * squared  # Eq. (55)
    return (power * (count - 2 * step * total(overlap) + spread) + sigma2 * spread) / count


def _delta_rule(
    key_dim: Numbers, beta: Numbers, noise_var: Numbers, value_var: Numbers, decay: Numbers
) -> tuple[Floats, ...]:
    dim, step = checked(key_dim=key_dim, beta=beta)
    if (step > dim).any():
        raise ValueError(f"beta is {beta} with key_dim {key_dim}; expected at most key_dim: raise key_dim to 2.")
    return (dim, step, *checked(noise_var=noise_var, value_var=value_var, decay=decay))


def _rates(dim: Floats, step: Floats, a: Floats) -> tuple[Floats, Floats, Floats]:
    """Factors a token: of a square, of the overlap with itself, of that overlap's square."""
    pair = a**2 * (1 - 2 * step / dim + 2 * step**2 / (dim * (dim + 2)))
    return a**2 * (1 - step * (2 - step) / dim), a * (1 - step / dim), np.maximum(pair, 0)


def _last_below(error: Callable[[Floats], Floats], target: Floats) -> Floats:
    """Where ``error(N)`` last rises through ``target``, N >= 1: a geometric scan, then bisection."""
    shape = np.broadcast_shapes(target.shape, np.shape(error(np.float64(1.0))))
    low, high = np.zeros(shape), np.full(shape, np.inf)
    for power in range(8 * 50 + 1):
        count = np.float64(2.0 ** (power / 8))
        met = error(count) <= target
        low, high = np.where(met, count, low), np.where(met, np.inf, np.where(np.isinf(high), count, high))
    found = (low > 0) & np.isfinite(high)
    left, right = np.where(found, low, 1.0), np.where(found, high, 1.0)
    for _ in range(60):
        middle = (left + right) / 2
        met = error(middle) <= target
        left, right = np.where(met, middle, left), np.where(met, right, middle)
    return np.where(found, left, np.where(low > 0, np.inf, 0.0))
