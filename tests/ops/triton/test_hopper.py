"""Where the CUDA C++ kernels of the backward are taken, and where Triton's."""

import pytest
import torch

from bayesmem.ops.triton import (
    covariance_chain_cuda,
    covariance_prepare_cuda,
    covariance_tokens_cuda,
    hopper,
    mean_local_cuda,
)
from bayesmem.ops.triton.device import Device

GPU = torch.device("cuda", 0)


@pytest.fixture
def on(monkeypatch):
    """A GPU of such a capability, on which everything compiles."""

    def put(capability: tuple[int, int]) -> None:
        stages = (covariance_chain_cuda, covariance_prepare_cuda, covariance_tokens_cuda, mean_local_cuda)
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(hopper, "limits", lambda _: Device(capability, 132, 232448))
        for stage in stages:
            monkeypatch.setattr(stage, "hopper_kernel", lambda *_: print)

    return put


def chosen(key_dim: int = 128, chunk: int = 64, prec: str = "bf16x3", value: int = 128) -> list[bool]:
    """Of the chain, chunks' own part, the tokens and the mean's local gradients; past what earlier calls keep."""
    keys = torch.bfloat16
    found = [
        covariance_chain_cuda.cuda_chain.__wrapped__(key_dim, keys, chunk, prec, GPU),
        covariance_prepare_cuda.cuda_prepare.__wrapped__(key_dim, chunk, prec, GPU),
        covariance_tokens_cuda.cuda_tokens.__wrapped__(key_dim, chunk, prec, GPU),
        mean_local_cuda.cuda_local.__wrapped__(key_dim, value, chunk, GPU),
    ]
    return [launch is not None for launch in found]


def test_a_hopper_has_kernels_of_its_own(on):
    on((9, 0))
    assert all(chosen()) and all(chosen(key_dim=64, value=256))
    assert not any(chosen(key_dim=96)) and not any(chosen(chunk=32))
    assert chosen(prec="tf32x3") == [False, False, False, True]
    assert chosen(value=192) == [True, True, True, False]


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0)])
def test_others_do_not(on, capability):
    on(capability)
    assert not any(chosen())


def test_a_cpu_does_not():
    assert not hopper.fits(128, 64, torch.device("cpu"))
