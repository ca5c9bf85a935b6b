"""The error-correcting write and its read-out with decays per channel, for any gains, as a torch operator."""

import torch
from torch import Tensor

from bayesmem.ops.fused.operator import operator
from bayesmem.ops.fused.tables import chunk_count, grouped, precision_of, spans_at, whole
from bayesmem.ops.triton.channel_backward import channel_backward
from bayesmem.ops.triton.channel_forward import channel_forward


@operator("bayesmem::channel_mean_pass")
def channel_mean_op(
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
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The error-correcting write and the read-out, for any gains: ``mean_op`` with decays per channel.

    Args:
        q: queries ``[N, G, K]``.
        k: keys ``[N, G, K]``.
        v: values ``[N, H, V]``.
        gain: ``[N, H, K]``, float32 or in the dtype of the streams; it is not rounded.
        log_decay: ``[N, H, K]`` float32, finite.
        initial_mean: ``[S, H, K, V]`` float32.
        cu_seqlens: offsets of packed sequences.
        batch: sequences of equal length, where not packed.
        chunk: tokens a chunk.
        want_energy: whether the squared innovations are asked for.

    Returns:
        o ``[N, H, V]``, ``|innovation|^2`` ``[N, H]`` (where asked for), final mean, and what the backward
        pass starts from: solved triangular systems and scores of every chunk, innovations, and the mean before every
        chunk.
    """
    spans = spans_at(k.shape[0], cu_seqlens, batch, chunk, k.device)
    o, energy, final_mean, saved = channel_forward(
        q, k, v, gain, log_decay, initial_mean, spans, want_energy, precision_of(q)
    )
    return o, energy, final_mean, *saved  # type: ignore[return-value]


@channel_mean_op.register_fake
def _(q, k, v, gain, log_decay, initial_mean, cu_seqlens, batch, chunk, want_energy):  # type: ignore[no-untyped-def]
    (tokens, heads, value_dim), key_dim = v.shape, k.shape[-1]
    packed = cu_seqlens is not None
    sequences = cu_seqlens.shape[0] - 1 if packed else batch
    chunks = chunk_count(tokens, sequences, chunk, packed)
    energy = log_decay.new_empty(tokens, heads) if want_energy else None
    final_mean = log_decay.new_empty(sequences, heads, key_dim, value_dim)
    solve, means = q.new_empty(chunks, heads, chunk, chunk), q.new_empty(chunks, heads, key_dim, value_dim)
    return torch.empty_like(v), energy, final_mean, solve, torch.empty_like(solve), torch.empty_like(v), means


@operator("bayesmem::channel_mean_pass_backward")
def _channel_backward_op(
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
    innovation: Tensor,
    means: Tensor,
    cu_seqlens: Tensor | None,
    batch: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    spans = spans_at(k.shape[0], cu_seqlens, batch, chunk, k.device)
    saved = (solve, scores, innovation, means)
    dq, dk, *rest = channel_backward(
        q, k, v, gain, log_decay, saved, spans, do, d_energy, d_final_mean, precision_of(q)
    )
    return grouped(dq, q), grouped(dk, k), *rest  # type: ignore[return-value]


@_channel_backward_op.register_fake
def _(do, d_energy, d_final_mean, q, k, v, gain, log_decay, *rest):  # type: ignore[no-untyped-def]
    cu_seqlens, batch, _ = rest[-3:]
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    d_initial = log_decay.new_empty(sequences, v.shape[1], k.shape[-1], v.shape[-1])
    return (*(torch.empty_like(x) for x in (q, k, v, gain, log_decay)), d_initial)


def _channel_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, gain, log_decay, initial_mean, cu_seqlens, ctx.batch, ctx.chunk, _ = inputs
    ctx.has_initial = initial_mean is not None
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[3:])
    ctx.save_for_backward(q, k, v, gain, log_decay, *output[3:], cu_seqlens)


def _channel_gradient(ctx, do, d_energy, d_final_mean, *_):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    do = torch.zeros_like(saved[2]) if do is None else do.contiguous()
    *grads, d_initial = _channel_backward_op(do, whole(d_energy), whole(d_final_mean), *saved, ctx.batch, ctx.chunk)
    return *grads, d_initial if ctx.has_initial else None, None, None, None, None


channel_mean_op.register_autograd(_channel_gradient, _channel_context)
