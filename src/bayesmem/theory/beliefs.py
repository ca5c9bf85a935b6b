"""What a memory believes of itself, and how wrong it is when the world is another: exact recursions for any keys.

Numpy and small sizes: K x K matrices, one token at a time (docs/math.md section 6.7).
"""

from dataclasses import dataclass

import numpy as np

from bayesmem.theory.domains import Numbers, checked


@dataclass(frozen=True, slots=True)
class Believed:
    """A memory's gains and covariances, which depend on keys and assumptions only.

    Attributes:
        gains: ``[T, K]``.
        covs: after each update, ``[T, K, K]``; the reported variance at a query q is ``q^T cov q``.
    """

    gains: np.ndarray
    covs: np.ndarray


@dataclass(frozen=True, slots=True)
class World:
    """The memory that there really is, ``S_t = B_t S_{t-1} + W_t``, and the noise on its values.

    Attributes:
        start_cov: second moment of a column of S_0, ``[K, K]``, or a number times the identity.
        noise_var: variance of the values' noise.
        decay: B, in [0, 1]: a number, or diagonals ``[K]`` or ``[T, K]``.
        drift_cov: covariance of a column of W: a number times the identity, ``[K, K]`` or ``[T, K, K]``.
    """

    start_cov: Numbers
    noise_var: float | int
    decay: Numbers = 1.0
    drift_cov: Numbers = 0.0


def believed(keys: np.ndarray, obs_noise: Numbers, prior_var: float | int = 1.0, retention: Numbers = 1.0) -> Believed:
    """Gains and covariances under prior mixing, token by token.

    Args:
        keys: ``[T, K]``, of any norm.
        obs_noise: assumed observation noise variance r, positive: a number or ``[T]``.
        prior_var: p0, positive.
        retention: rho of the covariance, in [0, 1]: a number or ``[T]``.

    Returns:
        What the memory believes.

    Raises:
        ValueError: an argument outside its domain, or keys that are not one sequence.

    Source: docs/math.md section 2.
    """
    k, r, rho = checked(keys=keys, obs_noise=obs_noise, retention=retention)
    checked(prior_var=prior_var)
    length, key_dim = _sequence(k)
    r, rho = np.broadcast_to(r, length), np.broadcast_to(rho, length)
    gains, covs = np.empty((length, key_dim)), np.empty((length, key_dim, key_dim))
    cov = prior_var * np.eye(key_dim)
    for t in range(length):
        cov = rho[t] ** 2 * cov + (1 - rho[t] ** 2) * prior_var * np.eye(key_dim)  # Eq. (2)
        innovation = k[t] @ cov @ k[t] + r[t]
        gains[t] = cov @ k[t] / innovation
        cov = cov - innovation * np.outer(gains[t], gains[t])
        covs[t] = cov
    return Believed(gains, covs)


def error_cov(keys: np.ndarray, gains: np.ndarray, world: World, decay: Numbers = 1.0) -> np.ndarray:
    """True second moment of the error ``S_t - M_t`` of any gains in any linear world.

    The pair of error and memory is propagated: with ``J = I - g k^T`` the error obeys
    ``E = J (A E' + (B - A) S' + W) - g noise``. Where world and memory agree on the transition, ``A = B``, this is
    ``J (A Sigma A + Q) J^T + sigma^2 g g^T``, and with the filter's own gains and Q it is the reported covariance.

    Args:
        keys: ``[T, K]``.
        gains: ``[T, K]``, the filter's or any other.
        world: what is true.
        decay: A, the mean's transition that the memory assumes: a number, ``[K]`` or ``[T, K]``.

    Returns:
        ``[T, K, K]``: the expected squared error of the recall at q is ``q^T Sigma_t q``, in each value channel.

    Raises:
        ValueError: an argument outside its domain or shapes that do not fit.

    Source: own derivation, docs/math.md section 6.7.
    """
    k, g, own = checked(keys=keys, gain_vectors=gains, decay=decay)
    start, drift = checked(start_cov=world.start_cov, drift_cov=world.drift_cov)
    sigma2, true = checked(noise_var=world.noise_var, true_decay=world.decay)
    length, key_dim = _sequence(k)
    if g.shape != k.shape:
        raise ValueError(f"gains has shape {g.shape} for keys {k.shape}; expected one gain [K] a token.")
    eye, zero = np.eye(key_dim), np.zeros((key_dim, key_dim))
    start = start if start.ndim else start * eye
    drifts = np.broadcast_to(drift if drift.ndim else drift * eye, (length, key_dim, key_dim))
    owns, trues = (np.broadcast_to(x, (length, key_dim)) for x in (own, true))
    both, covs = np.block([[start, start], [start, start]]), np.empty((length, key_dim, key_dim))
    for t in range(length):
        corrected = eye - np.outer(g[t], k[t])
        moved = np.block([[corrected * owns[t], corrected * (trues[t] - owns[t])], [zero, np.diag(trues[t])]])
        shaken = np.vstack([corrected, eye])
        both = moved @ both @ moved.T + shaken @ drifts[t] @ shaken.T  # Eq. (60)
        both[:key_dim, :key_dim] += sigma2 * np.outer(g[t], g[t])
        covs[t] = both[:key_dim, :key_dim]
    return covs


def _sequence(keys: np.ndarray) -> tuple[int, int]:
    if keys.ndim != 2:
        raise ValueError(f"keys has shape {keys.shape}; expected one sequence [T, K]: call once for each.")
    return keys.shape[0], keys.shape[1]
