"""The error-correcting write and its read-out, for any gains, as a torch operator."""

import torch
from torch import Tensor

from bayesmem.ops.fused.operator import operator
from bayesmem.ops.fused.tables import chunk_count, given_of, grouped, precision_of, spans_at, whole
from bayesmem.ops.triton.mean_backward import mean_backward
from bayesmem.ops.triton.mean_forward import mean_forward


@operator("bayesmem::mean_pass", repeats=True)
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
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The error-correcting write and the read-out, for any gains.

    Args:
        q: queries ``[N, G, K]``.
        k: keys ``[N, G, K]``.
        v: values ``[N, H, V]``.
        gain: ``[N, H, K]``, float32 or in the dtype of the streams, to which it is rounded.
        log_decay: ``[N, H]`` float32.
        initial_mean: ``[S, H, K, V]`` float32.
        cu_seqlens: offsets of packed sequences.
        batch: sequences of equal length, where not packed.
        chunk: tokens a chunk.
        want_energy: whether the squared innovations are asked for.

    Returns:
        o ``[N, H, V]``, ``|innovation|^2`` ``[N, H]`` (where asked for), final mean, and what the backward
        pass starts from: gains in the dtype of the streams (not where they came in it), solved triangular systems,
        scores and decays of every chunk, innovations, and the mean before every chunk.
    """
    spans = spans_at(k.shape[0], cu_seqlens, batch, chunk, k.device)
    made = mean_forward(q, k, v, gain, log_decay, initial_mean, spans, want_energy, precision_of(q))
    return returned(made, gain)  # type: ignore[return-value]


def returned(made: tuple[Tensor, Tensor | None, Tensor, tuple[Tensor, ...]], gain: Tensor) -> tuple[Tensor | None, ...]:
    """What ``mean_forward`` gave as an operator returns it: nothing that came in."""
    o, energy, final_mean, (written, *rest) = made
    return o, energy, final_mean, None if written is gain else written, *rest


@mean_op.register_fake
def _(q, k, v, gain, log_decay, initial_mean, cu_seqlens, batch, chunk, want_energy):  # type: ignore[no-untyped-def]
    (tokens, heads, value_dim), key_dim = v.shape, k.shape[-1]
    packed = cu_seqlens is not None
    sequences = cu_seqlens.shape[0] - 1 if packed else batch
    chunks = chunk_count(tokens, sequences, chunk, packed)
    energy = torch.empty_like(log_decay) if want_energy else None
    final_mean = log_decay.new_empty(sequences, heads, key_dim, value_dim)
    solve, means = q.new_empty(chunks, heads, chunk, chunk), q.new_empty(chunks, heads, key_dim, value_dim)
    factors = log_decay.new_empty(chunks, heads, 2, chunk)
    written = None if gain.dtype == k.dtype else torch.empty_like(gain, dtype=k.dtype)
    return (
        torch.empty_like(v),
        energy,
        final_mean,
        written,
        solve,
        torch.empty_like(solve),
        factors,
        torch.empty_like(v),
        means,
    )


@operator("bayesmem::mean_pass_backward", repeats=True)
def mean_backward_op(
    do: Tensor,
    d_energy: Tensor | None,
    d_final_mean: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    written: Tensor,
    solve: Tensor,
    scores: Tensor,
    factors: Tensor,
    innovation: Tensor,
    means: Tensor,
    cu_seqlens: Tensor | None,
    batch: int,
    chunk: int,
    gain_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, the gain (in ``gain_dtype``; ``written`` has that of the streams), decay, initial mean."""
    spans = spans_at(k.shape[0], cu_seqlens, batch, chunk, k.device)
    saved = (written, solve, scores, factors, innovation, means)
    given = (saved, spans, do, d_energy, d_final_mean, precision_of(q), gain_dtype)
    dq, dk, *rest = mean_backward(q, k, v, log_decay, *given)
    return grouped(dq, q), grouped(dk, k), *rest  # type: ignore[return-value]


@mean_backward_op.register_fake
def _(do, d_energy, d_final_mean, q, k, v, log_decay, written, *rest):  # type: ignore[no-untyped-def]
    cu_seqlens, batch, _, gain_dtype = rest[-4:]
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    d_initial = log_decay.new_empty(sequences, v.shape[1], k.shape[-1], v.shape[-1])
    d_gain = torch.empty_like(written, dtype=gain_dtype)
    return (*(torch.empty_like(x) for x in (q, k, v)), d_gain, torch.empty_like(log_decay), d_initial)


def _mean_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, gain, log_decay, initial_mean, cu_seqlens, ctx.batch, ctx.chunk, _ = inputs
    ctx.has_initial, ctx.gain_dtype = initial_mean is not None, gain.dtype
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*given_of(output[3:]))
    written = gain if gain.dtype == k.dtype else output[3]
    ctx.save_for_backward(q, k, v, log_decay, written, *output[4:], cu_seqlens)


def _mean_gradient(ctx, do, d_energy, d_final_mean, *_):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    do = torch.zeros_like(saved[2]) if do is None else do.contiguous()
    place = (ctx.batch, ctx.chunk, ctx.gain_dtype)
    *grads, d_initial = mean_backward_op(do, whole(d_energy), whole(d_final_mean), *saved, *place)
    return *grads, d_initial if ctx.has_initial else None, None, None, None, None


mean_op.register_autograd(_mean_gradient, _mean_context)
