"""The isotropic structure's chain of variances, one a head, and its gradients.

Legend: x predicted variance, d posterior variance, a retention squared, n process noise, r obs noise, w = |k|^2, and
K channels:

    x_t = a_t d_{t-1} + n_t                             d_t = x_t (1 - x_t w_t / (K s_t)),   s_t = x_t w_t + r_t

Backward, with lambda_t the gradient of x_t and D_t that of d_t (what reaches x_t from outside is ``d_predicted``):

    lambda_t = d_predicted_t + (1 - (1 - (r / s)^2) / K) D_t                    D_{t-1} = a_t lambda_t
    dn_t = lambda_t    da_t = d_{t-1} lambda_t    dr_t = D_t w (x / s)^2 / K    dw_t = -D_t r (x / s)^2 / K

Matching a trace does not compose, so the chain is sequential: a lane for each sequence and head, a few to a program.
To keep it short, the numbers of TOKENS tokens are asked for before the first is used.
From K = 2 on what is taken from 1 is at most a half of it; at K = 1 both factors are quotients, r / s and its square.
A token past the end has a = 1, n = 0, w = 0, r = 1, which leaves the chain as it is, exactly.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.sizes import cdiv
from bayesmem.ops.triton.spans import Spans


@triton.jit
@no_type_check
def _lanes(seq_start, beliefs, H: tl.constexpr, LANES: tl.constexpr):
    """Belief, head, and first and last token (exclusive) of every lane; lanes too many have no token."""
    belief = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    held = belief < beliefs
    start = tl.load(seq_start + belief // H, mask=held, other=0).to(tl.int64)
    stop = tl.load(seq_start + belief // H + 1, mask=held, other=0).to(tl.int64)
    return belief, held, belief % H, start, stop


@triton.jit
@no_type_check
def _posterior(x, w, r, K: tl.constexpr):
    """Variance after one measurement."""
    s = x * w + r
    return x * (r / s) if K == 1 else x - x * (x * w / s) * (1.0 / K)


@triton.jit
@no_type_check
def _forward_kernel(
    keep, added, power, obs_noise, initial_cov, seq_start, predicted, final_cov, beliefs,
    H: tl.constexpr, K: tl.constexpr, LANES: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    belief, held, h, start, stop = _lanes(seq_start, beliefs, H, LANES)
    d = tl.load(initial_cov + belief, mask=held, other=0.0)
    for first in range(0, tl.max(stop - start), TOKENS):
        keeps, adds, powers, noises = (), (), (), ()
        for i in tl.static_range(TOKENS):
            real, row = start + first + i < stop, (start + first + i) * H + h
            keeps += (tl.load(keep + row, mask=real, other=1.0),)
            adds += (tl.load(added + row, mask=real, other=0.0),)
            powers += (tl.load(power + row, mask=real, other=0.0),)
            noises += (tl.load(obs_noise + row, mask=real, other=1.0),)
        for i in tl.static_range(TOKENS):
            x = keeps[i] * d + adds[i]
            tl.store(predicted + (start + first + i) * H + h, x, mask=start + first + i < stop)
            d = _posterior(x, powers[i], noises[i], K)
    tl.store(final_cov + belief, d, mask=held)


@triton.jit
@no_type_check
def _backward_kernel(
    keep, power, obs_noise, predicted, initial_cov, seq_start, d_predicted, d_final_cov,
    dkeep, dadded, dpower, dobs_noise, d_initial_cov, beliefs,
    H: tl.constexpr, K: tl.constexpr, LANES: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    belief, held, h, start, stop = _lanes(seq_start, beliefs, H, LANES)
    grad, grad_x = tl.zeros([LANES], tl.float32), tl.zeros([LANES], tl.float32)  # D of this token, lambda of the next
    if d_final_cov is not None:
        grad += tl.load(d_final_cov + belief, mask=held, other=0.0)
    for back in range(1, tl.max(stop - start) + 1, TOKENS):
        keeps, powers, noises, xs, grads = (), (), (), (), ()
        for i in tl.static_range(TOKENS):
            real, row = stop - back - i >= start, (stop - back - i) * H + h
            keeps += (tl.load(keep + row, mask=real, other=1.0),)
            powers += (tl.load(power + row, mask=real, other=0.0),)
            noises += (tl.load(obs_noise + row, mask=real, other=1.0),)
            xs += (tl.load(predicted + row, mask=real, other=0.0),)
            grads += (tl.load(d_predicted + row, mask=real, other=0.0),)
        for i in tl.static_range(TOKENS):
            token, x, w, r = stop - back - i, xs[i], powers[i], noises[i]
            real, row = token >= start, token * H + h
            tl.store(dkeep + row + H, grad_x * _posterior(x, w, r, K), mask=real & (token + 1 < stop))
            s = x * w + r
            kept, per_s = r / s, x / s
            slope = kept * kept if K == 1 else 1.0 - per_s * w * (1.0 + kept) * (1.0 / K)
            shared = grad * (per_s * per_s) * (1.0 / K)
            tl.store(dpower + row, -shared * r, mask=real)
            tl.store(dobs_noise + row, shared * w, mask=real)
            grad_x = tl.where(real, grads[i] + slope * grad, grad_x)
            tl.store(dadded + row, grad_x, mask=real)
            grad = tl.where(real, keeps[i] * grad_x, grad)
    begun = tl.load(initial_cov + belief, mask=held, other=0.0)
    tl.store(dkeep + start * H + h, grad_x * begun, mask=start < stop)
    tl.store(d_initial_cov + belief, grad, mask=held)


def isotropic_forward(
    keep: Float[Tensor, "N H"],
    added: Float[Tensor, "N H"],
    power: Float[Tensor, "N H"],
    obs_noise: Float[Tensor, "N H"],
    initial_cov: Float[Tensor, "S H"],
    key_dim: int,
    spans: Spans,
    tuning: dict | None = None,
) -> tuple[Float[Tensor, "N H"], Float[Tensor, "S H"]]:
    """Predicted variances of every token and the posterior ones after every sequence; all float32, contiguous.

    Args:
        keep: squared retention.
        added: process noise, added after it.
        power: squared norms of the keys.
        obs_noise: positive, with its floor applied.
        initial_cov: variances before each sequence.
        key_dim: K, channels of the keys, over which the trace is taken.
        spans: where sequences lie; their chunks do not matter here.
        tuning: may set ``lanes`` and ``tokens`` (of a program, and fetched at a time) and ``num_warps``.
    """
    predicted, final_cov = torch.empty_like(keep), torch.empty_like(initial_cov)
    grid, sizes = _launch(initial_cov, key_dim, tuning)
    _forward_kernel[grid](keep, added, power, obs_noise, initial_cov, spans.seq_start, predicted, final_cov, **sizes)
    return predicted, final_cov


def isotropic_backward(
    keep: Float[Tensor, "N H"],
    power: Float[Tensor, "N H"],
    obs_noise: Float[Tensor, "N H"],
    predicted: Float[Tensor, "N H"],
    initial_cov: Float[Tensor, "S H"],
    key_dim: int,
    spans: Spans,
    d_predicted: Float[Tensor, "N H"],
    d_final_cov: Float[Tensor, "S H"] | None,
    tuning: dict | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``keep``, ``added``, ``power``, ``obs_noise`` and ``initial_cov``; arguments as of the forward."""
    gates = torch.empty_like(keep), torch.empty_like(keep), torch.empty_like(power), torch.empty_like(obs_noise)
    d_initial_cov = torch.empty_like(initial_cov)
    grid, sizes = _launch(initial_cov, key_dim, tuning)
    _backward_kernel[grid](
        keep, power, obs_noise, predicted, initial_cov, spans.seq_start, d_predicted, d_final_cov,
        *gates, d_initial_cov, **sizes,
    )  # fmt: skip
    return *gates, d_initial_cov


def _launch(initial_cov: Tensor, key_dim: int, tuning: dict | None) -> tuple[tuple[int], dict]:
    """Grid and sizes: few lanes a program, so that a batch of them is spread over the multiprocessors."""
    options = {"lanes": 8, "tokens": 16, "num_warps": 1} | (tuning or {})
    lanes, tokens = options.pop("lanes"), options.pop("tokens")
    beliefs = initial_cov.numel()
    sizes = {"H": initial_cov.shape[1], "K": key_dim, "LANES": lanes, "TOKENS": tokens}
    return (cdiv(beliefs, lanes),), {"beliefs": beliefs, **sizes, **options}
