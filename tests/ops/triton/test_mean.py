"""The kernels of the mean pass against the float64 chunk form and its gradients.

The interpreter's products take no bfloat16, which is therefore for the GPU.
"""

import pytest
import torch
from torch import Tensor

from bayesmem.ops.mean_pass import mean_pass
from bayesmem.ops.triton.mean_backward import mean_backward
from bayesmem.ops.triton.mean_forward import mean_forward
from bayesmem.ops.triton.spans import spans_of

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
NAMES = ("q", "k", "v", "gain", "log_decay", "initial_mean")
# Relative root mean squared errors: of outputs, of gradients of streams and means, of those of gains and decays.
TOLERANCE = {torch.float32: (3e-6, 1e-5, 1e-5), torch.float16: (2e-3, 2e-3, 5e-3), torch.bfloat16: (5e-3, 8e-3, 2e-2)}
DTYPES = [dtype for dtype in TOLERANCE if GPU or dtype != torch.bfloat16]
CASES = {
    "grouped": dict(lengths=(15, 16, 17, 1), heads=4, groups=2, key=16, value=16, decay=0.1),
    "padded": dict(lengths=(35,), heads=1, groups=1, key=24, value=40, decay=0.1, resets=True),
    "undecayed": dict(lengths=(33, 20), heads=2, groups=2, key=16, value=16),
    "strong": dict(lengths=(33, 5), heads=1, groups=1, key=16, value=16, decay=20.0, resets=True),
    "whole": dict(lengths=(63, 65), heads=1, groups=1, key=32, value=16, decay=1.0, resets=True, chunk=64),
}


def inputs(lengths, heads, groups, key, value, dtype, decay=0.0, resets=False) -> dict[str, Tensor]:
    """Streams, gains of a delta rule that lean away from their keys, and decays."""
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    n = sum(lengths)
    q, k = (torch.nn.functional.normalize(normal(n, groups, key), dim=-1).to(dtype) for _ in range(2))
    beta = torch.rand(n, heads, 1, generator=source)
    gain = k.float().repeat_interleave(heads // groups, 1) * beta + 0.02 * normal(n, heads, key)
    log_decay = -decay * torch.rand(n, heads, generator=source)
    if resets:
        log_decay[torch.rand(n, heads, generator=source) < 0.1] = -60.0
    # The gain is rounded beforehand, since the kernels round it.
    made = q, k, normal(n, heads, value).to(dtype), gain.to(dtype).float(), log_decay
    return dict(zip(NAMES, (x.to(DEVICE) for x in (*made, normal(len(lengths), heads, key, value))), strict=True))


def reference(x: dict[str, Tensor], lengths, share: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, energies and final means of every sequence by itself, in float64."""
    q, k, v, gain, log_decay, initial_mean = (x[name] for name in NAMES)
    streams = q.repeat_interleave(share, 1), k.repeat_interleave(share, 1), v, gain, log_decay[..., None]
    parts = zip(*(y.transpose(0, 1)[None].split(lengths, 2) for y in streams), initial_mean.split(1), strict=True)
    o, innovation, mean = zip(*(mean_pass(*part) for part in parts), strict=True)
    o, innovation = (torch.cat(y, 2)[0].transpose(0, 1) for y in (o, innovation))
    return o, (innovation**2).sum(-1), torch.cat(mean)


def error(x: Tensor, exact: Tensor) -> float:
    assert x.shape == exact.shape
    return ((x.double() - exact).norm() / exact.norm()).item()


def check(lengths, heads, groups, key, value, dtype, chunk=16, whole=True, tuning=None, **decays) -> None:
    """Hold outputs and gradients; ``whole``: with an initial mean, and energies and final means in the loss."""
    x = inputs(lengths, heads, groups, key, value, dtype, **decays)
    streams = [x[name] for name in NAMES[:5]]
    start = x["initial_mean"] if whole else None
    spans = spans_of((0, *torch.tensor(lengths).cumsum(0).tolist()), chunk, DEVICE)
    o, energy, final_mean, saved = mean_forward(*streams, start, spans, whole, "tf32x3", tuning)
    assert o.dtype == dtype and (energy is not None) == whole

    leaves = {name: y.double().requires_grad_() for name, y in x.items()}
    read = leaves if whole else leaves | {"initial_mean": leaves["initial_mean"].detach() * 0}
    wanted = reference(read, lengths, heads // groups)
    source = torch.Generator().manual_seed(1)
    given = [torch.randn(y.shape, generator=source).to(DEVICE) for y in wanted]
    given = [given[0].to(dtype), *(given[1:] if whole else (None, None))]
    got = mean_backward(*streams[:3], streams[4], saved, spans, *given, "tf32x3", torch.float32, tuning)
    torch.autograd.backward(*zip(*((y, d.double()) for y, d in zip(wanted, given) if d is not None)))  # noqa: B905

    outputs, of_streams, of_gates = TOLERANCE[dtype]
    for name, y, exact in zip(("o", "energy", "final_mean"), (o, energy, final_mean), wanted, strict=True):
        assert y is None or error(y, exact) < outputs, name
    for name, gradient in zip(NAMES, got, strict=True):
        if name in ("q", "k"):
            assert gradient.dtype == dtype
            gradient = gradient.float().view(-1, groups, heads // groups, key).sum(2)
        exact = leaves[name].grad
        if exact is not None:
            assert error(gradient, exact) < (of_gates if name in ("gain", "log_decay") else of_streams), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_kernels_are_the_float64_form_and_its_gradients(case: str, dtype: torch.dtype) -> None:
    check(dtype=dtype, **CASES[case])


def test_what_is_not_asked_for_is_left_out() -> None:
    check(whole=False, dtype=torch.float32, **CASES["padded"])


def test_more_channels_than_one_block_holds() -> None:
    kernels = ("prepare", "chain", "readout", "chain_backward", "local")
    names = {"prepare": ("BK",), "chain": ("BV",), "chain_backward": ("BV",)}
    tuning = {kernel: dict.fromkeys(names.get(kernel, ("BK", "BV")), 16) for kernel in kernels}
    check(tuning=tuning, dtype=torch.float32, **CASES["padded"])
