"""The kernels as torch operators with gradients: opaque to ``torch.compile``, one call each way.

The only importer of ``bayesmem.ops.triton``. Tokens stand in one row, ``[N, H, D]``: B sequences of T, or, with
``cu_seqlens``, S packed ones. Every operator recomputes in its backward pass from the states that its forward pass
kept once a chunk.
"""

from collections import OrderedDict

import torch
from torch import Tensor

from bayesmem.ops.triton.covariance_backward import covariance_backward
from bayesmem.ops.triton.covariance_forward import covariance_forward
from bayesmem.ops.triton.decode import decode_step
from bayesmem.ops.triton.diagonal import diagonal_backward, diagonal_forward
from bayesmem.ops.triton.mean_backward import mean_backward
from bayesmem.ops.triton.mean_forward import mean_forward
from bayesmem.ops.triton.spans import Spans, dense_spans, spans_of
from bayesmem.ops.triton.variance import variance_forward

__all__ = ["chunk_count", "covariance_op", "decode_op", "decode_step", "diagonal_op", "mean_op"]

Grad = Tensor | None
_tables: OrderedDict[tuple[int, int, int, int], tuple[Tensor, Spans]] = OrderedDict()
KEPT_TABLES = 8


def chunk_count(tokens: int, sequences: int, chunk: int, packed: bool) -> int:
    """Chunks that a pass makes room for: of packed sequences the most there can be, whatever their lengths."""
    if packed:
        return -(-tokens // chunk) + sequences
    return sequences * -(-tokens // sequences // chunk)


def _spans(tokens: int, cu_seqlens: Tensor | None, batch: int, chunk: int, device: torch.device) -> Spans:
    """Chunk tables; those of packed sequences are read from the device once, and kept while they are in use."""
    if cu_seqlens is None:
        return dense_spans(batch, tokens // batch, chunk, device)
    key = (cu_seqlens.data_ptr(), cu_seqlens.shape[0], cu_seqlens._version, chunk)
    if key not in _tables:
        room = chunk_count(tokens, cu_seqlens.shape[0] - 1, chunk, True)
        # The entry holds the tensor, so that its address is not given to another while the table lives.
        _tables[key] = (cu_seqlens, spans_of(tuple(cu_seqlens.tolist()), chunk, device, room))
        while len(_tables) > KEPT_TABLES:
            _tables.popitem(last=False)
    return _tables[key][1]


def _precision(x: Tensor) -> str:
    return "tf32x3" if x.dtype == torch.float32 else "tf32"


def _whole(x: Grad) -> Grad:
    return None if x is None else x.contiguous()


@torch.library.custom_op("bayesmem::covariance_pass", mutates_args=())
def covariance_op(
    k: Tensor,
    q: Tensor | None,
    log_retention: Tensor,
    process_noise: Tensor,
    obs_noise: Tensor,
    floor: Tensor,
    initial_cov: Tensor,
    cu_seqlens: Tensor | None,
    batch: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The exact dense covariance through all tokens.

    Args:
        k: keys ``[N, G, K]``.
        q: queries ``[N, G, K]`` where the predictive variance is asked for.
        log_retention: ``[N, H]`` float32, as the next two.
        process_noise: isotropic, added after the retention.
        obs_noise: observation noise variance.
        floor: least noise as a multiple of ``|k|^2``, ``[H]``.
        initial_cov: ``[S, H, K, K]`` float32.
        cu_seqlens: offsets of packed sequences.
        batch: sequences of equal length, where not packed.
        chunk: tokens between two kept covariances.

    Returns:
        gain ``[N, H, K]``, innovation variance ``[N, H]``, final covariance, predictive variance ``[N, H]`` (empty
        where not asked for), and the covariance before every chunk.
    """
    spans = _spans(k.shape[0], cu_seqlens, batch, chunk, k.device)
    gates = (log_retention, process_noise, obs_noise, floor)
    gain, innovation_var, checkpoints, final_cov = covariance_forward(k, *gates, initial_cov, spans)
    var = gain.new_empty(0)
    if q is not None:
        var = variance_forward(q, gain, innovation_var, checkpoints, log_retention, process_noise, spans, "tf32x3")
    return gain, innovation_var, final_cov, var, checkpoints


@covariance_op.register_fake
def _(k, q, log_retention, process_noise, obs_noise, floor, initial_cov, cu_seqlens, batch, chunk):  # type: ignore[no-untyped-def]
    (tokens, heads), key_dim, sequences = log_retention.shape, k.shape[-1], initial_cov.shape[0]
    chunks = chunk_count(tokens, sequences, chunk, cu_seqlens is not None)
    gain = log_retention.new_empty(tokens, heads, key_dim)
    var = gain.new_empty(0) if q is None else torch.empty_like(log_retention)
    checkpoints = gain.new_empty(chunks, heads, key_dim, key_dim)
    return gain, torch.empty_like(log_retention), torch.empty_like(initial_cov), var, checkpoints


@torch.library.custom_op("bayesmem::covariance_pass_backward", mutates_args=())
def _covariance_backward_op(
    dgain: Tensor,
    dinnovation_var: Tensor | None,
    dvar: Tensor | None,
    d_final_cov: Tensor | None,
    gain: Tensor,
    innovation_var: Tensor,
    final_cov: Tensor,
    checkpoints: Tensor,
    k: Tensor,
    q: Tensor | None,
    log_retention: Tensor,
    process_noise: Tensor,
    obs_noise: Tensor,
    floor: Tensor,
    cu_seqlens: Tensor | None,
    batch: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dk, dq, *gates, d_initial_cov = covariance_backward(
        k,
        q,
        gain,
        innovation_var,
        checkpoints,
        final_cov,
        log_retention,
        process_noise,
        obs_noise,
        floor,
        _spans(k.shape[0], cu_seqlens, batch, chunk, k.device),
        dgain,
        dinnovation_var,
        dvar,
        d_final_cov,
        "tf32x3" if k.dtype == torch.float32 else "bf16x3",
    )
    return _grouped(dk, k), k.new_empty(0) if dq is None else _grouped(dq, k), *gates, d_initial_cov  # type: ignore[return-value]


@_covariance_backward_op.register_fake
def _(dgain, dinnovation_var, dvar, d_final_cov, gain, innovation_var, final_cov, checkpoints, k, q, *rest):  # type: ignore[no-untyped-def]
    log_retention, floor = rest[0], rest[3]
    dq = k.new_empty(0) if dvar is None or q is None else torch.empty_like(q)
    gates = (torch.empty_like(log_retention) for _ in range(3))
    return torch.empty_like(k), dq, *gates, torch.empty_like(floor), torch.empty_like(final_cov)


def _grouped(grad: Tensor, k: Tensor) -> Tensor:
    """Gradients per value head ``[N, H, K]``, summed over the heads that share a key."""
    if grad.shape[1] != k.shape[1]:
        grad = grad.unflatten(1, (k.shape[1], -1)).sum(2, dtype=torch.float32)
    return grad.to(k.dtype)


def _covariance_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    k, q, log_retention, process_noise, obs_noise, floor, _, cu_seqlens, ctx.batch, ctx.chunk = inputs
    gain, innovation_var, final_cov, _, checkpoints = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(checkpoints)
    ctx.save_for_backward(
        gain,
        innovation_var,
        final_cov,
        checkpoints,
        k,
        q,
        log_retention,
        process_noise,
        obs_noise,
        floor,
        cu_seqlens,
    )


def _covariance_gradient(ctx, dgain, dinnovation_var, d_final_cov, dvar, _):  # type: ignore[no-untyped-def]
    gain, *saved = ctx.saved_tensors
    dgain = torch.zeros_like(gain) if dgain is None else dgain.contiguous()
    q = saved[4] if dvar is not None else None
    saved[4] = q
    dvar = None if q is None else _whole(dvar)
    grads = _covariance_backward_op(
        dgain, _whole(dinnovation_var), dvar, _whole(d_final_cov), gain, *saved, ctx.batch, ctx.chunk
    )
    dk, dq, *rest = grads
    return dk, dq if q is not None else None, *rest, None, None, None


covariance_op.register_autograd(_covariance_gradient, setup_context=_covariance_context)


@torch.library.custom_op("bayesmem::mean_pass", mutates_args=())
def mean_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gain: Tensor,
    log_decay: Tensor,
    initial_mean: Tensor | None,
    cu_seqlens: Tensor | None,
    batch: int,
    chunk: int,
    want_energy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The error-correcting write and the read-out, for any gains.

    Args:
        q: queries ``[N, G, K]``.
        k: keys ``[N, G, K]``.
        v: values ``[N, H, V]``.
        gain: ``[N, H, K]`` float32.
        log_decay: ``[N, H]`` float32.
        initial_mean: ``[S, H, K, V]`` float32.
        cu_seqlens: offsets of packed sequences.
        batch: sequences of equal length, where not packed.
        chunk: tokens a chunk.
        want_energy: whether the squared innovations are asked for.

    Returns:
        o ``[N, H, V]``, ``|innovation|^2`` ``[N, H]`` (empty where not asked for), final mean, and what the backward
        pass starts from: solved triangular systems, scores and decays of every chunk, innovations, and the mean before
        every chunk.
    """
    spans = _spans(k.shape[0], cu_seqlens, batch, chunk, k.device)
    o, energy, final_mean, saved = mean_forward(
        q, k, v, gain, log_decay, initial_mean, spans, want_energy, _precision(q)
    )
    return o, log_decay.new_empty(0) if energy is None else energy, final_mean, *saved  # type: ignore[return-value]


@mean_op.register_fake
def _(q, k, v, gain, log_decay, initial_mean, cu_seqlens, batch, chunk, want_energy):  # type: ignore[no-untyped-def]
    (tokens, heads, value_dim), key_dim = v.shape, k.shape[-1]
    packed = cu_seqlens is not None
    sequences = cu_seqlens.shape[0] - 1 if packed else batch
    chunks = chunk_count(tokens, sequences, chunk, packed)
    energy = torch.empty_like(log_decay) if want_energy else log_decay.new_empty(0)
    final_mean = log_decay.new_empty(sequences, heads, key_dim, value_dim)
    solve, means = q.new_empty(chunks, heads, chunk, chunk), q.new_empty(chunks, heads, key_dim, value_dim)
    factors = log_decay.new_empty(chunks, heads, 2, chunk)
    return torch.empty_like(v), energy, final_mean, solve, torch.empty_like(solve), factors, torch.empty_like(v), means


@torch.library.custom_op("bayesmem::mean_pass_backward", mutates_args=())
def _mean_backward_op(
    do: Tensor,
    d_energy: Tensor | None,
    d_final_mean: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gain: Tensor,
    log_decay: Tensor,
    solve: Tensor,
    scores: Tensor,
    factors: Tensor,
    innovation: Tensor,
    means: Tensor,
    cu_seqlens: Tensor | None,
    batch: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    spans = _spans(k.shape[0], cu_seqlens, batch, chunk, k.device)
    saved = (solve, scores, factors, innovation, means)
    dq, dk, *rest = mean_backward(q, k, v, gain, log_decay, saved, spans, do, d_energy, d_final_mean, _precision(q))
    return _grouped(dq, q), _grouped(dk, k), *rest  # type: ignore[return-value]


@_mean_backward_op.register_fake
def _(do, d_energy, d_final_mean, q, k, v, gain, log_decay, *rest):  # type: ignore[no-untyped-def]
    cu_seqlens, batch, _ = rest[-3:]
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    d_initial = log_decay.new_empty(sequences, v.shape[1], k.shape[-1], v.shape[-1])
    return (*(torch.empty_like(x) for x in (q, k, v, gain, log_decay)), d_initial)


def _mean_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, gain, log_decay, initial_mean, cu_seqlens, ctx.batch, ctx.chunk, _ = inputs
    ctx.has_initial = initial_mean is not None
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[3:])
    ctx.save_for_backward(q, k, v, gain, log_decay, *output[3:], cu_seqlens)


def _mean_gradient(ctx, do, d_energy, d_final_mean, *_):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    do = torch.zeros_like(saved[2]) if do is None else do.contiguous()
    *grads, d_initial = _mean_backward_op(do, _whole(d_energy), _whole(d_final_mean), *saved, ctx.batch, ctx.chunk)
    return *grads, d_initial if ctx.has_initial else None, None, None, None, None


mean_op.register_autograd(_mean_gradient, setup_context=_mean_context)


@torch.library.custom_op("bayesmem::diagonal_pass", mutates_args=())
def diagonal_op(
    k: Tensor,
    log_retention: Tensor,
    process_noise: Tensor,
    obs_noise: Tensor,
    initial_cov: Tensor,
    cu_seqlens: Tensor | None,
    batch: int,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Predicted variances ``[N, H, K]`` of the diagonal structure, and its final ones ``[S, H, K]``."""
    spans = _spans(k.shape[0], cu_seqlens, batch, chunk, k.device)
    return diagonal_forward(k, log_retention, process_noise, obs_noise, initial_cov, spans)


@diagonal_op.register_fake
def _(k, log_retention, process_noise, obs_noise, initial_cov, cu_seqlens, batch, chunk):  # type: ignore[no-untyped-def]
    return obs_noise.new_empty(*obs_noise.shape, k.shape[-1]), torch.empty_like(initial_cov)


@torch.library.custom_op("bayesmem::diagonal_pass_backward", mutates_args=())
def _diagonal_backward_op(
    d_predicted: Tensor,
    d_final_cov: Tensor | None,
    predicted: Tensor,
    k: Tensor,
    log_retention: Tensor,
    process_noise: Tensor,
    obs_noise: Tensor,
    initial_cov: Tensor,
    cu_seqlens: Tensor | None,
    batch: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    spans = _spans(k.shape[0], cu_seqlens, batch, chunk, k.device)
    dk, *rest = diagonal_backward(
        k, log_retention, process_noise, obs_noise, predicted, initial_cov, spans, d_predicted, d_final_cov
    )
    return _grouped(dk, k), *rest  # type: ignore[return-value]


@_diagonal_backward_op.register_fake
def _(d_predicted, d_final_cov, predicted, k, *rest):  # type: ignore[no-untyped-def]
    return torch.empty_like(k), *(torch.empty_like(x) for x in rest[:4])


def _diagonal_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, cu_seqlens, ctx.batch, ctx.chunk = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], *tensors, cu_seqlens)


def _diagonal_gradient(ctx, d_predicted, d_final_cov):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    d_predicted = torch.zeros_like(saved[0]) if d_predicted is None else d_predicted.contiguous()
    grads = _diagonal_backward_op(d_predicted, _whole(d_final_cov), *saved, ctx.batch, ctx.chunk)
    return *grads, None, None, None


diagonal_op.register_autograd(_diagonal_gradient, setup_context=_diagonal_context)


@torch.library.custom_op("bayesmem::decode_step", mutates_args=("mean", "cov"))
def decode_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    log_retention: Tensor | None,
    process_noise: Tensor | None,
    obs_noise: Tensor,
    floor: Tensor | None,
    mean: Tensor,
    cov: Tensor | None,
    prior_var: Tensor | None,
    covariance: str,
    want_var: bool,
    want_evidence: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``decode_step`` for ``torch.compile``: one token, the belief updated where it lies; no gradients.

    Returns:
        o ``[S, H, V]``, predictive variance, innovation variance and energy ``[S, H]``; empty where not asked for.
    """
    o, *rest = decode_step(
        q,
        k,
        v,
        log_decay,
        log_retention,
        process_noise,
        obs_noise,
        floor,
        mean,
        cov,
        prior_var,
        covariance,
        want_var,
        want_evidence,
    )
    var, innovation_var, energy = (obs_noise.new_empty(0) if x is None else x for x in rest)
    return o, var, innovation_var, energy


@decode_op.register_fake
def _(q, k, v, log_decay, log_retention, process_noise, obs_noise, *rest):  # type: ignore[no-untyped-def]
    want_var, want_evidence = rest[-2:]
    asked = (want_var, want_evidence, want_evidence)
    return torch.empty_like(v), *(torch.empty_like(obs_noise) if x else obs_noise.new_empty(0) for x in asked)
