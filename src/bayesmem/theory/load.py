"""Many associations in one memory: the error against their number, the key channels and their age.

Unit keys of uniformly random direction, independent values of mean zero and variance ``value_var``
in every channel, one write each, recalled at their keys after the last. Errors are expected squares a
channel against the clean value (docs/math.md section 6).
"""

import numpy as np

from bayesmem.theory.domains import Floats, Numbers, checked


def bayesian_error(
    associations: Numbers,
    key_dim: Numbers,
    obs_noise: Numbers,
    prior_var: Numbers = 1.0,
    noise_var: Numbers = 0.0,
    value_var: Numbers = 1.0,
) -> Floats:
    """Error of the static Bayesian memory, the same whatever the age (Marchenko-Pastur).

    With ``y = N / K``, ``l = r / p0``, ``D = sqrt((1 - y + l)^2 + 4 y l)``, ``m = 2 / (D + 1 - y + l)`` and
    ``m2 = m (1 + y m) / D`` it is ``value_var l^2 m2 + noise_var (1 - 2 l m + l^2 m2)``. As l -> 0 and
    without noise: 0 up to y = 1, ``1 - 1 / y`` above.

    The large-K limit; what is missing falls like 1 / K. At few keys it counts N neighbours where there are
    N - 1, and is high by about 3 / K: at K = 64, up to 4% at l = .1 and 5% at l = .01 for y below 1/4. Else, at
    K = 64 and ``noise_var`` 0, it is within 2.5% for l >= .1 at every load, and for smaller l up to y = 1/2 and
    above y = 1.1 (3.5% at l = .001). It ends just
    below capacity, y from .6 to 1, where single keys that nearly depend on the others rule: there the true
    error is larger by up to 11% at l = .01 and 40% at l = .001. Noise in the values hides the gap.

    Args:
        associations: N.
        key_dim: key channels K.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: p0, positive.
        noise_var: actual noise variance of the values.
        value_var: variance of the clean values.

    Returns:
        Expected squared error, in value units squared; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: Marchenko and Pastur (1967) for the eigenvalues; own derivation, docs/math.md section 6.
    """
    count, dim, r, p0 = checked(associations=associations, key_dim=key_dim, obs_noise=obs_noise, prior_var=prior_var)
    sigma2, power = checked(noise_var=noise_var, value_var=value_var)
    y, ridge = count / dim, r / p0
    root = np.sqrt((1 - y + ridge) ** 2 + 4 * y * ridge)
    first = 2 / (root + 1 - y + ridge)  # Eq. (37)
    if_overfull = (root - (1 - y + ridge)) / (2 * y * ridge)  # the same number, without the subtraction at y > 1
    first = np.where(y > 1 + ridge, if_overfull, first)
    second = first * (1 + y * first) / root  # Eq. (38)
    missed = ridge**2 * second
    return power * missed + sigma2 * (1 - 2 * ridge * first + missed)  # Eq. (39)


def delta_rule_error(
    age: Numbers,
    associations: Numbers,
    key_dim: Numbers,
    beta: Numbers,
    noise_var: Numbers = 0.0,
    value_var: Numbers = 1.0,
    decay: Numbers = 1.0,
) -> Floats:
    """Error of the (gated) delta rule for the association that ``age`` others were written after.

    With ``f = a^2 (1 - beta (2 - beta) / K)``, ``s = a (1 - beta / K)``, ``c_j = beta^2 / K (1 - f^j) / (1 - f)``, the
    self-overlap ``U_n`` and age n of N, the recall's variance for values of variance 1 is
    ``Q = c_n + a^2 f^n c_i + (beta^2 - beta (2 - beta) a^2 c_i) U_n``, ``i = N - n - 1``, and the error
    ``value_var (1 - 2 beta s^n + Q) + noise_var Q``. Exact for every N and K, in expectation over keys
    and values.

    Args:
        age: n, writes since; in [0, N - 1].
        associations: N.
        key_dim: key channels K.
        beta: step size, in (0, 2).
        noise_var: actual noise variance of the values.
        value_var: variance of the clean values.
        decay: a, the mean's transition at each token, in [0, 1]; 1 is the plain delta rule.

    Returns:
        Expected squared error, in value units squared; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    n, count, dim, step = checked(age=age, associations=associations, key_dim=key_dim, beta=beta)
    sigma2, power, a = checked(noise_var=noise_var, value_var=value_var, decay=decay)
    before = count - n - 1
    if (before < 0).any():
        raise ValueError(
            f"age is {age} among {associations} associations; expected at most one less than their number."
        )
    shrink = step * (2 - step)
    faded = a**2 * (1 - shrink / dim)
    overlap = a * (1 - step / dim)
    pair = a**2 * (1 - 2 * step / dim + 2 * step**2 / (dim * (dim + 2)))
    squared = (1 - 1 / dim) * pair**n + faded**n / dim  # Eq. (40)

    def gathered(writes: Floats) -> Floats:
        return step**2 / dim * (1 - faded**writes) / (1 - faded)  # Eq. (41)

    older, newer = a**2 * gathered(before), gathered(n)
    spread = newer + faded**n * older + (step**2 - shrink * older) * squared
    return power * (1 - 2 * step * overlap**n + spread) + sigma2 * spread  # Eq. (42)


def linear_attention_error(
    associations: Numbers, key_dim: Numbers, noise_var: Numbers = 0.0, value_var: Numbers = 1.0
) -> Floats:
    """Error of linear attention: crosstalk ``(N - 1) / K``, and every value's noise. Exact, at every age.

    Args:
        associations: N.
        key_dim: key channels K.
        noise_var: actual noise variance of the values.
        value_var: variance of the clean values.

    Returns:
        Expected squared error, in value units squared; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    count, dim = checked(associations=associations, key_dim=key_dim)
    sigma2, power = checked(noise_var=noise_var, value_var=value_var)
    crosstalk = (count - 1) / dim
    return power * crosstalk + sigma2 * (1 + crosstalk)  # Eq. (43)
