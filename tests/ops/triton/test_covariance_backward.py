"""The backward of the covariance pass, and the predictive variance, against float64 and its autograd."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bayesmem.ops.covariance_pass import covariance_pass
from bayesmem.ops.triton.covariance_backward import covariance_backward
from bayesmem.ops.triton.spans import spans_of
from bayesmem.ops.triton.variance import variance_forward

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CHUNK = 16
NAMES = ("k", "q", "log_retention", "process_noise", "obs_noise", "floor", "initial_cov")
GRADIENTS = ("gain", "innovation_var", "var", "final_cov")
# Relative root mean squared errors of the gradients of streams and initial covariance, and of gates.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (8e-3, 2e-2), torch.float16: (8e-3, 2e-2)}
# Of float32 streams through the products of 16-bit ones: what bfloat16 pairs are wrong by shows, 2^-17 a product.
PAIRS = (1e-4, 1e-4)


def inputs(lengths, groups, heads, key_dim, dtype, kind) -> dict[str, Tensor]:
    """Leaves, keys and queries in their dtype first, gates as float32 numbers, all then in float64."""
    source = torch.Generator().manual_seed(0)
    n = sum(lengths)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    k = torch.nn.functional.normalize(normal(n, groups, key_dim), dim=-1)
    log_retention, noise = -0.1 * normal(n, heads).abs(), 0.1 * normal(n, heads).abs()
    obs_noise, floor = 0.1 + normal(n, heads).abs(), torch.full((heads,), 1e-4)
    if kind == "reset":
        log_retention[torch.rand(n, heads, generator=source) < 0.15] = -60.0
    if kind == "static":
        log_retention, noise = torch.zeros(n, heads), torch.zeros(n, heads)
    if kind == "repeated":
        k, obs_noise = k[:3].repeat(-(-n // 3), 1, 1)[:n], torch.full((n, heads), 1e-3)
    if kind == "floor":
        k, floor = k * (0.5 + torch.rand(n, groups, 1, generator=source)), torch.linspace(0.2, 0.6, heads)
    root = normal(len(lengths), heads, key_dim, key_dim) / key_dim**0.5
    cov = root @ root.mT + 0.1 * torch.eye(key_dim)
    streams = (k.to(dtype), normal(n, groups, key_dim).to(dtype))
    values = (*streams, log_retention, noise, obs_noise, floor, cov)
    return {name: x.double().requires_grad_() for name, x in zip(NAMES, values, strict=True)}


def reference(x: dict[str, Tensor], bounds: list[int], want_var: bool) -> dict[str, Tensor]:
    """Forward in float64, chunk after chunk, heads folded out: also what the kernels are given."""
    heads = x["obs_noise"].shape[1]
    share = heads // x["k"].shape[1]
    k, q = (x[name].repeat_interleave(share, 1) for name in ("k", "q"))
    noise = torch.maximum(x["obs_noise"], x["floor"] * (k**2).sum(-1))
    parts: dict[str, list[Tensor]] = {
        name: [] for name in ("gain", "innovation_var", "var", "checkpoints", "final_cov")
    }
    for row, (start, stop) in enumerate(pairwise(bounds)):
        cov = x["initial_cov"][row][None]
        for begin in range(start, stop, CHUNK):
            now = slice(begin, min(begin + CHUNK, stop))
            stream = [y[now].transpose(0, 1)[None] for y in (k, x["log_retention"], x["process_noise"], noise, q)]
            parts["checkpoints"].append(cov[0])
            gates = (stream[1][..., None], stream[2][..., None], stream[3])
            out = covariance_pass(stream[0], *gates, cov, stream[4] if want_var else None, CHUNK)
            parts["gain"].append(out.gain[0].transpose(0, 1))
            parts["innovation_var"].append(out.innovation_var[0].T)
            parts["var"].append(out.predictive_var[0].T if want_var else out.innovation_var[0].T)
            cov = out.final_cov
        parts["final_cov"].append(cov[0])
    stacked = {name: torch.stack(parts[name]) for name in ("checkpoints", "final_cov")}
    return stacked | {name: torch.cat(parts[name]) for name in ("gain", "innovation_var", "var")}


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.double().cpu() - expected).norm() / expected.norm().clamp(min=1e-12)).item()


CASES = {
    # lengths, groups, heads, key_dim, dtype, kind, gradients given, tiles of the chain and the tokens (None: whole)
    "lengths": ((1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3), 1, 2, 16, torch.float32, "mild", GRADIENTS, None),
    "reset": ((2 * CHUNK + 3,), 2, 2, 24, torch.float32, "reset", GRADIENTS, None),
    "tiles": ((2 * CHUNK + 3, 5), 2, 2, 24, torch.float32, "reset", GRADIENTS, 16),
    "static": ((2 * CHUNK + 3,), 1, 1, 24, torch.float32, "static", ("gain",), None),
    "static, tiles": ((CHUNK + 3,), 1, 1, 40, torch.float32, "static", ("gain", "final_cov"), 16),
    "repeated": ((2 * CHUNK + 3, 5), 1, 2, 16, torch.float32, "repeated", ("gain", "innovation_var"), None),
    "floor": ((2 * CHUNK + 3,), 1, 2, 16, torch.float32, "floor", ("gain", "final_cov"), None),
    "pairs, reset": ((2 * CHUNK + 3,), 2, 2, 24, torch.float32, "reset", GRADIENTS, None),
    "pairs, tiles": ((CHUNK + 3, 5), 1, 2, 24, torch.float32, "static", ("gain", "final_cov"), 16),
    "pairs, repeated": ((CHUNK + 3, 5), 1, 1, 16, torch.float32, "repeated", ("gain", "innovation_var"), None),
    "pairs, wide": ((CHUNK + 3,), 1, 2, 72, torch.float32, "reset", GRADIENTS, None),
    "pairs, blocks": ((CHUNK + 3, 5), 1, 2, 24, torch.float32, "reset", GRADIENTS, 16),
    "bfloat16": ((CHUNK + 5,), 1, 2, 16, torch.bfloat16, "mild", GRADIENTS, None),
    "halved": ((CHUNK + 3, 5), 1, 2, 40, torch.bfloat16, "reset", ("gain", "innovation_var", "final_cov"), None),
    "float16": ((CHUNK + 5,), 1, 2, 16, torch.float16, "reset", ("gain", "var"), None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_have_the_gradients_of_the_float64_form(case):
    lengths, groups, heads, key_dim, dtype, kind, given, tile = CASES[case]
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    x = inputs(lengths, groups, heads, key_dim, dtype, kind)
    made = reference(x, bounds, "var" in given)
    source = torch.Generator().manual_seed(1)
    gradients = {name: torch.randn(made[name].shape, generator=source) for name in given}
    if kind == "repeated":  # as a likelihood's
        gradients["innovation_var"] = gradients["innovation_var"] / made["innovation_var"].detach().float()
    loss = sum((made[name] * gradients[name]).sum() for name in given)
    expected = dict(zip(NAMES, torch.autograd.grad(loss, list(x.values()), allow_unused=True), strict=True))
    expected["initial_cov"] = 0.5 * (expected["initial_cov"] + expected["initial_cov"].mT)

    def ship(y: Tensor, kind: torch.dtype = torch.float32) -> Tensor:
        return y.detach().to(DEVICE, kind).contiguous()

    # Room for a chunk more than there are, as packed sequences have it.
    spans = spans_of(tuple(bounds), CHUNK, DEVICE, made["checkpoints"].shape[0] + 1)
    made["checkpoints"] = torch.cat([made["checkpoints"], torch.full_like(made["checkpoints"][:1], torch.nan)])
    streams = [ship(x[name], dtype) for name in ("k", "q")]
    forward = [ship(made[name]) for name in ("gain", "innovation_var", "checkpoints", "final_cov")]
    gates = [ship(x[name]) for name in ("log_retention", "process_noise", "obs_noise", "floor")]
    gain = forward.pop(0)
    high = gain.bfloat16()
    pair = (high, (gain - high.float()).bfloat16()) if case == "halved" else (gain, None)
    backward = [ship(gradients[name]) if name in given else None for name in GRADIENTS]
    tuning = None if tile is None else {"chain": {"BK": tile}, "tokens": {"BK": tile}}
    pairs = case.startswith("pairs")
    prec = "bf16x3" if pairs or dtype != torch.float32 else "tf32x3"
    found = covariance_backward(*streams, pair, *forward, *gates, spans, *backward, prec, tuning)
    stream, gate = PAIRS if pairs else TOLERANCE[dtype]
    for name, value in zip(NAMES, found, strict=True):
        target = expected[name]
        if target is None:
            assert value is None or not value.any(), name
            continue
        if name in ("k", "q"):  # a value head each, summed as autograd does
            value = value.unflatten(1, (groups, heads // groups)).sum(2, dtype=torch.float32)
        assert error(value, target) < (stream if name in ("k", "q", "initial_cov") else gate), name
    if "var" in given:
        var = variance_forward(streams[1], gain, *forward[:2], *gates[:2], spans, "tf32x3")
        assert error(var, made["var"].detach()) < 1e-5


def test_a_pair_of_gains_is_refused_where_float32_is_needed(unchecked):
    """Its high half alone would be taken for all of it."""
    half = torch.zeros(1, 1, 16, dtype=torch.bfloat16)
    rest = (None,) * 9
    for prec, dvar in (("tf32x3", None), ("bf16x3", torch.zeros(1, 1))):
        with pytest.raises(ValueError, match="a pair of gains is for the products of bf16x3"):
            covariance_backward(half, half, (half, half), *rest, half, None, dvar, None, prec)
