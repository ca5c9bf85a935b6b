"""The diagonal scan against the gain rule in float64, forward and by autograd."""

from itertools import pairwise

import pytest
import torch

from bayesmem.ops.gains import diagonal_gains
from bayesmem.ops.step import AffineNoise
from bayesmem.ops.triton.diagonal import diagonal_backward, diagonal_forward
from bayesmem.ops.triton.spans import spans_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def problem(bounds, groups, heads, key_dim, channels, dtype=torch.float32):
    """Keys, log retention, process noise, obs noise ([N, ...]) and initial variances; a hard reset on the way."""
    generator = torch.Generator().manual_seed(len(bounds))
    rand = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    tokens = bounds[-1]
    retention, noise = ((tokens, heads, key_dim) if wide else (tokens, heads) for wide in channels)
    log_retention = -0.1 * rand(*retention).abs()
    log_retention[tokens // 2] = -60.0
    k = torch.nn.functional.normalize(rand(tokens, groups, key_dim), dim=-1).to(dtype)
    initial = rand(len(bounds) - 1, heads, key_dim).exp()
    return k, log_retention, 0.2 * rand(*noise).abs(), 0.1 * rand(tokens, heads).exp(), initial


def textbook(bounds, k, log_retention, process_noise, obs_noise, initial):
    """Predicted variances and final ones by the chunked rule: its own gain gives ``P- k / s`` back."""
    heads = obs_noise.shape[1]
    wide = lambda x: x if x.ndim == 3 else x[..., None]  # noqa: E731
    k = k.repeat_interleave(heads // k.shape[1], 1)
    predicted, final = [], []
    for s, (start, stop) in enumerate(pairwise(bounds)):
        part = lambda x: x[None, start:stop].transpose(1, 2)  # noqa: B023, E731
        noise = AffineNoise(part(wide(log_retention)), part(wide(process_noise)))
        gains = diagonal_gains(part(k), part(k), part(obs_noise), noise, initial[s : s + 1])
        predicted.append((gains.gain * gains.innovation_var[..., None] / part(k))[0].transpose(0, 1))
        final.append(gains.final_cov)
    return torch.cat(predicted), torch.cat(final)


CASES = [
    ((0, 37), 1, 2, 16, (False, False)),
    ((0, 1, 18, 50), 1, 2, 19, (False, True)),
    ((0, 33), 2, 2, 40, (True, False)),
    ((0, 16, 20), 1, 1, 5, (True, True)),
]


def close(got, expected, tolerance=5e-6):
    assert (got.cpu().double() - expected).abs().max() <= tolerance * max(1.0, expected.abs().max())


@pytest.mark.parametrize(("bounds", "groups", "heads", "key_dim", "channels"), CASES)
@pytest.mark.parametrize("with_final", [False, True])
def test_variances_and_gradients(bounds, groups, heads, key_dim, channels, with_final):
    tensors = problem(bounds, groups, heads, key_dim, channels)
    spans = spans_of(bounds, 16, DEVICE, room=9)  # more chunks than tokens fill
    leaves = [x.double().requires_grad_() for x in tensors]
    expected, expected_final = textbook(bounds, *leaves)
    moved = [x.to(DEVICE) for x in tensors]
    predicted, final = diagonal_forward(*moved, spans)
    close(predicted, expected.detach())
    close(final, expected_final.detach())

    d_predicted, d_final = torch.randn_like(predicted), torch.randn_like(final)
    loss = (expected * d_predicted.cpu()).sum()
    if with_final:
        loss = loss + (expected_final * d_final.cpu()).sum()
    loss.backward()
    dk, *d_rest = diagonal_backward(
        *moved[:4], predicted, moved[4], spans, d_predicted, d_final if with_final else None
    )
    close(dk.unflatten(1, (groups, -1)).sum(2), leaves[0].grad)
    for got, leaf in zip(d_rest, leaves[1:], strict=True):
        assert got.shape == leaf.shape
        close(got, leaf.grad)


def test_narrow_keys_are_read_as_they_are():
    tensors = problem((0, 20), 1, 2, 16, (False, False), torch.bfloat16)
    expected, _ = textbook((0, 20), *(x.double() for x in tensors))
    predicted, _ = diagonal_forward(*(x.to(DEVICE) for x in tensors), spans_of((0, 20), 16, DEVICE))
    close(predicted, expected)


@pytest.mark.parametrize("tokens", [1, 4])
def test_tokens_fetched_at_a_time_change_nothing(tokens):
    tensors = [x.to(DEVICE) for x in problem((0, 9), 1, 1, 16, (False, False))]
    spans = spans_of((0, 9), 16, DEVICE)
    default, other = (diagonal_forward(*tensors, spans, tuning) for tuning in (None, {"tokens": tokens}))
    assert all(torch.equal(a, b) for a, b in zip(default, other, strict=True))
