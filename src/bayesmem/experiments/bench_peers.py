"""The peers, each at the settings of its authors: flash-linear-attention on a GPU, transformers and PyTorch on a CPU.

All with queries unscaled, as ours are, so that those with our equations can be held to our float64 outputs.
"""

import functools
import inspect
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bayesmem.experiments.bench_contenders import Call, Contender, Op, filtered
from bayesmem.experiments.bench_inputs import Inputs
from bayesmem.ops import Assumptions, LogLinearMixing, bayesian_filter

CG_STEPS = 30  # fla's default
DELTA = ("q", "k", "v", "log_decay", "beta")
CHANNELS = ("q", "k", "v", "channel_log_decay", "beta")
MESA = ("q", "k", "v", "log_decay", "beta", "prior_precision")
ADDITIVE = ("q", "k", "v", "log_decay")
ADDITIVE_CHANNELS = ("q", "k", "v", "channel_log_decay")


def cuda() -> dict[str, Contender]:
    """The kernels of fla, and PyTorch's attention."""
    return {
        "gated_deltanet": Contender(
            Op("fla chunk_gated_delta_rule", DELTA, _chunk_gated_delta, _delta_reference),
            Op("fla fused_recurrent_gated_delta_rule", (*DELTA, "mean"), _recurrent_gated_delta),
        ),
        "kda": Contender(
            Op("fla chunk_kda(safe_gate=True)", CHANNELS, _chunk_kda, _channel_reference),
            Op("fla fused_recurrent_kda", (*CHANNELS, "mean"), _recurrent_kda),
        ),
        "mesanet": Contender(
            Op(f"fla chunk_mesa_net(max_CG_iteration={CG_STEPS})", MESA, _chunk_mesa, _mesa_reference),
            Op(f"fla mesa_net_decoding_one_step(max_CG_iteration={CG_STEPS})", (*MESA, "cov", "mean"), _mesa_step),
        ),
        "mamba2": Contender(
            Op("fla chunk_simple_gla", ADDITIVE, _chunk_additive, _additive_reference),
            Op("fla fused_recurrent_simple_gla", (*ADDITIVE, "mean"), _recurrent_additive),
        ),
        "gla": Contender(Op("fla chunk_gla", ADDITIVE_CHANNELS, _chunk_gla, _additive_channel_reference)),
        "attention": _attention(),
    }


def cpu() -> dict[str, Contender]:
    """What runs without a GPU: transformers' gated delta rule in PyTorch, and PyTorch's attention."""
    return {
        "gated_deltanet": Contender(
            Op("transformers torch_chunk_gated_delta_rule", DELTA, _torch_chunk_gated_delta, _delta_reference),
            Op("transformers torch_recurrent_gated_delta_rule", (*DELTA, "mean"), _torch_recurrent_gated_delta),
        ),
        "attention": _attention(),
    }


def _attention() -> Contender:
    return Contender(
        Op("torch scaled_dot_product_attention(is_causal=True)", ("q", "k", "v"), _causal),
        Op("torch scaled_dot_product_attention, T keys", ("q", "past_keys", "past_values"), _last_token),
    )


def _first(function: Any, *arguments: Any, **options: Any) -> Call:
    """The call of an op whose first output is o."""
    call = functools.partial(function, *arguments, **options)
    return lambda: (call()[0],)


def on_hopper(key_dim: int) -> None:
    """Let fla compute gated gradients on Hopper with Triton 3.4 to 3.7.0 where they are right.

    fla refuses them all (its issue 640); the miscompiled kernel has blocks of 64 key channels, which it has
    at K = 64 only. Those stay refused.
    """
    from fla.ops.common import chunk_o
    from fla.utils import IS_NVIDIA_HOPPER

    chunk_o.IS_NVIDIA_HOPPER = IS_NVIDIA_HOPPER and key_dim < 128


def _streams(x: Inputs, gate: str = "log_decay") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x["q"], x["k"], x["v"], x[gate]


def _chunk_gated_delta(x: Inputs) -> Call:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    on_hopper(x["k"].shape[-1])
    return _first(chunk_gated_delta_rule, *_streams(x), x["beta"], scale=1.0)


def _chunk_kda(x: Inputs) -> Call:
    from fla.ops.kda import chunk_kda

    on_hopper(x["k"].shape[-1])
    # The bounded gates here allow its tensor-core path.
    return _first(chunk_kda, *_streams(x, "channel_log_decay"), x["beta"], scale=1.0, safe_gate=True)


def _chunk_mesa(x: Inputs) -> Call:
    from fla.ops.mesa_net import chunk_mesa_net

    on_hopper(x["k"].shape[-1])
    return _first(chunk_mesa_net, *_streams(x), x["beta"], x["prior_precision"], max_CG_iteration=CG_STEPS)


def _chunk_additive(x: Inputs) -> Call:
    from fla.ops.simple_gla import chunk_simple_gla

    on_hopper(x["k"].shape[-1])
    return _first(chunk_simple_gla, *_streams(x), scale=1.0)


def _chunk_gla(x: Inputs) -> Call:
    from fla.ops.gla import chunk_gla

    return _first(chunk_gla, *_streams(x, "channel_log_decay"), scale=1.0)


def _recurrent_gated_delta(x: Inputs) -> Call:
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule as rule

    state = {"initial_state": x["mean"], "output_final_state": True}
    return _first(rule, *_streams(x), beta=x["beta"], scale=1.0, **state)


def _recurrent_kda(x: Inputs) -> Call:
    from fla.ops.kda import fused_recurrent_kda

    state = {"initial_state": x["mean"], "output_final_state": True}
    return _first(fused_recurrent_kda, *_streams(x, "channel_log_decay"), x["beta"], scale=1.0, **state)


def _recurrent_additive(x: Inputs) -> Call:
    from fla.ops.simple_gla import fused_recurrent_simple_gla

    state = {"initial_state": x["mean"], "output_final_state": True}
    return _first(fused_recurrent_simple_gla, *_streams(x), scale=1.0, **state)


def _mesa_step(x: Inputs) -> Call:
    from fla.ops.mesa_net import mesa_net_decoding_one_step

    q, k, v, g, beta = (x[name][:, 0].contiguous() for name in ("q", "k", "v", "log_decay", "beta"))
    # Half the identity serves as the gram matrix of the keys so far.
    return _first(mesa_net_decoding_one_step, q, k, v, g, x["prior_precision"], beta, x["cov"], x["mean"], CG_STEPS)


def _torch_chunk_gated_delta(x: Inputs) -> Call:
    rule = _torch("torch_chunk_gated_delta_rule")
    scale = x["k"].shape[-1] ** 0.5  # it divides by this
    return lambda: (rule(scale * x["q"], x["k"], x["v"], g=x["log_decay"], beta=x["beta"])[0],)


def _torch_recurrent_gated_delta(x: Inputs) -> Call:
    state = {"initial_state": x["mean"], "output_final_state": True}
    rule = _torch("torch_recurrent_gated_delta_rule")
    return _first(rule, x["q"], x["k"], x["v"], g=x["log_decay"], beta=x["beta"], **state)


def _torch(name: str) -> Any:
    """The PyTorch path of transformers itself: where fla is installed the name is bound to its Triton kernel."""
    from transformers.models.qwen3_next import modeling_qwen3_next

    return inspect.unwrap(getattr(modeling_qwen3_next, name))


def _causal(x: Inputs) -> Call:
    q, k, v = (x[name].transpose(1, 2) for name in ("q", "k", "v"))
    return lambda: (scaled_dot_product_attention(q, k, v, is_causal=True),)


def _last_token(x: Inputs) -> Call:
    q = x["q"].transpose(1, 2).contiguous()
    return lambda: (scaled_dot_product_attention(q, x["past_keys"], x["past_values"]),)


# What those with our equations should give, in float64.


def _delta_reference(x: Inputs) -> Tensor:
    return filtered("reset", x | {"obs_noise": 1 / x["beta"] - 1}).o


def _channel_reference(x: Inputs) -> Tensor:
    return filtered("reset", x | {"log_decay": x["channel_log_decay"], "obs_noise": 1 / x["beta"] - 1}).o


def _mesa_reference(x: Inputs) -> Tensor:
    mesa = Assumptions(process_noise=LogLinearMixing(), prior_var=1 / x["prior_precision"])
    return bayesian_filter(*_streams(x), 1 / x["beta"], mesa, backend="chunk").o


def _additive_reference(x: Inputs) -> Tensor:
    return filtered("none", x).o


def _additive_channel_reference(x: Inputs) -> Tensor:
    return filtered("none", x | {"log_decay": x["channel_log_decay"]}).o
