"""Whole layers of transformers, their recurrence taken out and our filter put in its place."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from transformers import Mamba2Config, Qwen3NextConfig

from bayesmem.design import ZOO
from peers.cases import l2norm, noise_of, scaled
from peers.released import lifted, mamba2, mamba2_chunk_scan, qwen3_next, qwen_chunk_gated_delta_rule


def our_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, **options) -> Tensor:
    """What ``Mamba2Mixer`` asks of its scan, by our filter: k = B, q = C, v = x, step = dt."""
    step = torch.nn.functional.softplus(dt + options["dt_bias"]).clamp(*options["dt_limit"])
    return ZOO["mamba2"].filter(C, B, x, log_decay=A * step, step=step).o + D[:, None] * x


def our_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **options) -> tuple[Tensor, None]:
    """What ``Qwen3NextGatedDeltaNet`` asks of its delta rule, by our filter."""
    assert options["use_qk_l2norm_in_kernel"]
    k = l2norm(k)
    return ZOO["gated_deltanet"].filter(scaled(l2norm(q)), k, v, log_decay=g, obs_noise=noise_of(beta, k)).o, None


def mamba_mixer(limit: tuple[float, float]) -> torch.nn.Module:
    sizes = {"hidden_size": 12, "num_heads": 6, "head_dim": 4, "state_size": 5, "n_groups": 2, "chunk_size": 8}
    return mamba2.Mamba2Mixer(Mamba2Config(**sizes, expand=2, num_hidden_layers=1, time_step_limit=limit), 0)


def qwen_layer() -> torch.nn.Module:
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 6}
    dims = {"linear_key_head_dim": 5, "linear_value_head_dim": 4, "hidden_size": 12}
    config = Qwen3NextConfig(**heads, **dims, num_hidden_layers=1, layer_types=["linear_attention"])
    return qwen3_next.Qwen3NextGatedDeltaNet(config, 0)


LAYERS = {
    "mamba2": (lambda: mamba_mixer((0.0, float("inf"))), mamba2, "mamba2_chunk_scan", mamba2_chunk_scan, our_scan),
    "mamba2-limits": (lambda: mamba_mixer((0.3, 0.9)), mamba2, "mamba2_chunk_scan", mamba2_chunk_scan, our_scan),
    "qwen3-next": (
        qwen_layer,
        qwen3_next,
        "torch_chunk_gated_delta_rule",
        qwen_chunk_gated_delta_rule,
        our_delta_rule,
    ),
}


@pytest.mark.parametrize("length", [1, 29])
@pytest.mark.parametrize(("make", "module", "name", "theirs", "ours"), LAYERS.values(), ids=LAYERS)
def test_layer_with_our_filter(make, module, name, theirs, ours, length):
    """Outputs and the gradients of the input and of every weight, in float64 to 1e-9."""
    torch.manual_seed(length)
    layer = make().double()
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    x = torch.randn(2, length, 12, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, length, 12, dtype=torch.float64)
    found = []
    for function in (theirs, ours):
        with lifted(), patch.object(module, name, side_effect=function) as called:
            out = layer(x)
        assert called.call_count == 1
        found.append([out, *torch.autograd.grad(out, [x, *layer.parameters()], weights)])
    assert len(found[0]) > 6
    for what, a, b in zip(["o", "x", *dict(layer.named_parameters())], *found, strict=True):
        atol = 1e-11 * a.abs().max().item() + 1e-14
        torch.testing.assert_close(b, a, rtol=1e-9, atol=atol, msg=lambda text, what=what: f"{what}: {text}")
