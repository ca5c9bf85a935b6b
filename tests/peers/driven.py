"""Reductions of the designs that their inputs drive: linear attention, RetNet, GLA, HGRN-2, Mamba-2."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import elu

from peers import released
from peers.cases import CHANNELS, HEADS, QKV, Leaves, Reduction, Run, scaled, swap

MAMBA = QKV | {"dt": "B T H", "dt_bias": "H", "a_log": "H", "skip": "H"}


def driven(run: Run, x: Leaves) -> Tensor:
    gates = {"log_decay": x["decay"]} if "decay" in x else {}
    return run(scaled(x["q"]), x["k"], x["v"], **gates)


def normalised(run: Run, x: Leaves) -> Tensor:
    """Linear attention's normaliser is its answer to values of 1."""
    q, k = scaled(elu(x["q"]) + 1), elu(x["k"]) + 1
    out = run(q, k, torch.cat([x["v"], torch.ones_like(x["v"][..., :1])], -1))
    return out[..., :-1] / (out[..., -1:] + 1e-10)


def retention(run: Run, x: Leaves) -> Tensor:
    heads = torch.arange(x["q"].shape[2], dtype=x["q"].dtype)
    return run(scaled(x["q"]), x["k"], x["v"], log_decay=torch.log1p(-(2 ** (-5 - heads))))


def mamba(run: Run, x: Leaves) -> Tensor:
    """Around the filter, Mamba-2 makes its step by softplus with a bias, and adds ``D x``."""
    step = torch.nn.functional.softplus(x["dt"] + x["dt_bias"])
    decay = -x["a_log"].exp() * step
    return run(x["q"], x["k"], x["v"], log_decay=decay, step=step) + x["skip"][:, None] * x["v"]


def mamba_scan(x: Leaves, size: int = 16) -> Tensor:
    rest = {"D": x["skip"], "dt_bias": x["dt_bias"], "dt_softplus": True}
    return released.mamba2_chunk_scan(x["v"], x["dt"], -x["a_log"].exp(), x["k"], x["q"], size, **rest)


def mamba_steps(x: Leaves) -> Tensor:
    """One call a token, as when decoding; gates spread over the state as ``Mamba2Mixer`` does."""
    width, size = x["v"].shape[-1], x["k"].shape[-1]
    a = -x["a_log"].exp()[:, None, None].expand(-1, width, size)
    skip, bias = (x[name][:, None].expand(-1, width) for name in ("skip", "dt_bias"))
    state = torch.zeros(*x["v"].shape[::2], width, size, dtype=x["v"].dtype)
    out = []
    for t in range(x["v"].shape[1]):
        dt = x["dt"][:, t, :, None].expand(-1, -1, width)
        token = (x["v"][:, t], dt, a, x["k"][:, t], x["q"][:, t])
        out.append(released.mamba2_selective_state_update(state, *token, skip, bias, dt_softplus=True))
    return torch.stack(out, 1)


def simple_gla(function: Callable) -> Callable[[Leaves], Tensor]:
    """Mamba-2's recurrence is simple GLA with the step among the values."""
    return lambda x: function(x["q"], x["k"], x["v"] * x["step"][..., None], x["decay"])[0]


def stepped(run: Run, x: Leaves) -> Tensor:
    return run(scaled(x["q"]), x["k"], x["v"], log_decay=x["decay"], step=x["step"])


def fla_linear(x: Leaves) -> Tensor:
    return released.naive_recurrent_linear_attn(x["q"], x["k"], x["v"])[0]


def fla_linear_chunk(x: Leaves) -> Tensor:
    return released.naive_chunk_linear_attn(x["q"], x["k"], x["v"])


def fla_retention(x: Leaves) -> Tensor:
    return released.naive_retention(*swap(x["q"], x["k"], x["v"])).transpose(1, 2)


def fla_gla(x: Leaves) -> Tensor:
    return released.naive_recurrent_gla(x["q"], x["k"], x["v"], x["decay"])[0]


R = Reduction
DRIVEN = [
    R("linear_attention", "fla-recurrent", QKV, driven, fla_linear),
    R(
        "linear_attention",
        "fla-chunk",
        QKV,
        driven,
        lambda x: released.naive_chunk_linear_attn(x["q"], x["k"], x["v"]),
        64,
    ),
    R(
        "linear_attention",
        "fla-normalised",
        QKV,
        normalised,
        lambda x: released.naive_recurrent_linear_attn(elu(x["q"]) + 1, elu(x["k"]) + 1, x["v"], normalize=True)[0],
    ),
    R("linear_attention_information", "fla-recurrent", QKV, driven, fla_linear),
    R(
        "retnet",
        "fla",
        QKV,
        retention,
        lambda x: released.naive_retention(*swap(x["q"], x["k"], x["v"])).transpose(1, 2),
    ),
    R(
        "gla",
        "fla",
        QKV | CHANNELS,
        driven,
        lambda x: released.naive_recurrent_gla(x["q"], x["k"], x["v"], x["decay"])[0],
    ),
    R(
        "hgrn2",
        "fla-gla",
        {"q": "B T H K", "v": "B T H V"} | CHANNELS,
        lambda run, x: run(scaled(x["q"]), None, x["v"], log_decay=x["decay"]),
        lambda x: fla_gla({**x, "k": 1 - x["decay"].exp()}),
    ),
    *(
        R("mamba2", f"fla-simple-gla-{name}", QKV | HEADS | {"step": "B T H"}, stepped, simple_gla(function))
        for name, function in (
            ("recurrent", released.naive_recurrent_simple_gla),
            ("chunk", released.naive_chunk_simple_gla),
            ("parallel", released.naive_parallel_simple_gla),
        )
    ),
    R("mamba2", "transformers-chunk-scan", MAMBA, mamba, mamba_scan, grouped=True),
    R("mamba2", "transformers-state-update", MAMBA, mamba, mamba_steps, grouped=True, grad=False),
]
