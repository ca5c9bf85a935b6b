"""The reported variance against the realised squared error, under right and wrong assumptions.

Predicted is the *ratio* of the expected squared error of a recall to the variance that the memory reports there
(``predictive_var``, before observation noise): 1 is calibrated, above 1 overconfident. The static memory assumes
noise r and prior variance p0; the truth is noise ``noise_var`` and clean values of variance ``value_var``. All of it is
exact but the load (docs/math.md section 6.7). ``slope`` and ``interval_coverage`` measure the same from errors.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from bayesmem.theory.collision import bayesian_predictive_var, bayesian_retrieval
from bayesmem.theory.domains import Floats, Numbers, checked


def static_ratio(
    prior_share: Numbers,
    obs_noise: Numbers,
    prior_var: Numbers = 1.0,
    noise_var: Numbers = 0.0,
    value_var: Numbers = 1.0,
) -> Floats:
    """Ratio at any query after any keys: ``x v0 / p0 + (1 - x) sigma^2 / r``, for a memory of variance v0 a channel.

    x is the prior's share in the answer (``prior_share``). So the ratio is 1 under the right assumptions, ``1 / f``
    with both variances too large by f, and in between the two mistakes always: with r alone too large by
    f it falls from 1 where nothing was written to ``1 / f`` where much was.

    Args:
        prior_share: x, in (0, 1].
        obs_noise: assumed observation noise variance r, positive.
        prior_var: assumed p0, positive.
        noise_var: actual noise variance sigma^2.
        value_var: v0: columns of the memory are N(0, v0 I), so that clean values under unit keys have this variance.

    Returns:
        Squared error over reported variance; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.7.
    """
    x, r, p0 = checked(prior_share=prior_share, obs_noise=obs_noise, prior_var=prior_var)
    sigma2, v0 = checked(noise_var=noise_var, value_var=value_var)
    return x * v0 / p0 + (1 - x) * sigma2 / r  # Eq. (56)


def prior_share(cov: np.ndarray, query: np.ndarray, prior_var: Numbers = 1.0) -> Floats:
    """The prior's share x in the answer of a static memory: ``|P q|^2 / (p0 q^T P q)``.

    It is 1 before the first write and falls to 0 along what was written without end.

    Args:
        cov: P after the writes, ``[..., K, K]``.
        query: q, ``[..., K]``, not zero.
        prior_var: assumed p0, positive.

    Returns:
        x, in (0, 1], ``[...]``.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.7.
    """
    p, q, p0 = checked(cov=cov, query=query, prior_var=prior_var)
    through = np.einsum("...ij,...j->...i", p, q)
    return np.sum(through**2, -1) / (p0 * np.sum(q * through, -1))


def repeat_ratio(
    writes: Numbers, obs_noise: Numbers, prior_var: Numbers = 1.0, noise_var: Numbers = 0.0, value_var: Numbers = 1.0
) -> Floats:
    """Ratio at a key written n times: ``static_ratio`` at ``x = r / (r + n p0)``.

    So it goes from ``v0 / p0`` before the first write to ``sigma^2 / r`` after many.

    Args:
        writes: n, 0 for none.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: assumed p0, positive.
        noise_var: actual noise variance sigma^2.
        value_var: variance v0 of the clean value.

    Returns:
        Squared error over reported variance; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.7.
    """
    n, r, p0 = checked(writes=writes, obs_noise=obs_noise, prior_var=prior_var)
    return static_ratio(r / (r + n * p0), obs_noise, prior_var, noise_var, value_var)  # Eq. (57)


def collision_ratio(
    writes_a: Numbers,
    writes_b: Numbers,
    cosine: Numbers,
    obs_noise: Numbers,
    prior_var: Numbers = 1.0,
    noise_var: Numbers = 0.0,
    value_var: Numbers = 1.0,
    correlation: Numbers = 0.0,
) -> Floats:
    """Ratio at the first of two keys at a known cosine, over values of variance v0 each.

    The memory's own assumption is ``correlation = cosine``, and then this is ``static_ratio``. Independent values,
    the default, are not what a linear memory expects of keys that overlap: the ratio is not 1 even with r and p0 right.

    Args:
        writes_a: n_a, 0 for none.
        writes_b: n_b, 0 for none.
        cosine: c between the unit keys.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: assumed p0, positive.
        noise_var: actual noise variance sigma^2.
        value_var: variance v0 of either clean value.
        correlation: of the two clean values.

    Returns:
        Squared error over reported variance; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.7.
    """
    v0, together = checked(value_var=value_var, correlation=correlation)
    recall = bayesian_retrieval(writes_a, writes_b, cosine, obs_noise, prior_var)
    missed, taken = 1 - recall.weight_a, recall.weight_b
    error = v0 * (missed**2 + taken**2 - 2 * together * missed * taken) + recall.variance(noise_var)
    return error / bayesian_predictive_var(writes_a, writes_b, cosine, obs_noise, prior_var)  # Eq. (58)


def load_variance(associations: Numbers, key_dim: Numbers, obs_noise: Numbers, prior_var: Numbers = 1.0) -> Floats:
    """Reported variance at a stored key among N random ones: ``r (1 - l mu1) = r / (1 + u)``.

    ``u`` is the positive root of ``u^2 + (1 - l - y) u - l = 0``, ``l = r / p0``, ``y = N / K``. Large-K limit: at
    K = 64 it is within .5% for l from .001 to 1 and loads y from .05 to 4, the edge y = 1 among them.

    Args:
        associations: N.
        key_dim: key channels K.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: assumed p0, positive.

    Returns:
        The variance averaged over stored keys, in value units squared; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: Marchenko and Pastur (1967) for the eigenvalues; own derivation, docs/math.md section 6.7.
    """
    (r,) = checked(obs_noise=obs_noise)
    return r / (1 + _effective_ridge(associations, key_dim, obs_noise, prior_var))  # Eq. (59)


def load_ratio(
    associations: Numbers,
    key_dim: Numbers,
    obs_noise: Numbers,
    prior_var: Numbers = 1.0,
    noise_var: Numbers = 0.0,
    value_var: Numbers = 1.0,
) -> Floats:
    """Error over reported variance at stored keys, for **independent** values: averages of either, large K.

    ``(v0 u^3 + sigma^2 (u^2 + l - l u)) / (r (u^2 + l))``, u of ``load_variance``. More than K independent values are
    no linear memory's: with r and p0 right the ratio is ``1 + u (u^2 - l^2) / (l (u^2 + l))``, 1 at light load and
    about ``N p0 / (K r)`` far beyond capacity, where the memory is overconfident. For values that a memory gave it is
    1 at every load (``static_ratio``). At K = 64 and with r and p0 right it is within 1.5% for l >= .1; at l = .01 it
    is low by up to 8% for y from .7 to 1.1 (within 1% elsewhere), as ``load.bayesian_error`` is.

    Args:
        associations: N.
        key_dim: key channels K.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: assumed p0, positive.
        noise_var: actual noise variance sigma^2.
        value_var: variance v0 of the clean values.

    Returns:
        Squared error over reported variance; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.7.
    """
    r, p0, sigma2, v0 = checked(obs_noise=obs_noise, prior_var=prior_var, noise_var=noise_var, value_var=value_var)
    u, ridge = _effective_ridge(associations, key_dim, obs_noise, prior_var), r / p0
    return (v0 * u**3 + sigma2 * (u**2 + ridge - ridge * u)) / (r * (u**2 + ridge))  # Eq. (59)


@dataclass(frozen=True, slots=True)
class Slope:
    """A measured calibration slope: 1 is calibrated, above 1 overconfident.

    Attributes:
        value: mean of squared error over variance.
        standard_error: of ``value``; NaN for a single independent row.
    """

    value: float
    standard_error: float


def slope(variance: np.ndarray, squared_error: np.ndarray) -> Slope:
    """Regression of squared error on reported variance through the origin, weighted by ``1 / variance^2``.

    That is the mean of ``e^2 / variance``. Weights so, since a Gaussian error of variance b V has a square of mean b V
    and variance ``2 b^2 V^2``: it is then the best linear unbiased estimate of b, and its expectation is the
    mean of the ratios above. The standard error takes entries of the first axis to be independent and the others
    not, as channels and tokens of one sequence are not.

    Args:
        variance: reported, positive; broadcast against the errors, whose first axis it may lack.
        squared_error: ``[N, ...]``.

    Returns:
        The slope and its standard error.

    Raises:
        ValueError: a variance of 0 or less, errors without an axis or entry.

    Source: weighted least squares.
    """
    var, squares = _paired(variance, squared_error)
    rows = (squares / var).reshape(squares.shape[0], -1).mean(1)  # Eq. (61)
    spread = rows.std(ddof=1) / math.sqrt(rows.size) if rows.size > 1 else math.nan
    return Slope(float(rows.mean()), float(spread))


def interval_coverage(variance: np.ndarray, squared_error: np.ndarray, level: float | int = 0.95) -> float:
    """Share of errors inside the central interval that the reported variance promises to hold ``level`` of them.

    Args:
        variance: reported, positive; broadcast against the errors.
        squared_error: ``[N, ...]``.
        level: in (0, 1).

    Returns:
        The share, to be held against ``level``, or ``gaussian_coverage`` where the ratio is known.

    Raises:
        ValueError: an argument outside its domain.

    Source: the definition.
    """
    checked(level=level)
    var, squares = _paired(variance, squared_error)
    return float((squares <= _width(level) ** 2 * var).mean())


def gaussian_coverage(ratio: Numbers, level: float | int = 0.95) -> Floats:
    """Coverage of that interval for Gaussian errors of a known ratio: ``erf(z / sqrt(2 ratio))``.

    Args:
        ratio: squared error over reported variance, positive.
        level: that the interval promises, in (0, 1).

    Returns:
        The expected share inside, ``level`` at ratio 1.

    Raises:
        ValueError: an argument outside its domain.

    Source: the normal distribution.
    """
    (b,) = checked(ratio=ratio)
    checked(level=level)
    return np.vectorize(math.erf, otypes=[np.float64])(_width(level) / np.sqrt(2 * b))  # Eq. (62)


def _width(level: float | int) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _paired(variance: np.ndarray, squared_error: np.ndarray) -> tuple[Floats, Floats]:
    var, squares = checked(variance=variance, squared_error=squared_error)
    if squares.ndim == 0 or squares.size == 0:
        raise ValueError(f"squared_error has shape {squares.shape}; expected [N, ...] with at least one entry.")
    return np.broadcast_to(var, squares.shape), squares


def _effective_ridge(associations: Numbers, key_dim: Numbers, obs_noise: Numbers, prior_var: Numbers) -> Floats:
    """``u = l mu1 / (1 - l mu1)``, by the form of the root that does not subtract."""
    count, dim, r, p0 = checked(associations=associations, key_dim=key_dim, obs_noise=obs_noise, prior_var=prior_var)
    ridge = r / p0
    linear = 1 - ridge - count / dim
    total = np.abs(linear) + np.sqrt(linear**2 + 4 * ridge)
    return np.where(linear > 0, 2 * ridge / total, total / 2)
