"""How far a memory looks back: what forgetting and other writes leave of an association after n tokens.

Two things end a memory. *Forgetting* is the design's own: the covariance relaxes at every token and the
mean decays by ``a``, so that what is not written again keeps ``a^n`` of its weight. *Interference* is what
writes under other keys do. Everything is exact but ``bayesian_factor`` (docs/math.md section 6.5).
"""

import numpy as np

from bayesmem.theory.domains import Floats, Numbers, checked
from bayesmem.theory.steady_state import predicted_var


def relaxed_var(tokens: Numbers, var: Numbers, retention: Numbers, prior_var: Numbers = 1.0) -> Floats:
    """Variance of an association that n tokens left untouched: ``rho^{2n} p + (1 - rho^{2n}) p0``.

    For tokens whose keys are orthogonal to its own, under prior mixing.

    Args:
        tokens: n.
        var: p at the key now, after its update.
        retention: rho of the covariance at each token, in [0, 1].
        prior_var: p0, positive.

    Returns:
        The variance at the key, in the units of ``var``; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.5.
    """
    n, p, rho, p0 = checked(tokens=tokens, var=var, retention=retention, prior_var=prior_var)
    kept = rho ** (2 * n)
    return kept * p + (1 - kept) * p0  # Eq. (44)


def tokens_until_lost(share: Numbers, var: Numbers, retention: Numbers, prior_var: Numbers = 1.0) -> Floats:
    """Untouched tokens until a share of an association's evidence is lost under prior mixing.

    Evidence is the precision above the prior's, ``1 / p - 1 / p0``, in proportion to the writes that it is worth.
    With ``x = 1 - share`` it is ``log(x p0 / ((1 - x) p + x p0)) / (2 log rho)``. The better an association is known,
    the sooner: for ``p << p0`` half is lost after about ``p / (p0 (1 - rho^2))`` tokens. At ``p = p0`` it is the time
    of the explained variance ``p0 - p``, whose share left is ``rho^{2n}`` whatever p.

    Args:
        share: share lost, in (0, 1).
        var: p at the key now, in (0, p0].
        retention: rho of the covariance at each token, in [0, 1].
        prior_var: p0, positive.

    Returns:
        A number of tokens, not whole: 0 at retention 0, infinite at 1; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain, or a variance above the prior's.

    Source: own derivation, docs/math.md section 6.5.
    """
    lost, p, rho, p0 = checked(share=share, var=var, retention=retention, prior_var=prior_var)
    if (p > p0).any():
        raise ValueError(
            f"var is {var} above prior_var {prior_var}; expected at most the prior's: no evidence is left."
        )
    kept = (1 - lost) * p0 / (lost * p + (1 - lost) * p0)  # Eq. (45)
    with np.errstate(divide="ignore"):
        return np.abs(np.log(kept) / (2 * np.log(rho)))


def half_life(factor: Numbers) -> Floats:
    """Tokens until a number that is multiplied by ``factor`` at each is halved: ``log(1/2) / log(factor)``.

    For the decay of the mean, the discount of the evidence, ``rho^2`` of the explained variance, and the factors
    of interference below.

    Args:
        factor: in [0, 1].

    Returns:
        A number of tokens, not whole: 0 for factor 0, infinite for 1.

    Raises:
        ValueError: an argument outside its domain.

    Source: the definition.
    """
    (x,) = checked(factor=factor)
    with np.errstate(divide="ignore"):
        return np.abs(np.log(0.5) / np.log(x))


def discounted_var(
    tokens: Numbers, var: Numbers, discount: Numbers, prior_var: Numbers = 1.0, floor: Numbers = 1e-4
) -> Floats:
    """Variance of an association that n tokens left untouched under a discount or log-linear mixing.

    The precision above the floor decays: ``1 / p_n = gamma^n / p + (1 - gamma^n) f / p0``.

    Args:
        tokens: n.
        var: p at the key now, after its update.
        discount: gamma at each token, in [0, 1].
        prior_var: p0, positive.
        floor: f, the floor of the discount as a fraction of the prior's precision; 1 for log-linear mixing.

    Returns:
        The variance at the key, in the units of ``var``; infinite where all is lost over a floor of 0.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.5.
    """
    n, p, gamma, p0, f = checked(tokens=tokens, var=var, discount=discount, prior_var=prior_var, floor=floor)
    kept = gamma**n
    with np.errstate(divide="ignore"):
        return 1 / (kept / p + (1 - kept) * f / p0)  # Eq. (46)


def discounted_gain(
    nth: Numbers, discount: Numbers, obs_noise: Numbers, prior_var: Numbers = 1.0, floor: Numbers = 1e-4
) -> Floats:
    """Gain of the n-th write in a row of one key under a discount or log-linear mixing.

    ``1 / (n_eff + (r / p0) (gamma^n + (1 - gamma^n) f))``, ``n_eff = (1 - gamma^n) / (1 - gamma)``: the static gain
    with n_eff observations. The prediction comes before the write, at the first token too.

    Args:
        nth: n, 1 for the first write.
        discount: gamma at each token, in [0, 1]; 1 is the static memory.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: p0, positive.
        floor: f, as a fraction of the prior's precision; 1 for log-linear mixing.

    Returns:
        The gain at the key, no unit; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.5.
    """
    n, gamma, r = checked(nth=nth, discount=discount, obs_noise=obs_noise)
    p0, f = checked(prior_var=prior_var, floor=floor)
    kept = gamma**n
    observations = np.where(gamma < 1, (1 - kept) / np.where(gamma < 1, 1 - gamma, 1), n)
    return 1 / (observations + r / p0 * (kept + (1 - kept) * f))  # Eq. (47)


def discounted_plateau(
    discount: Numbers, obs_noise: Numbers, prior_var: Numbers = 1.0, floor: Numbers = 1e-4
) -> Floats:
    """The gain to which ``discounted_gain`` tends: ``1 / (1 / (1 - gamma) + f r / p0)``.

    The effective number of observations is ``1 / (1 - gamma)``, whatever the noise.

    Args:
        discount: gamma at each token, in [0, 1].
        obs_noise: assumed observation noise variance r, positive.
        prior_var: p0, positive.
        floor: f, as a fraction of the prior's precision; 1 for log-linear mixing.

    Returns:
        The gain at the key, no unit; 0 at discount 1; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.5.
    """
    gamma, r, p0, f = checked(discount=discount, obs_noise=obs_noise, prior_var=prior_var, floor=floor)
    return (1 - gamma) / (1 + (1 - gamma) * f * r / p0)


def effective_writes(retention: Numbers, obs_noise: Numbers, prior_var: Numbers = 1.0) -> Floats:
    """Writes that one key's evidence is worth at its plateau under prior mixing: ``1 / g - r / p0``.

    That is the n at which the static gain ``1 / (n + r / p0)`` is the plateau g (``repeats.gain_plateau``). With m of
    that plateau and ``w = 1 - rho^2`` it is ``1 + r rho^2 / (m + r w)``: 1 for the delta rule, about
    ``sqrt(r / (p0 w))`` as w -> 0. Unlike under a discount it depends on the noise.

    Args:
        retention: rho of the covariance at each token, in [0, 1].
        obs_noise: assumed observation noise variance r, positive.
        prior_var: p0, positive.

    Returns:
        A number of writes, not whole, infinite at retention 1; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.5.
    """
    rho, r = checked(retention=retention, obs_noise=obs_noise)
    m = predicted_var(retention, obs_noise, 1, prior_var)
    with np.errstate(divide="ignore"):
        return 1 + r * rho**2 / (m + r * (1 - rho**2))  # Eq. (48)


def delta_rule_factor(key_dim: Numbers, beta: Numbers, decay: Numbers = 1.0) -> Floats:
    """Expected weight of an association that one write under a random key leaves: ``a (1 - beta / K)``.

    To the n-th power after n writes; ``half_life`` of it counts writes. Exact in expectation over keys.

    Args:
        key_dim: key channels K.
        beta: step size, in (0, 2).
        decay: a, the mean's transition at each token, in [0, 1].

    Returns:
        A factor, negative for ``beta > K = 1``; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.5.
    """
    dim, step, a = checked(key_dim=key_dim, beta=beta, decay=decay)
    return a * (1 - step / dim)  # Eq. (49)


def bayesian_factor(
    retention: Numbers, obs_noise: Numbers, key_dim: Numbers, prior_var: Numbers = 1.0, decay: Numbers = 1.0
) -> Floats:
    """Mean-field weight that one write under a random key leaves, in a settled memory with retention.

    ``a (1 - m / (K (m + r)))`` with m of ``steady_state.predicted_var``: the delta rule at the constant mean gain. To
    the n-th power it is an **approximation**: right after its write the association's own direction is better known
    than m says and barely moves, later it gives way faster. Relative to its first weight the prediction is
    low before about 1.5 half-lives, by at most .05, .13 and .17 (absolute) at r = p0, p0 / 10 and p0 / 100, and
    high after, by at most .02, .04 and .06; the half-life is short by at most 9, 22 and 27% (K = 16 and 64, loads of
    .8 to 7.8 live keys a channel). It is the better the lighter the load: within .05 at .08, K = 64.

    Args:
        retention: rho of the covariance at each token, in [0, 1]; at 1 nothing random is lost: factor a.
        obs_noise: assumed observation noise variance r, positive.
        key_dim: key channels K.
        prior_var: p0, positive.
        decay: a, the mean's transition at each token, in [0, 1].

    Returns:
        A factor in [0, 1]; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.5.
    """
    m = predicted_var(retention, obs_noise, key_dim, prior_var)
    r, dim, a = checked(obs_noise=obs_noise, key_dim=key_dim, decay=decay)
    return a * (1 - m / (dim * (m + r)))  # Eq. (49)
