"""One unit key written n times with the same value under fresh noise: gains, errors, plateaus.

The value is ``value`` in the channel looked at, each write sees it with noise of variance
``noise_var``, and recall is at the key itself, from a memory that starts at mean zero. Errors are
expected squares against the clean value. Everything here is exact (docs/math.md section 6).
"""

import numpy as np

from bayesmem.theory.domains import Floats, Numbers, checked
from bayesmem.theory.steady_state import predicted_var


def bayesian_gain(nth: Numbers, obs_noise: Numbers, prior_var: Numbers = 1.0) -> Floats:
    """What the n-th write moves the recall by: ``1 / (n + r / p0)``, the running mean with a prior.

    Args:
        nth: n, 1 for the first write.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: p0, positive.

    Returns:
        The gain at the key, no unit; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    n, r, p0 = checked(nth=nth, obs_noise=obs_noise, prior_var=prior_var)
    return 1 / (n + r / p0)  # Eq. (23)


def bayesian_error(
    writes: Numbers, value: Numbers, noise_var: Numbers, obs_noise: Numbers, prior_var: Numbers = 1.0
) -> Floats:
    """Squared error of the static Bayesian memory: decays like 1 / n.

    ``(r / (r + n p0))^2 v^2 + n (p0 / (r + n p0))^2 sigma^2``. With ``r = sigma^2`` and ``v^2`` replaced by its
    prior expectation p0 this is the memory's own variance ``p0 r / (r + n p0)``: it is calibrated.

    Args:
        writes: n, 0 for none.
        value: clean value v.
        noise_var: actual noise variance sigma^2.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: p0, positive.

    Returns:
        Expected squared error, in value units squared; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    n, v, sigma2 = checked(writes=writes, value=value, noise_var=noise_var)
    r, p0 = checked(obs_noise=obs_noise, prior_var=prior_var)
    return ((r * v) ** 2 + n * p0**2 * sigma2) / (r + n * p0) ** 2  # Eq. (24)


def delta_rule_error(writes: Numbers, value: Numbers, noise_var: Numbers, beta: Numbers) -> Floats:
    """Squared error of the delta rule: decays geometrically to a plateau of noise.

    ``(1 - beta)^{2n} v^2 + sigma^2 beta / (2 - beta) (1 - (1 - beta)^{2n})``.

    Args:
        writes: n, 0 for none.
        value: clean value v.
        noise_var: actual noise variance sigma^2.
        beta: step size, in (0, 2); under the covariance reset ``beta = p0 / (p0 + r)``.

    Returns:
        Expected squared error, in value units squared; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    n, v, sigma2, step = checked(writes=writes, value=value, noise_var=noise_var, beta=beta)
    left = (1 - step) ** (2 * n)
    return left * v**2 + (1 - left) * sigma2 * step / (2 - step)  # Eq. (25)


def linear_attention_error(writes: Numbers, value: Numbers, noise_var: Numbers) -> Floats:
    """Squared error of linear attention: ``(n - 1)^2 v^2 + n sigma^2``, which diverges.

    Args:
        writes: n, 0 for none.
        value: clean value v.
        noise_var: actual noise variance sigma^2.

    Returns:
        Expected squared error, in value units squared; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    n, v, sigma2 = checked(writes=writes, value=value, noise_var=noise_var)
    return (n - 1) ** 2 * v**2 + n * sigma2  # Eq. (26)


def retained_gains(
    writes: int, retention: float | int, obs_noise: float | int, prior_var: float | int = 1.0
) -> np.ndarray:
    """Gains of n writes in a row when the covariance relaxes to the prior between them.

    ``g = m / (m + r)``, ``p = m r / (m + r)``, ``m' = rho^2 p + (1 - rho^2) p0``, from ``m = p0``.

    Args:
        writes: n.
        retention: rho of the covariance, in [0, 1]; 1 gives ``bayesian_gain``, 0 the delta rule.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: p0, positive.

    Returns:
        The n gains in order, no unit.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    checked(writes=writes, retention=retention, obs_noise=obs_noise, prior_var=prior_var)
    gains, m = np.empty(writes), prior_var
    for index in range(writes):
        gains[index] = m / (m + obs_noise)
        m = retention**2 * gains[index] * obs_noise + (1 - retention**2) * prior_var  # Eq. (27)
    return gains


def gain_plateau(retention: Numbers, obs_noise: Numbers, prior_var: Numbers = 1.0) -> Floats:
    """The gain to which ``retained_gains`` tends: ``m / (m + r)`` at the fixed point.

    ``m`` is the non-negative root of ``m^2 + (1 - rho^2) (r - p0) m - (1 - rho^2) p0 r = 0``.

    Args:
        retention: rho of the covariance, in [0, 1].
        obs_noise: assumed observation noise variance r, positive.
        prior_var: p0, positive.

    Returns:
        The gain at the key, no unit; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    m = predicted_var(retention, obs_noise, 1, prior_var)
    (r,) = checked(obs_noise=obs_noise)
    return m / (m + r)  # Eq. (28)


def error_of_gains(
    gains: np.ndarray, value: float | int, noise_var: float | int, decay: float | int = 1.0
) -> np.ndarray:
    """Squared error after each of n writes under any gains, and any decay of the mean between them.

    Bias ``b' = (1 - g) ((1 - a) v + a b)`` from ``b = v`` before the first write, variance
    ``s' = (1 - g)^2 a^2 s + g^2 sigma^2`` from 0; the error is ``b^2 + s``.

    Args:
        gains: what each write moves the recall by, ``[n]``, in [0, 2].
        value: clean value v.
        noise_var: actual noise variance sigma^2.
        decay: a, the mean's transition at each token, in [0, 1].

    Returns:
        Expected squared errors, ``[n]``, in value units squared.

    Raises:
        ValueError: an argument outside its domain, or gains that are not one row.

    Source: own derivation, docs/math.md section 6.
    """
    checked(gains=gains, value=value, noise_var=noise_var, decay=decay)
    if gains.ndim != 1:
        raise ValueError(f"gains has shape {gains.shape}; expected one row [n]: call once for each sequence.")
    errors, bias, spread = np.empty(len(gains)), value, 0.0
    for index, gain in enumerate(gains):
        bias = (1 - gain) * ((1 - decay) * value + decay * bias)  # Eq. (29)
        spread = ((1 - gain) * decay) ** 2 * spread + gain**2 * noise_var
        errors[index] = bias**2 + spread
    return errors


def error_plateau(gain: Numbers, value: Numbers, noise_var: Numbers, decay: Numbers = 1.0) -> Floats:
    """The error to which a constant gain tends; without decay ``sigma^2 g / (2 - g)``.

    ``((1 - g)(1 - a) v / (1 - a (1 - g)))^2 + g^2 sigma^2 / (1 - a^2 (1 - g)^2)``. The delta rule's plateau
    takes ``gain=beta``, that of the Bayesian memory with retention ``gain_plateau``.

    Args:
        gain: g in (0, 2).
        value: clean value v; without decay it does not matter.
        noise_var: actual noise variance sigma^2.
        decay: a, the mean's transition at each token, in [0, 1].

    Returns:
        Expected squared error, in value units squared; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    g, v, sigma2, a = checked(gain=gain, value=value, noise_var=noise_var, decay=decay)
    bias = (1 - g) * (1 - a) * v / (1 - a * (1 - g))
    return bias**2 + g**2 * sigma2 / (1 - (a * (1 - g)) ** 2)  # Eq. (30)
