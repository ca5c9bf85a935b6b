"""A memory that really changes: one unit key written at every token while its value moves under it.

Between writes the value obeys ``x_t = phi x_{t-1} + w_t`` with w of variance ``drift_var``: a random walk for phi = 1.
Write t comes after change t. Errors are expected squares of the recall at the key after a write, against the value of
that moment. This is where the static Bayesian memory loses: it weighs the oldest write like the newest.
All of it is exact (docs/math.md section 6.8).
"""

import numpy as np

from bayesmem.theory.cubic import largest_root
from bayesmem.theory.domains import Floats, Numbers, checked


def tracking_error(
    gains: np.ndarray,
    noise_var: float | int,
    drift_var: float | int,
    value_var: float | int,
    true_decay: float | int = 1.0,
    decay: float | int = 1.0,
) -> np.ndarray:
    """Error after each of n writes under any gains, of a random walk or an AR(1) process.

    With E, C and X the moments of error, of error times value and of the value:
    ``E' = (1 - g)^2 (a^2 E + 2 a (phi - a) C + (phi - a)^2 X + d) + g^2 sigma^2``,
    ``C' = (1 - g)(phi (a C + (phi - a) X) + d)`` and ``X' = phi^2 X + d``, all starting at ``value_var``.

    Args:
        gains: what each write moves the recall by, ``[n]``, in [0, 2]: ``repeats.bayesian_gain``,
            ``repeats.retained_gains``, or a beta n times.
        noise_var: actual noise variance sigma^2.
        drift_var: d, variance of the value's change at each token; ``(1 - phi^2) value_var`` keeps it stationary.
        value_var: variance of the value before the first change; of a known value its square.
        true_decay: phi, in [0, 1].
        decay: a, the mean's transition at each token that the memory assumes, in [0, 1].

    Returns:
        Expected squared errors, ``[n]``, in value units squared.

    Raises:
        ValueError: an argument outside its domain, or gains that are not one row.

    Source: own derivation, docs/math.md section 6.8.
    """
    checked(gains=gains, noise_var=noise_var, drift_var=drift_var)
    checked(value_var=value_var, true_decay=true_decay, decay=decay)
    _one_row(gains)
    apart = true_decay - decay
    errors, error, cross, power = np.empty(len(gains)), value_var, value_var, value_var
    for index, gain in enumerate(gains):
        missed = decay**2 * error + 2 * decay * apart * cross + apart**2 * power + drift_var
        error = (1 - gain) ** 2 * missed + gain**2 * noise_var  # Eq. (63)
        cross = (1 - gain) * (true_decay * (decay * cross + apart * power) + drift_var)
        power = true_decay**2 * power + drift_var
        errors[index] = error
    return errors


def random_walk_plateau(gain: Numbers, noise_var: Numbers, drift_var: Numbers) -> Floats:
    """Error to which a constant gain tends under a random walk: ``((1 - g)^2 d + g^2 sigma^2) / (g (2 - g))``.

    Args:
        gain: g in (0, 2); the delta rule's beta, or ``repeats.gain_plateau`` of a memory with retention and no decay.
        noise_var: actual noise variance sigma^2.
        drift_var: d, variance of the value's change at each token.

    Returns:
        Expected squared error, in value units squared; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.8.
    """
    g, sigma2, d = checked(gain=gain, noise_var=noise_var, drift_var=drift_var)
    return ((1 - g) ** 2 * d + g**2 * sigma2) / (g * (2 - g))  # Eq. (64)


def stationary_plateau(
    gain: Numbers, noise_var: Numbers, value_var: Numbers, true_decay: Numbers, decay: Numbers = 1.0
) -> Floats:
    """Error to which a constant gain tends under a stationary AR(1) value (sampled Ornstein-Uhlenbeck).

    With ``c = (1 - g)(1 - a phi) v / (1 - (1 - g) a phi)`` it is
    ``((1 - g)^2 (v (1 + a^2 - 2 a phi) + 2 a (phi - a) c) + g^2 sigma^2) / (1 - a^2 (1 - g)^2)``. The exact filter of
    this value is prior mixing with ``rho = a = phi``, ``p0 = v`` and ``r = sigma^2``, whose gain ``gain_plateau`` is
    therefore the best for ``decay = phi``.

    Args:
        gain: g in (0, 2).
        noise_var: actual noise variance sigma^2.
        value_var: variance v of the value at every time.
        true_decay: phi, in [0, 1]; its changes have variance ``(1 - phi^2) v``.
        decay: a, the mean's transition at each token, in [0, 1].

    Returns:
        Expected squared error, in value units squared; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.8.
    """
    g, sigma2, v = checked(gain=gain, noise_var=noise_var, value_var=value_var)
    phi, a = checked(true_decay=true_decay, decay=decay)
    left = 1 - g
    cross = left * (1 - a * phi) * v / (1 - left * a * phi)
    missed = v * (1 + a**2 - 2 * a * phi) + 2 * a * (phi - a) * cross
    return (left**2 * missed + g**2 * sigma2) / (1 - (a * left) ** 2)  # Eq. (65)


def best_beta(noise_var: Numbers, drift_var: Numbers) -> Floats:
    """The constant gain of least error under a random walk: ``m / (m + sigma^2)``, ``m^2 = d (m + sigma^2)``.

    The error there is ``beta sigma^2``. It is the steady gain of the exact filter, so that none does better in the end.

    Args:
        noise_var: actual noise variance sigma^2.
        drift_var: d, variance of the value's change at each token.

    Returns:
        beta in [0, 1]: 0 without drift, 1 without noise (and 0 without either); arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: the steady state of the scalar Kalman filter; docs/math.md section 6.8.
    """
    sigma2, d = checked(noise_var=noise_var, drift_var=drift_var)
    m = (d + np.sqrt(d**2 + 4 * d * sigma2)) / 2  # Eq. (66)
    return m / np.where(m + sigma2 > 0, m + sigma2, 1.0)


def best_retention(noise_var: Numbers, drift_var: Numbers, prior_var: Numbers = 1.0) -> Floats:
    """The retention whose gain plateau is ``best_beta``: ``rho^2 = 1 - d / (p0 - beta sigma^2)``.

    For ``r = sigma^2`` and no decay of the mean. So a memory with retention can track a random walk as well as can be,
    and the static one cannot.

    Args:
        noise_var: actual noise variance sigma^2, which the memory assumes.
        drift_var: d, variance of the value's change at each token.
        prior_var: p0, positive.

    Returns:
        rho in [0, 1]: 1 without drift, 0 where the drift outruns the prior (then the best within reach).

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.8.
    """
    sigma2, d, p0 = checked(noise_var=noise_var, drift_var=drift_var, prior_var=prior_var)
    room = p0 - best_beta(noise_var, drift_var) * sigma2
    return np.sqrt(np.where(room > d, 1 - d / np.where(room > d, room, 1.0), 0.0))  # Eq. (66)


def static_error(
    writes: Numbers,
    noise_var: Numbers,
    drift_var: Numbers,
    value_var: Numbers,
    obs_noise: Numbers,
    prior_var: Numbers = 1.0,
) -> Floats:
    """Error of the static Bayesian memory under a random walk: in the end ``n d / 3``, without bound.

    With ``l = r / p0`` it is ``(l^2 v0 + n sigma^2 + d (n l^2 + l n (n - 1) + n (n - 1)(2 n - 1) / 6)) / (n + l)^2``.

    Args:
        writes: n, 0 for none.
        noise_var: actual noise variance sigma^2.
        drift_var: d, variance of the value's change at each token.
        value_var: v0, variance of the value before the first change.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: p0, positive.

    Returns:
        Expected squared error, in value units squared; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.8.
    """
    n, sigma2, d = checked(writes=writes, noise_var=noise_var, drift_var=drift_var)
    v0, r, p0 = checked(value_var=value_var, obs_noise=obs_noise, prior_var=prior_var)
    ridge = r / p0
    walked = n * ridge**2 + ridge * n * (n - 1) + n * (n - 1) * (2 * n - 1) / 6
    return (ridge**2 * v0 + n * sigma2 + d * walked) / (n + ridge) ** 2  # Eq. (67)


def crossover(
    gain: Numbers,
    noise_var: Numbers,
    drift_var: Numbers,
    value_var: Numbers,
    obs_noise: Numbers,
    prior_var: Numbers = 1.0,
) -> Floats:
    """Writes after which the static memory errs more than a constant gain does on its plateau, under a random walk.

    The largest root of ``static_error(n) = random_walk_plateau``, a cubic in ``n + r / p0``; about ``3 plateau / d``
    for small d. After that many writes, rounded up, the static memory is worse for ever. The constant gain is taken as
    settled: before it settles, its own error is off by ``(1 - g)^{2n}`` of the start's.

    Args:
        gain: g in (0, 2), such as the delta rule's beta.
        noise_var: actual noise variance sigma^2.
        drift_var: d, variance of the value's change at each token.
        value_var: v0, variance of the value before the first change.
        obs_noise: r that the static memory assumes, positive.
        prior_var: p0, positive.

    Returns:
        A number of writes, not whole; 0 where the static memory is always worse, infinite without drift.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.8.
    """
    plateau = random_walk_plateau(gain, noise_var, drift_var)
    sigma2, d, v0 = checked(noise_var=noise_var, drift_var=drift_var, value_var=value_var)
    r, p0 = checked(obs_noise=obs_noise, prior_var=prior_var)
    ridge = r / p0
    start = ridge**2 * v0 - ridge * sigma2 - d * (2 * ridge**3 - 3 * ridge**2 + ridge) / 6
    total = largest_root(np.where(d > 0, d / 3, 1.0), -(d / 2 + plateau), d / 6 + sigma2, start)  # Eq. (68)
    return np.where(d > 0, np.maximum(total - ridge, 0), np.where(plateau > 0, np.inf, 0.0))


def static_lag(share: Numbers, writes_a: Numbers, obs_noise: Numbers, prior_var: Numbers = 1.0) -> Floats:
    """Writes of a new value until the old one, written n_a times, keeps at most a share of the static memory's recall.

    ``n_a (1 - share) / share - r / p0``: the lag grows in proportion to what was seen before. The recall is that of
    ``collision.bayesian_retrieval`` at cosine 1, whose ``squared_error`` gives the error against the new value.

    Args:
        share: weight left to the old value, in (0, 1).
        writes_a: n_a.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: p0, positive.

    Returns:
        A number of writes, not whole; 0 where the old value never had the share.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.8.
    """
    left, n_a, r, p0 = checked(share=share, writes_a=writes_a, obs_noise=obs_noise, prior_var=prior_var)
    return np.maximum(n_a * (1 - left) / left - r / p0, 0)  # Eq. (69)


def constant_gain_lag(share: Numbers, writes_a: Numbers, gain: Numbers) -> Floats:
    """The same for a constant gain: ``log(share / (1 - (1 - g)^{n_a})) / log |1 - g|``, bounded however large n_a is.

    For the delta rule, or a memory with retention whose gain has settled and stays so.

    Args:
        share: weight left to the old value, in (0, 1).
        writes_a: n_a.
        gain: g in (0, 2); at 1 the first write replaces all, and the lag is 0.

    Returns:
        A number of writes, not whole; 0 where the old value never had the share.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.8.
    """
    left, n_a, g = checked(share=share, writes_a=writes_a, gain=gain)
    with np.errstate(divide="ignore"):
        writes = np.log(left / np.abs(1 - (1 - g) ** n_a)) / np.log(np.abs(1 - g))  # Eq. (69)
    return np.maximum(writes, 0)


def jump_error(
    gains: np.ndarray, writes_a: int, value_a: float | int, value_b: float | int, noise_var: float | int
) -> np.ndarray:
    """Error after each write under any gains, of a value that jumps from a to b after ``writes_a`` writes.

    Args:
        gains: what each write moves the recall by, ``[n]``, in [0, 2].
        writes_a: writes of the first value.
        value_a: clean value until then.
        value_b: clean value from then on.
        noise_var: actual noise variance sigma^2.

    Returns:
        Expected squared errors against the value of that moment, ``[n]``, in value units squared.

    Raises:
        ValueError: an argument outside its domain, or gains that are not one row.

    Source: own derivation, docs/math.md section 6.8.
    """
    checked(gains=gains, writes_a=writes_a, value_a=value_a, value_b=value_b, noise_var=noise_var)
    _one_row(gains)
    errors, mean, spread = np.empty(len(gains)), 0.0, 0.0
    for index, gain in enumerate(gains):
        value = value_a if index < writes_a else value_b
        mean, spread = mean + gain * (value - mean), (1 - gain) ** 2 * spread + gain**2 * noise_var
        errors[index] = (mean - value) ** 2 + spread
    return errors


def _one_row(gains: np.ndarray) -> None:
    if gains.ndim != 1:
        raise ValueError(f"gains has shape {gains.shape}; expected one row [n]: call once for each sequence.")
