"""Reductions of the designs that measure: the delta rules, MesaNet, and the textbook filters."""

from collections.abc import Callable

import torch
from torch import Tensor

from peers import released, textbook
from peers.cases import CHANNELS, HEADS, QKV, Leaves, Reduction, Run, l2norm, noise_of, scaled, short, swap, unit

BETA = {"beta": "B T H"}
DELTA, GATED, KIMI = QKV | BETA, QKV | HEADS | BETA, QKV | CHANNELS | BETA
PRODUCT = {"q": "B T G K", "k": "B N G K", "v": "B N H V", "beta": "B N H"} | HEADS
MESA = {"q": "B T G K", "k": "B T G K", "v": "B T H K", "lamb": "H K"} | HEADS | BETA
NOISY = QKV | {"noise": "B T H"}


def delta(key: Callable[[Tensor], Tensor] = unit) -> Callable[[Run, Leaves], Tensor]:
    """Ours as a delta rule with the peer's beta, keys normalised to norm 1 or of any norm below."""

    def ours(run: Run, x: Leaves) -> Tensor:
        k = key(x["k"])
        gates = {"log_decay": x["decay"]} if "decay" in x else {}
        return run(scaled(x["q"]), k, x["v"], obs_noise=noise_of(x["beta"], None if key is unit else k), **gates)

    return ours


def qwen(run: Run, x: Leaves) -> Tensor:
    return delta(l2norm)(run, {**x, "q": l2norm(x["q"])})


def mesa(run: Run, x: Leaves) -> Tensor:
    return run(x["q"], x["k"], x["v"], log_discount=x["decay"], obs_noise=1 / x["beta"], prior_var=1 / x["lamb"])


def each_channel(run: Run, x: Leaves) -> Tensor:
    """A noise a value channel, as Longhorn has it: every channel is a value head of one channel."""
    heads = (*x["v"].shape[:2], -1)
    out = run(x["q"], x["k"], x["v"].reshape(*heads, 1), obs_noise=x["channel_noise"].reshape(heads))
    return out.reshape(x["v"].shape)


def fla_delta(key: Callable[[Tensor], Tensor]) -> Callable[[Leaves], Tensor]:
    return lambda x: released.delta_rule_recurrence(*swap(x["q"], key(x["k"]), x["v"], x["beta"]))[0].transpose(1, 2)


def fla_gated(
    key: Callable[[Tensor], Tensor], function: Callable = released.naive_recurrent_gated_delta_rule
) -> Callable:
    return lambda x: function(x["q"], key(x["k"]), x["v"], beta=x["beta"], g=x["decay"])[0]


def qwen_gated(function: Callable, normed: bool) -> Callable[[Leaves], Tensor]:
    return lambda x: function(
        x["q"],
        x["k"] if normed else unit(x["k"]),
        x["v"],
        x["decay"],
        x["beta"],
        use_qk_l2norm_in_kernel=normed,
    )[0]


def reset_bayesian(run: Run, x: Leaves) -> Tensor:
    """Retention 0: the covariance is the prior's before every token."""
    nothing = torch.full_like(x["decay"], -torch.inf)
    return run(
        scaled(x["q"]),
        unit(x["k"]),
        x["v"],
        log_decay=x["decay"],
        log_retention=nothing,
        obs_noise=noise_of(x["beta"]),
    )


def steady(run: Run, x: Leaves) -> Tensor:
    gates = {"log_decay": x["decay"], "log_retention": x["retention"], "obs_noise": x["noise"]}
    return run(scaled(x["q"]), unit(x["k"]), x["v"], **gates)


def fla_steady(x: Leaves) -> Tensor:
    beta = textbook.steady_gain(x["retention"], x["noise"], x["k"].shape[-1])
    return released.naive_recurrent_gated_delta_rule(x["q"], unit(x["k"]), x["v"], beta, x["decay"])[0]


R = Reduction
MEASURED = [
    R("deltanet", "fla-recurrent", DELTA, delta(), fla_delta(unit)),
    R("deltanet", "fla-recurrent-any-norm", DELTA, delta(short), fla_delta(short)),
    R(
        "deltanet",
        "fla-chunk",
        DELTA,
        delta(),
        lambda x: released.delta_rule_chunkwise(*swap(x["q"], unit(x["k"]), x["v"], x["beta"]))[0].transpose(1, 2),
        32,
    ),
    R("gated_deltanet", "fla-recurrent", GATED, delta(), fla_gated(unit)),
    R("gated_deltanet", "fla-recurrent-any-norm", GATED, delta(short), fla_gated(short)),
    R("gated_deltanet", "fla-chunk", GATED, delta(), fla_gated(unit, released.naive_chunk_gated_delta_rule)),
    *(
        R(
            "gated_deltanet",
            f"qwen3-next-{name}{'-l2norm' if normed else ''}",
            GATED,
            qwen if normed else delta(),
            qwen_gated(function, normed),
            grouped=True,
        )
        for name, function in (
            ("chunk", released.qwen_chunk_gated_delta_rule),
            ("recurrent", released.qwen_recurrent_gated_delta_rule),
        )
        for normed in (False, True)
    ),
    R("bayesian", "fla-gated-delta-rule", GATED, reset_bayesian, fla_gated(unit)),
    R("bayesian_steady", "fla-gated-delta-rule", NOISY | HEADS | {"retention": "B T H"}, steady, fla_steady),
    R(
        "kda",
        "fla-recurrent",
        KIMI,
        delta(),
        lambda x: released.naive_recurrent_kda(x["q"], unit(x["k"]), x["v"], x["decay"], x["beta"])[0],
        grouped=True,
    ),
    R(
        "kda",
        "fla-chunk",
        KIMI,
        delta(),
        lambda x: released.naive_chunk_kda(x["q"], unit(x["k"]), x["v"], x["decay"], x["beta"], chunk_size=16)[0],
        multiple=16,
        grouped=True,
        decays=("weak",),  # see test_gradient_of_the_kda_reference_under_strong_decay
    ),
    R(
        "deltaproduct",
        "fla",
        PRODUCT,
        delta(),
        lambda x: released.naive_recurrent_gated_delta_product(
            x["q"], unit(x["k"]), x["v"], x["decay"], x["beta"], scale=x["q"].shape[-1] ** -0.5, num_householder=2
        )[0],
    ),
    R(
        "mesanet",
        "fla-exact",
        MESA,
        mesa,
        lambda x: released.naive_mesa_net_exact(x["q"], x["k"], x["v"], x["decay"], x["lamb"], x["beta"])[0],
    ),
    R(
        "longhorn",
        "proximal-step",
        NOISY,
        lambda run, x: run(x["q"], x["k"], x["v"], obs_noise=x["noise"]),
        lambda x: textbook.proximal(x["q"], x["k"], x["v"], x["noise"][..., None].expand_as(x["v"])),
    ),
    R(
        "longhorn",
        "proximal-step-a-channel",
        {"q": "B T 1 K", "k": "B T 1 K", "v": "B T 1 V", "channel_noise": "B T 1 V"},
        each_channel,
        lambda x: textbook.proximal(x["q"], x["k"], x["v"], x["channel_noise"]),
    ),
    R(
        "kaczmarz",
        "projection",
        QKV,
        lambda run, x: run(x["q"], x["k"], x["v"]),
        lambda x: textbook.projections(x["q"], x["k"], x["v"]),
        rtol=3e-4,
    ),
    R(
        "rls",
        "weighted-ridge",
        QKV | {"head_noise": "H", "head_discount": "H"},
        lambda run, x: run(x["q"], x["k"], x["v"], log_discount=x["head_discount"], obs_noise=x["head_noise"]),
        lambda x: textbook.weighted_ridge(
            x["q"], x["k"], x["v"], (1 / x["head_noise"]).expand(x["v"].shape[:3]), x["head_discount"]
        ),
    ),
    R(
        "bayesian_static",
        "ridge",
        NOISY,
        lambda run, x: run(x["q"], x["k"], x["v"], obs_noise=x["noise"]),
        lambda x: textbook.weighted_ridge(x["q"], x["k"], x["v"], 1 / x["noise"], x["q"].new_zeros(x["v"].shape[2])),
    ),
    R(
        "bayesian_forgetting",
        "dense-conditioning",
        NOISY | HEADS,
        lambda run, x: run(x["q"], unit(x["k"]), x["v"], log_decay=x["decay"], obs_noise=x["noise"]),
        lambda x: textbook.ornstein_uhlenbeck(x["q"], unit(x["k"]), x["v"], x["noise"], x["decay"]),
    ),
]
