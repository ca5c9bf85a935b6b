"""The decode kernel against the textbook step, token after token, the belief kept in place."""

import pytest
import torch

from bayesmem.ops import step
from bayesmem.ops.fused import decode_op
from bayesmem.ops.step import AffineNoise
from bayesmem.ops.triton.decode import decode_step
from bayesmem.types import Belief

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEQUENCES, FLOOR, PRIOR = 2, 1e-4, 1.5
CLOSE = 2e-6
ROUNDED = {torch.float32: CLOSE, torch.bfloat16: 2**-7, torch.float16: 2**-11}  # the interpreter cuts bfloat16 off


def token(groups, heads, key_dim, value_dim, dtype, generator):
    """Streams in their dtype and gates in float32, of one token; the last sequence is reset now and then."""
    rand = lambda *shape: torch.randn(SEQUENCES, *shape, generator=generator)  # noqa: E731
    q, k = rand(groups, key_dim), torch.nn.functional.normalize(rand(groups, key_dim), dim=-1)
    log_decay, log_retention = -0.1 * rand(heads).abs(), -0.05 * rand(heads).abs()
    if torch.rand((), generator=generator) < 0.2:
        log_decay[-1], log_retention[-1] = -60.0, -60.0
    obs_noise = 0.1 * rand(heads).exp()
    obs_noise[0, 0] = 1e-6  # below the floor
    streams = tuple(x.to(dtype).contiguous() for x in (q, k, rand(heads, value_dim)))
    return *streams, log_decay, log_retention, -PRIOR * torch.expm1(2 * log_retention), obs_noise


def textbook(belief, q, k, v, log_decay, log_retention, noise, obs_noise, covariance):
    """One token by ``step`` in float64: belief, output, variance, innovation variance, energy."""
    q, k, v, log_decay, log_retention, noise, obs_noise = (
        x.double() for x in (q, k, v, log_decay, log_retention, noise, obs_noise)
    )
    group = v.shape[1] // q.shape[1]
    q, k = q.repeat_interleave(group, 1), k.repeat_interleave(group, 1)
    noises = AffineNoise(log_retention[..., None], noise[..., None])
    carried = Belief(belief.mean, None if covariance == "reset" else belief.cov)
    predicted = step.predict(carried, log_decay[..., None], noises, covariance)
    if covariance == "reset":
        predicted = Belief(predicted.mean, torch.full_like(k, PRIOR))
    else:
        obs_noise = torch.maximum(obs_noise, FLOOR * PRIOR * k.square().sum(-1))
    updated = step.update(predicted, k, v, obs_noise, covariance)
    o, var = step.read_out(updated.belief, q)
    return updated.belief, o, var, updated.innovation_var, updated.innovation.square().sum(-1)


def fresh(covariance, heads, key_dim, value_dim):
    mean = torch.randn(SEQUENCES, heads, key_dim, value_dim, generator=torch.Generator().manual_seed(1))
    diagonal = torch.full((SEQUENCES, heads, key_dim), PRIOR)
    return mean, {"full": torch.diag_embed(diagonal), "diagonal": diagonal, "reset": None}[covariance]


def close(got, expected, tolerance):
    assert (got.double() - expected).abs().max() <= tolerance * max(1.0, expected.abs().max())


def follow(covariance, sizes, dtype, steps=40, wanted=(True, True), tuning=None):
    """Decode ``steps`` tokens by the kernel and by the textbook, and hold all that comes out together."""
    groups, heads, key_dim, value_dim = sizes
    generator = torch.Generator().manual_seed(0)
    mean, cov = fresh(covariance, heads, key_dim, value_dim)
    belief = Belief(mean.double(), None if cov is None else cov.double())
    mean, cov = mean.to(DEVICE), None if cov is None else cov.to(DEVICE)
    floor, prior = torch.full((heads,), FLOOR * PRIOR, device=DEVICE), torch.full((heads,), PRIOR, device=DEVICE)
    for _ in range(steps):
        x = token(groups, heads, key_dim, value_dim, dtype, generator)
        belief, *expected = textbook(belief, *x, covariance)
        q, k, v, log_decay, log_retention, noise, obs_noise = (y.to(DEVICE) for y in x)
        gates = (None, None, obs_noise, None) if covariance == "reset" else (log_retention, noise, obs_noise, floor)
        given_prior = prior if covariance == "reset" else None
        o, var, spread, energy = (
            None if y is None else y.cpu()
            for y in decode_step(q, k, v, log_decay, *gates, mean, cov, given_prior, covariance, *wanted, tuning=tuning)
        )
        assert o.dtype == dtype
        assert (var is not None, spread is not None, energy is not None) == (wanted[0], wanted[1], wanted[1])
        close(o, expected[0], ROUNDED[dtype])
        for got, reference in zip((var, spread, energy), expected[1:], strict=True):
            if got is not None:
                close(got, reference, CLOSE)
    close(mean.cpu(), belief.mean, CLOSE)
    if cov is not None:
        close(cov.cpu(), belief.cov, CLOSE)
        assert covariance == "diagonal" or torch.equal(cov, cov.mT)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "reset"])
@pytest.mark.parametrize("sizes", [(2, 2, 16, 16), (1, 2, 19, 45)], ids=["even", "odd-grouped"])
def test_many_tokens_in_float32(covariance, sizes):
    follow(covariance, sizes, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("covariance", ["full", "reset"])
def test_narrow_streams_keep_a_wide_belief(covariance, dtype):
    follow(covariance, (1, 2, 16, 24), dtype)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "reset"])
@pytest.mark.parametrize("wanted", [(False, False), (False, True), (True, False)])
def test_what_is_not_asked_for_is_none(covariance, wanted):
    follow(covariance, (1, 2, 17, 20), torch.float32, steps=3, wanted=wanted)


@pytest.mark.parametrize("tuning", [{"rows": 16, "columns": 16}, {"rows": 32, "columns": 64}])
def test_blocks_change_nothing(tuning):
    follow("full", (1, 2, 50, 40), torch.float32, steps=5, tuning=tuning)


def test_the_covariance_may_exceed_the_registers():
    follow("full", (1, 1, 256, 40), torch.float32, steps=3)


@pytest.mark.parametrize("wanted", [(False, False), (True, True)])
@pytest.mark.parametrize("covariance", ["full", "reset"])
def test_the_operator_is_sound(covariance, wanted):
    q, k, v, log_decay, *gates = token(1, 2, 16, 16, torch.float32, torch.Generator().manual_seed(0))
    beliefs, floor, prior = fresh(covariance, 2, 16, 16), torch.full((2,), FLOOR), None
    if covariance == "reset":
        gates, floor, prior = [None, None, gates[-1]], None, torch.full((2,), PRIOR)
    given = [x if x is None else x.to(DEVICE) for x in (q, k, v, log_decay, *gates, floor, *beliefs, prior)]
    torch.library.opcheck(decode_op, (*given, covariance, *wanted))
