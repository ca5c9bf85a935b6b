"""Every stage of a forward and backward of the filter by itself, with the inputs it has there (bf16 streams)."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesmem.ops import Assumptions, PriorMixing, bayesian_filter
from bayesmem.ops.triton.covariance_chain import Chained, chain
from bayesmem.ops.triton.covariance_config import chain_config
from bayesmem.ops.triton.covariance_forward import covariance_forward
from bayesmem.ops.triton.covariance_prepare import Prepared, prepare
from bayesmem.ops.triton.covariance_products import Pair
from bayesmem.ops.triton.covariance_tokens import tokens
from bayesmem.ops.triton.mean_backward import mean_backward
from bayesmem.ops.triton.mean_chain import chain as mean_chain
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.mean_forward import mean_forward
from bayesmem.ops.triton.mean_prepare import prepare as mean_prepare
from bayesmem.ops.triton.mean_prepare import prepared_tensors
from bayesmem.ops.triton.spans import dense_spans

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.float16 if DEVICE.type == "cpu" else torch.bfloat16  # the interpreter's products take no bfloat16
PAIRS, TF32 = "bf16x3", "tf32"  # what the operators ask for with 16-bit streams


class Stages:
    """Inputs of every stage, as a forward and backward has them; K = V = ``size``.

    Args:
        batch: sequences.
        length: tokens of each.
        heads: H.
        size: K and V.
        chunk: tokens a chunk.
    """

    def __init__(self, batch: int, length: int, heads: int, size: int, chunk: int):
        self.shape, self.size = (batch, length, heads), size
        self.spans = dense_spans(batch, length, chunk, DEVICE)
        source = torch.Generator(DEVICE).manual_seed(0)

        def normal() -> Tensor:
            return torch.randn(batch * length, heads, size, generator=source, device=DEVICE)

        def uniform() -> Tensor:
            return torch.rand(batch * length, heads, generator=source, device=DEVICE)

        self.q, self.k = (normalize(normal(), dim=-1).to(DTYPE) for _ in range(2))
        self.v, self.do = normal().to(DTYPE), normal().to(DTYPE)
        self.log_decay, self.log_retention, self.obs_noise = -0.1 * uniform(), -0.01 * uniform(), 0.1 + uniform()
        self.process_noise = -torch.expm1(2 * self.log_retention)
        self.floor = torch.zeros(heads, device=DEVICE)

    def filtered(self) -> None:
        """One call of the filter, forward and backward."""
        flat = (self.q, self.k, self.v, self.log_decay, self.obs_noise, self.log_retention)
        *streams, retention = (x.view(*self.shape, *x.shape[2:]).detach().requires_grad_() for x in flat)
        o = bayesian_filter(*streams, Assumptions(process_noise=PriorMixing(retention)), backend="triton").o
        torch.autograd.grad(o, [*streams, retention], self.do.view_as(o))

    @cached_property
    def covariance(self) -> tuple[Pair, Tensor, Tensor, Tensor]:
        """Gains, as a pair where keys are bfloat16, innovation variances, checkpoints and final covariances."""
        start = torch.eye(self.size, device=DEVICE).expand(self.shape[0], self.shape[2], -1, -1).contiguous()
        gates = (self.log_retention, self.process_noise, self.obs_noise, self.floor)
        return covariance_forward(self.k, *gates, start, self.spans, halved=DEVICE.type != "cpu")

    @cached_property
    def saved(self) -> tuple[Tensor, ...]:
        """What the mean's backward starts from."""
        streams = (self.q, self.k, self.v, self.covariance[0][0], self.log_decay)
        return mean_forward(*streams, None, self.spans, False, TF32)[3]

    @cached_property
    def d_gain(self) -> Tensor:
        """The gradient that the covariance's backward starts from."""
        return self.run("mean local", None)[3]

    @cached_property
    def prepared(self) -> Prepared:
        """Of the covariance's backward; the tokens write over its ``read``, which only the chain reads."""
        return self.run("covariance prepare", None)

    @cached_property
    def chained(self) -> Chained:
        """What the covariance's chain leaves to the tokens."""
        return self.run_chain(None)[0]

    def run_chain(self, tuning: Tuning | None) -> tuple[Chained, Tensor]:
        """The covariance's chain, all of what it makes."""
        gates = (self.log_retention, self.process_noise, self.obs_noise, self.floor)
        return chain(self.prepared, None, self.k, gates, *self.covariance[2:], None, self.spans, PAIRS, tuning)

    def run(self, stage: str, tuning: Tuning | None) -> Any:
        """What a stage makes, so far as all its settings make the same."""
        gain, innovation_var, checkpoints, _ = self.covariance
        if stage == "mean prepare":
            made = prepared_tensors(self.k, gain[0], self.log_decay, self.spans)
            mean_prepare(self.q, self.k, gain[0], self.log_decay, made, self.spans, TF32, tuning)
            return made
        if stage == "mean chain":
            written, solve, _, factors, _, means = self.saved
            made = torch.empty_like(self.v), torch.empty_like(means)
            chained = (self.k, written, solve, factors)
            return mean_chain(chained, self.v, None, self.spans, TF32, tuning, *made)[0], *made
        if stage in ("mean chain backward", "mean local"):
            streams = (self.q, self.k, self.v, self.log_decay)
            return mean_backward(*streams, self.saved, self.spans, self.do, None, None, TF32, torch.float32, tuning)
        rest = (self.spans, PAIRS, tuning)
        if stage == "covariance prepare":
            return prepare(self.k, None, gain, innovation_var, self.log_retention, self.d_gain, None, None, *rest)
        if stage == "covariance chain":
            chained, d_initial_cov = self.run_chain(tuning)
            return chained.sent, chained.met, chained.trace, d_initial_cov
        gates = (self.log_retention, self.process_noise, self.obs_noise, self.floor)
        known = (None, checkpoints, self.prepared, self.chained)
        return tokens(self.k, None, innovation_var, gates, (self.d_gain, None, None), *known, *rest)


class Blanks(Stages):
    """Room in place of the inputs that other stages make: enough to compile a stage without them."""

    def __init__(self, *sizes: int):
        super().__init__(*sizes)
        _, heads, (chunks, chunk) = *self.shape[1:], (self.spans.chunks, self.spans.chunk_size)
        wide = {"dtype": torch.float32, "device": DEVICE}
        gate = self.log_retention
        gain, square = torch.empty(self.v.shape, **wide), torch.empty(chunks, heads, chunk, chunk, **wide)
        cov, columns = (torch.empty(chunks, heads, self.size, n, **wide) for n in (self.size, chunk))
        final_cov = torch.empty(self.shape[0], heads, self.size, self.size, **wide)

        def pair(x: Tensor) -> tuple[Tensor, Tensor]:
            return x.bfloat16(), x.bfloat16()

        gains = pair(gain) if DEVICE.type != "cpu" else (gain, None)
        self.covariance, self.d_gain = (gains, gate, cov, final_cov), gain
        factors = torch.empty(chunks, heads, 2, chunk, **wide)
        self.saved = (gain.to(DTYPE), square.to(DTYPE), square.to(DTYPE), factors, self.v, cov.to(DTYPE))
        self.prepared = Prepared(pair(gain), square, square, None, columns, pair(columns), None, gate, gate, factors)
        trace, renew = columns[..., 0].contiguous(), chain_config(final_cov, PAIRS, None)["RENEW"]
        self.chained = Chained(pair(columns), square, trace, trace[..., 0].contiguous(), renew, None)
