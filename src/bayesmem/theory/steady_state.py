"""The variance to which a memory settles when it forgets as fast as it learns (prior mixing).

Unit keys of random direction, retention ``rho`` of the covariance at every token. Only the
mean-field balance has a closed form: the covariance is taken as ``p I`` (docs/math.md section 6).
"""

import numpy as np

from bayesmem.theory.domains import Floats, Numbers, checked


def predicted_var(retention: Numbers, obs_noise: Numbers, key_dim: Numbers, prior_var: Numbers = 1.0) -> Floats:
    """Mean-field variance before each update, averaged over directions.

    The non-negative root of ``(K w + rho^2) m^2 + K w (r - p0) m - K w p0 r = 0``, ``w = 1 - rho^2``, which
    balances ``p = m - m^2 / (K (m + r))`` and ``m = rho^2 p + w p0``.

    It is exact for ``key_dim`` 1, where it is the plateau of one key written at every token. For
    more channels it is never too low (Jensen), the closer the lighter the load and the larger
    r / p0: at loads of .08, .8, 1.6 and 7.8 live keys a channel (``live_load``) it is high by at most
    .2, 7, 11 and 12% at r = p0 / 10, and by at most 2.5% at r = p0 (K = 64).

    Args:
        retention: rho, what the covariance keeps at each token, in [0, 1]; at 1 nothing is
            forgotten and the variance tends to 0.
        obs_noise: assumed observation noise variance r, positive.
        key_dim: key channels K.
        prior_var: p0, positive.

    Returns:
        m, in the units of ``prior_var``; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    rho, r, dim, p0 = checked(retention=retention, obs_noise=obs_noise, key_dim=key_dim, prior_var=prior_var)
    lost = 1 - rho**2
    quadratic = dim * lost + rho**2
    linear = dim * lost * (r - p0)
    constant = dim * lost * p0 * r
    root = np.sqrt(linear**2 + 4 * quadratic * constant)  # Eq. (36)
    total = root + np.abs(linear)
    # Of the two forms of the root, the one that does not subtract; nothing lost leaves 0 / 0, which is 0.
    safe = np.where(total > 0, total, 1.0)
    return np.where(linear > 0, 2 * constant / safe, total / (2 * quadratic))


def posterior_var(retention: Numbers, obs_noise: Numbers, key_dim: Numbers, prior_var: Numbers = 1.0) -> Floats:
    """Mean-field variance after each update: the predictive variance at a random unit query.

    ``p = m - m^2 / (K (m + r))`` with ``m`` of ``predicted_var``; the approximation ends where that one does.

    Args:
        retention: rho, what the covariance keeps at each token, in [0, 1].
        obs_noise: assumed observation noise variance r, positive.
        key_dim: key channels K.
        prior_var: p0, positive.

    Returns:
        p, in the units of ``prior_var``; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    m = predicted_var(retention, obs_noise, key_dim, prior_var)
    r, dim = checked(obs_noise=obs_noise, key_dim=key_dim)
    return m - m**2 / (dim * (m + r))  # Eq. (35)


def live_load(retention: Numbers, key_dim: Numbers) -> Floats:
    """Keys still remembered, a key channel: ``1 / (K (1 - rho^2))``.

    The prior refills a fraction ``1 - rho^2`` at every token, so about ``1 / (1 - rho^2)`` keys are alive.

    Args:
        retention: rho, what the covariance keeps at each token, in [0, 1].
        key_dim: key channels K.

    Returns:
        The load, no unit; infinite at retention 1.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    rho, dim = checked(retention=retention, key_dim=key_dim)
    with np.errstate(divide="ignore"):
        return 1 / (dim * (1 - rho**2))
