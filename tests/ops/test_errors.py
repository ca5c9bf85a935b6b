"""Bad arguments are refused with a ``ValueError`` that names the culprit and what was expected."""

import math

import pytest
import torch
from torch import Tensor

from bayesmem.ops import Backend
from ops.refusals import B, G, H, K, T, V, good, refused, run, zeros


def test_the_arguments_spoilt_below_are_good():
    assert run().o.isfinite().all()


SHAPES = {
    "q-keys": ({"q": zeros(B, T, G, K + 1)}, "k has shape (2, 4, 2, 3)", "axis K is 3, expected 4"),
    "k-time": ({"k": zeros(B, T + 1, G, K)}, "k has shape", "axis T is 5, expected 4"),
    "k-heads": ({"k": zeros(B, T, G + 1, K)}, "k has shape", "axis G is 3, expected 2"),
    "k-batch": ({"k": zeros(B + 1, T, G, K)}, "k has shape", "axis B is 3, expected 2"),
    "v-time": ({"v": zeros(B, T - 1, H, V)}, "v has shape", "axis T is 3, expected 4"),
    "v-batch": ({"v": zeros(1, T, H, V)}, "v has shape", "axis B is 1, expected 2"),
    "v-flat": ({"v": zeros(B, T, H * V)}, "v has shape (2, 4, 20)", "4 axes [B, T, H, V]"),
    "q-flat": ({"q": zeros(T, G, K)}, "q has shape (4, 2, 3)", "4 axes [B, T, G, K]"),
    "v-heads": ({"v": zeros(B, T, 3, V)}, "v has 3 heads and k has 2", "multiple"),
    "v-fewer-heads": ({"v": zeros(B, T, 1, V)}, "v has 1 heads and k has 2", "multiple"),
    "decay-heads": ({"log_decay": zeros(B, T, G)}, "log_decay", "axis H is 2, expected 4"),
    "decay-time": ({"log_decay": zeros(B, T + 1, H)}, "log_decay", "axis T is 5, expected 4"),
    "decay-channels": ({"log_decay": zeros(B, T, H, K + 1)}, "log_decay", "axis K is 4, expected 3"),
    "decay-flat": ({"log_decay": zeros(B, T)}, "log_decay has shape (2, 4)", "[B, T, H]"),
    "noise-heads": ({"obs_noise": torch.ones(B, T, 1)}, "obs_noise", "axis H is 1, expected 4"),
    "noise-channels": ({"obs_noise": torch.ones(B, T, H, K)}, "obs_noise has shape", "3 axes [B, T, H]"),
    "no-noise": ({"obs_noise": None}, "obs_noise is None", "[B, T, H]"),
    "no-tokens": ({name: good()[name][:, :0] for name in good()}, "axis T is empty", "at least 1"),
    "no-rows": ({name: good()[name][:0] for name in good()}, "axis B is empty", "at least 1"),
    "no-channels": ({"q": zeros(B, T, G, 0), "k": zeros(B, T, G, 0)}, "axis K is empty", "at least 1"),
    "no-values": ({"v": zeros(B, T, H, 0)}, "axis V is empty", "at least 1"),
    "no-heads": ({"v": zeros(B, T, 0, V)}, "axis H is empty", "at least 1"),
    "no-groups": ({"q": zeros(B, T, 0, K), "k": zeros(B, T, 0, K)}, "axis G is empty", "at least 1"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str):
    spoilt, *words = SHAPES[name]
    refused(lambda: run(**spoilt), *words)


@pytest.mark.parametrize("backend", ["cuda", "", "Chunk", Backend("loop")])
def test_unknown_backend(backend: str | Backend):
    name = backend if isinstance(backend, str) else backend.name
    refused(lambda: run(backend=backend), "backend", repr(name), "'auto', 'recurrent', 'chunk'")


@pytest.mark.parametrize("size", [0, -1])
def test_chunk_size(size: int):
    refused(lambda: run(backend=Backend("chunk", size)), f"chunk_size is {size}", "at least 1")


def test_outputs():
    refused(lambda: run(outputs="predictive_var"), "outputs", "'predictive_var'", "sequence")
    refused(lambda: run(outputs=("variance",)), "outputs", "'variance'", "'predictive_var'", "'final_belief'")


BOUNDS = {
    "short": [0, 2, 3],
    "long": [0, 2, 5],
    "late": [1, 4],
    "falling": [0, 3, 2, 4],
    "empty-sequence": [0, 2, 2, 4],
    "no-sequence": [0],
    "nothing": [],
}


@pytest.mark.parametrize("name", BOUNDS)
def test_packed_bounds_must_cover_the_row(name: str):
    row = {name: x[:1] for name, x in good().items()}
    bounds = torch.tensor(BOUNDS[name], dtype=torch.int64)
    refused(lambda: run(**row, cu_seqlens=bounds), "cu_seqlens", "T = 4", "0 <")


def test_packed_bounds_of_the_wrong_kind():
    row = {name: x[:1] for name, x in good().items()}
    refused(lambda: run(cu_seqlens=torch.tensor([0, 4])), "cu_seqlens", "B = 2", "B = 1")
    refused(lambda: run(**row, cu_seqlens=torch.tensor([0.0, 4.0])), "cu_seqlens", "torch.float32", "int32 or int64")
    refused(lambda: run(**row, cu_seqlens=torch.tensor([[0, 4]])), "cu_seqlens", "(1, 2)", "[N + 1]")


BAD_DTYPES = {
    "q": torch.float64,
    "k": torch.bfloat16,
    "v": torch.float16,
    "log_decay": torch.float64,
    "obs_noise": torch.bfloat16,
}


@pytest.mark.parametrize("name", BAD_DTYPES)
def test_dtypes_that_differ(name: str):
    dtype = BAD_DTYPES[name]
    refused(lambda: run(**{name: good()[name].to(dtype)}), str(dtype), "torch.float32", "k" if name == "q" else name)


def test_half_precision_beside_float64():
    halves = {name: x.bfloat16() for name, x in good().items()}
    refused(lambda: run(**halves | {"obs_noise": good()["obs_noise"].double()}), "obs_noise", "or torch.float32")
    refused(lambda: run(**halves | {"k": good()["k"]}), "k is torch.float32", "expected torch.bfloat16")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_dtypes_that_are_no_floats(dtype: torch.dtype):
    refused(lambda: run(**{name: x.to(dtype) for name, x in good().items()}), f"q is {dtype}", "bfloat16")


@pytest.mark.parametrize("name", ["k", "v", "log_decay", "obs_noise"])
def test_devices_that_differ(name: str):
    refused(lambda: run(**{name: good()[name].to("meta")}), f"{name} is on meta", "cpu")


def with_entry(name: str, value: float) -> dict[str, Tensor]:
    x = good()[name].clone()
    x.view(-1)[3] = value
    return {name: x}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["q", "k", "v", "log_decay", "obs_noise"])
def test_values_that_are_not_finite(name: str, value: float):
    if name == "log_decay" and value == -math.inf:
        assert run(**with_entry(name, value)).o.isfinite().all()  # a hard reset, which is allowed
        return
    refused(lambda: run(**with_entry(name, value)), name, "NaN" if value != value else "infinity")


def test_values_of_the_wrong_sign():
    refused(lambda: run(**with_entry("log_decay", 0.25)), "log_decay must be at most 0", "0.25")
    refused(lambda: run(**with_entry("obs_noise", 0.0)), "obs_noise must be positive", "floor")
    refused(lambda: run(**with_entry("obs_noise", -2.0)), "obs_noise must be positive", "-2", "logarithm")


def test_values_are_read_unless_told_not_to():
    spoilt = with_entry("v", math.nan)
    assert run(**spoilt, validate=False).o.isnan().any()
    refused(lambda: run(**spoilt, validate=True), "v holds NaN")
