"""The best predictor of ``tasks.observations``: the exact posterior of a query's value, in float64.

It knows how a row was drawn (noise, rate of change), and in the lookup world which association a key is; so no layer
can do better, and the mean squared distance of its predictions from the posterior's mean is its *excess risk*.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmem.tasks.observations import OBSERVATION, Observations


@dataclass(frozen=True, slots=True)
class Posterior:
    """What is known of the queries' values.

    Attributes:
        mean: posterior mean.
        var: posterior variance, averaged over value channels; its mean is the least squared error there is.
        nll: negative log density of the targets, in nats a channel.
    """

    mean: Float[Tensor, "B Q V"]
    var: Float[Tensor, "B Q"]
    nll: Float[Tensor, "B Q"]


def posterior(data: Observations) -> Posterior:
    """The posterior of every query's value, given all observations before it."""
    c = data.config
    if c.world == "linear":
        return _kalman(data)
    return _run_lengths(data) if c.change == "redraw" and c.rate else _tables(data)


def gaussian_nll(error: Float[Tensor, "*axes V"], var: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Negative log density of an error under a Gaussian of one variance, in nats a channel."""
    return 0.5 * (math.log(2 * math.pi) + var.log() + error.square().mean(-1) / var)


def _kalman(data: Observations) -> Posterior:
    """Of a drifting matrix ``S_t = a S_{t-1} + W_t`` measured through keys: the Kalman filter."""
    c, k = data.config, data.keys
    rows, channels = len(k), c.key_dim
    mean = k.new_zeros(rows, channels, c.value_dim)
    cov = torch.eye(channels, dtype=k.dtype, device=k.device).expand(rows, -1, -1)
    prior, means, variances = cov, [], []
    for t in range(k.shape[1]):
        mean, cov = math.sqrt(1 - c.rate) * mean, (1 - c.rate) * cov + c.rate * prior
        through = (cov @ k[:, t, :, None])[..., 0]
        known, spread = (k[:, t, :, None] * mean).sum(1), (k[:, t] * through).sum(-1)
        if t >= c.context:
            means.append(known)
            variances.append(spread)
            continue
        seen = (data.kind[:, t] == OBSERVATION).to(k.dtype)
        gain = seen[:, None] * through / (spread + c.noise_var)[:, None]
        mean = mean + gain[..., None] * (data.values[:, t] - known)[:, None]
        cov = cov - gain[..., None] * through[:, None]
    return _gaussian(data, torch.stack(means, 1), torch.stack(variances, 1))


def _tables(data: Observations) -> Posterior:
    """Of independent values that drift: one scalar filter an association."""
    c, every = data.config, torch.arange(len(data.item), device=data.item.device)
    mean = data.values.new_zeros(len(every), c.pairs + c.queries, c.value_dim)
    var = torch.ones_like(mean[..., 0])
    decay = 1 - c.rate if c.change == "drift" else 1.0
    means, variances = [], []
    for t in range(data.item.shape[1]):
        mean, var = math.sqrt(decay) * mean, decay * var + (1 - decay)
        now = data.item[:, t].clamp(min=0)
        before, spread = mean[every, now], var[every, now]
        if t >= c.context:
            means.append(before)
            variances.append(spread)
            continue
        gain = spread / (spread + c.noise_var) * (data.kind[:, t] == OBSERVATION)
        mean[every, now] = before + gain[:, None] * (data.values[:, t] - before)
        var[every, now] = (1 - gain) * spread
    return _gaussian(data, torch.stack(means, 1), torch.stack(variances, 1))


def _run_lengths(data: Observations) -> Posterior:
    """Of independent values that are redrawn at times: a mixture over when each was drawn last.

    One Gaussian for every observation at which an association's present value may have been seen first (Adams and
    MacKay, arXiv 0710.3742), nothing pruned: exact.
    """
    c, every = data.config, torch.arange(len(data.item), device=data.item.device)
    items = c.pairs + c.queries
    counts = torch.nn.functional.one_hot(data.item[:, : c.context] + 1, items + 1)[..., 1:].sum(1)
    starts = int(counts.max())
    mean = data.values.new_zeros(len(every), items, starts, c.value_dim)
    var = torch.ones_like(mean[..., 0])  # a start that is still to come: the prior
    weight = torch.full_like(var, -math.inf)
    weight[..., 0] = 0.0  # before anything is seen there is one hypothesis
    seen = torch.zeros(len(every), items, dtype=torch.long, device=data.item.device)
    for t in range(c.context):
        now, real = data.item[:, t].clamp(min=0), data.item[:, t] >= 0
        count, log_weight = seen[every, now], weight[every, now]
        again = (real & (count > 0))[:, None]
        begins = torch.arange(starts, device=now.device) == count[:, None]
        moved = torch.where(begins, math.log(c.rate), log_weight + _log(1 - c.rate))
        log_weight = torch.where(again, moved, log_weight)
        old, spread = mean[every, now], var[every, now]
        error = data.values[:, t, None] - old
        fits = -c.value_dim * gaussian_nll(error, spread + c.noise_var)
        log_weight = torch.where(real[:, None], (log_weight + fits).log_softmax(-1), log_weight)
        # Hypotheses that begin later have not seen this value.
        within = (torch.arange(starts, device=now.device) <= count[:, None]) & real[:, None]
        gain = spread / (spread + c.noise_var) * within
        mean[every, now] = old + gain[..., None] * error
        var[every, now] = (1 - gain) * spread
        weight[every, now] = log_weight
        seen[every, now] += real
    asked = data.item[:, c.context :]
    rows = every[:, None]
    log_weight, means, variances = weight[rows, asked], mean[rows, asked], var[rows, asked]
    shares = log_weight.exp()
    best = (shares[..., None] * means).sum(-2)
    between = (means - best[..., None, :]).square().mean(-1)
    density = log_weight - c.value_dim * gaussian_nll(data.targets[..., None, :] - means, variances)
    return Posterior(best, (shares * (variances + between)).sum(-1), -density.logsumexp(-1) / c.value_dim)


def _gaussian(data: Observations, mean: Tensor, var: Tensor) -> Posterior:
    return Posterior(mean, var, gaussian_nll(data.targets - mean, var))


def _log(x: float | int) -> float:
    return math.log(x) if x > 0 else -math.inf
