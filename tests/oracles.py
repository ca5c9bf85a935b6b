"""Textbook filters in numpy, of one head, written from the definitions and not from bayesmem.

Arrays lead with time: q, k ``[T, K]``, v ``[T, V]``, decay ``[T, K]`` (the diagonal of the transition),
process noise ``[T, K, K]``, obs_noise ``[T]``. ``vec`` of a K x V memory stacks its rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from statsmodels.tsa.statespace.kalman_filter import KalmanFilter

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """A linear-Gaussian model of one memory and the values it was seen to give."""

    k: Array
    v: Array
    decay: Array
    process_noise: Array
    obs_noise: Array
    mean: Array
    cov: Array


@dataclass(frozen=True)
class Posterior:
    """After every token: mean ``[T, K, V]``, covariance of vec ``[T, KV, KV]``, log evidence ``[T]``."""

    mean: Array
    cov: Array
    log_evidence: Array


def exact_process_noise(k: Array, decay: Array, retention: Array, prior: Array, obs_noise: Array, cov: Array) -> Array:
    """Q of the exact filter under prior mixing with a retention of its own, from the data-free recursion.

    ``P- = rho P rho + (I - rho^2) P_0`` must equal ``A P A + Q``; P itself is updated in information form.
    """
    noises = []
    for t in range(len(k)):
        predicted = np.outer(retention[t], retention[t]) * cov + np.diag((1 - retention[t] ** 2) * prior)
        noises.append(predicted - np.outer(decay[t], decay[t]) * cov)
        cov = np.linalg.inv(np.linalg.inv(predicted) + np.outer(k[t], k[t]) / obs_noise[t])
    return np.stack(noises)


def dense_conditioning(m: Linear) -> Posterior:
    """Condition the joint Gaussian of all memories and all values on the values so far.

    No recursion over time: every memory is written out as a sum of the initial memory and the
    noises, ``S_t = Phi_{t,0} S_0 + sum_i Phi_{t,i} W_i``, and the joint covariance follows from it.
    """
    (length, key_dim), value_dim = m.k.shape, m.v.shape[1]
    size = key_dim * value_dim
    eye = np.eye(value_dim)
    # What each memory takes of each source: S_0, W_1 .. W_T.
    taken = np.zeros((length, size, length + 1, size))
    for t in range(length):
        for source in range(t + 2):
            decayed = np.prod(m.decay[source : t + 1], axis=0)  # source 0 is S_0, decayed by every token
            taken[t, :, source] = np.kron(np.diag(decayed), eye)
    sources = np.zeros((length + 1, size, length + 1, size))
    for source, noise in enumerate([m.cov, *m.process_noise]):
        sources[source, :, source] = np.kron(noise, eye)
    flat = taken.reshape(length * size, -1)
    memories = flat @ sources.reshape(flat.shape[1], -1) @ flat.T
    start = (taken[:, :, 0] @ m.mean.ravel()).reshape(-1)
    look = np.zeros((length, value_dim, length, size))
    for t in range(length):
        look[t, :, t] = np.kron(m.k[t][None], eye)
    look = look.reshape(length * value_dim, -1)
    values = look @ memories @ look.T + np.diag(np.repeat(m.obs_noise, value_dim))
    surprise = m.v.ravel() - look @ start
    cross = memories @ look.T
    means, covs, totals = [], [], [0.0]
    for t in range(length):
        now, seen = slice(t * size, (t + 1) * size), slice(0, (t + 1) * value_dim)
        weights = np.linalg.solve(values[seen, seen], cross[now, seen].T).T
        means.append((start[now] + weights @ surprise[seen]).reshape(key_dim, value_dim))
        covs.append(memories[now, now] - weights @ cross[now, seen].T)
        totals.append(_log_density(surprise[seen], values[seen, seen]))
    return Posterior(np.stack(means), np.stack(covs), np.diff(totals))


def _log_density(x: Array, cov: Array) -> float:
    _, logdet = np.linalg.slogdet(2 * np.pi * cov)
    return -0.5 * (logdet + x @ np.linalg.solve(cov, x))


def statsmodels_filter(m: Linear) -> Posterior:
    """The time-varying Kalman filter of statsmodels on vec of the memory."""
    (length, key_dim), value_dim = m.k.shape, m.v.shape[1]
    size, eye = key_dim * value_dim, np.eye(value_dim)
    # Its transition[t] maps t to t + 1, so the first token's is applied by hand and the last is idle.
    moves = [np.kron(np.diag(a), eye) for a in m.decay]
    noises = [np.kron(noise, eye) for noise in m.process_noise]
    # tolerance=0: never take the covariance for converged.
    kf = KalmanFilter(k_endog=value_dim, k_states=size, tolerance=0)
    kf.bind(m.v.copy())
    kf["design"] = np.stack([np.kron(key[None], eye) for key in m.k], axis=-1)
    kf["obs_cov"] = np.stack([r * eye for r in m.obs_noise], axis=-1)
    kf["transition"] = np.stack([*moves[1:], np.eye(size)], axis=-1)
    kf["selection"] = np.eye(size)
    kf["state_cov"] = np.stack([*noises[1:], np.eye(size)], axis=-1)
    kf.initialize_known(moves[0] @ m.mean.ravel(), moves[0] @ np.kron(m.cov, eye) @ moves[0].T + noises[0])
    result = kf.filter()
    means = result.filtered_state.T.reshape(length, key_dim, value_dim)
    return Posterior(means, result.filtered_state_cov.transpose(2, 0, 1), result.llf_obs)


@dataclass(frozen=True)
class Readout:
    """What a filter says of one head: outputs ``[T, V]``, variances and log evidence ``[T]``, its end."""

    o: Array
    predictive_var: Array
    log_evidence: Array
    mean: Array
    cov: Array


Predict = Callable[[int, Array, Array], tuple[Array, Array]]
Correct = Callable[[Array, Array, float], Array]


def reduced_filter(
    q: Array,
    k: Array,
    v: Array,
    obs_noise: Array,
    mean: Array,
    cov: Array,
    predict: Predict,
    correct: Correct,
) -> Readout:
    """A filter that keeps a covariance of its own form, token by token.

    ``predict(t, mean, cov)`` lets a step of time pass, ``correct(predicted, key, noise)`` gives what is
    kept of the posterior covariance. Covariances are dense in and out, of whatever form.
    """
    outputs, variances, evidence = [], [], []
    for t in range(len(k)):
        mean, predicted = predict(t, mean, cov)
        spread = k[t] @ predicted @ k[t] + obs_noise[t]
        innovation = v[t] - mean.T @ k[t]
        mean = mean + np.outer(predicted @ k[t], innovation) / spread
        cov = correct(predicted, k[t], obs_noise[t])
        outputs.append(mean.T @ q[t])
        variances.append(q[t] @ cov @ q[t])
        evidence.append(_log_density(innovation, spread * np.eye(len(innovation))))
    return Readout(np.stack(outputs), np.array(variances), np.array(evidence), mean, cov)


def exact_posterior(predicted: Array, key: Array, noise: float) -> Array:
    """Bayes' rule in information form."""
    return np.linalg.inv(np.linalg.inv(predicted) + np.outer(key, key) / noise)


def mean_field_posterior(predicted: Array, key: Array, noise: float) -> Array:
    """The diagonal Gaussian q of least KL(q || posterior): the diagonal of the posterior precision."""
    return np.diag(1 / np.diag(np.linalg.inv(predicted) + np.outer(key, key) / noise))


def trace_matched_posterior(predicted: Array, key: Array, noise: float) -> Array:
    """The multiple of the identity with the posterior's trace."""
    return np.eye(len(key)) * np.trace(exact_posterior(predicted, key, noise)) / len(key)


def delta_rule(q: Array, k: Array, v: Array, decay: Array, beta: Array, mean: Array) -> tuple[Array, Array]:
    """The (gated) delta rule ``S = a S + beta k (v - (a S)^T k)^T``; beta ``[T]``. Outputs and last memory."""
    outputs = []
    for t in range(len(k)):
        mean = decay[t][:, None] * mean
        mean = mean + beta[t] * np.outer(k[t], v[t] - mean.T @ k[t])
        outputs.append(mean.T @ q[t])
    return np.stack(outputs), mean


def mesa_net(
    q: Array, k: Array, v: Array, gamma: Array, obs_noise: Array, ridge: Array, memory: Array, info: Array
) -> Array:
    """MesaNet: ``o = G^T (H + Lambda)^{-1} q``, H and G the discounted sums of key and value products."""
    outputs = []
    for t in range(len(k)):
        memory = gamma[t] * memory + np.outer(k[t], k[t]) / obs_noise[t]
        info = gamma[t] * info + np.outer(k[t], v[t]) / obs_noise[t]
        outputs.append(info.T @ np.linalg.solve(memory + np.diag(ridge), q[t]))
    return np.stack(outputs)
