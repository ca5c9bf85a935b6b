"""Options that layers of other libraries have: output gates, a convolution's bias, beta up to 2."""

import pytest
import torch
from torch.nn import functional as F

from bayesmem import BayesianLayer, BayesianLayerConfig

SIZES = {"hidden_size": 12, "num_heads": 2, "head_dim": 4, "num_value_heads": 4, "value_dim": 3}


def make(**options):
    torch.manual_seed(0)
    return BayesianLayer(BayesianLayerConfig(**SIZES | options)).double()


def hidden():
    return torch.randn(2, 11, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("gate", "function"), [("silu", F.silu), ("sigmoid", torch.sigmoid), ("none", None)])
def test_output_gates(gate, function):
    layer, x = make(output_gate=gate, design="gated_deltanet"), hidden()
    read = []
    layer.readout.o_norm.register_forward_hook(lambda module, args, out: read.append((args[0], out)))
    layer(x)
    (o, normed), weight = read[0], layer.readout.o_norm.weight
    expected = F.rms_norm(o, o.shape[-1:], weight, 1e-5)
    if function is not None:
        expected = expected * function(layer.readout.g_proj(x).unflatten(-1, (4, 3)))
    torch.testing.assert_close(normed, expected)
    assert (layer.readout.g_proj is None) == (gate == "none")


def test_a_convolution_with_bias():
    layer, x = make(conv_bias=True), torch.zeros(1, 3, 12, dtype=torch.float64)
    assert not layer.projections.v_conv1d.bias.any()
    with torch.no_grad():
        layer.projections.v_conv1d.bias.fill_(0.7)
    v = layer.projections(x, layer.projections.new_tail(x))[2]
    torch.testing.assert_close(v, F.silu(torch.full_like(v, 0.7)))


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_the_gain_is_beta_k(size, flips):
    """Also of short keys, which the norm's epsilon leaves shorter still; beta goes up to 2 where it may."""
    layer, x = make(design="gated_deltanet", allow_neg_eigval=flips), hidden()
    with torch.no_grad():
        layer.projections.k_proj.weight.mul_(size)
        layer.gates.b_proj.weight.mul_(20)
    q, k, v, *_ = layer.projections(x, layer.projections.new_tail(x))
    q, k = (y.repeat_interleave(2, 2) for y in (q, k))
    assert (k.norm(dim=-1).min() < 0.9) == (size < 1)
    decay = layer.gates(x)["log_decay"].exp()
    beta = torch.sigmoid(layer.gates.b_proj(x)) * (2 if flips else 1)
    state, outputs = torch.zeros(2, 4, 4, 3, dtype=x.dtype), []
    for t in range(x.shape[1]):
        state = decay[:, t, :, None, None] * state
        error = v[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bhk,bhv->bhkv", beta[:, t, :, None] * k[:, t], error)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    expected = layer.readout(torch.stack(outputs, 1), x)
    torch.testing.assert_close(layer(x).hidden_states, expected, rtol=1e-9, atol=1e-11)
    first = layer(x[:, :6], use_cache=True)
    rest = [layer(x[:, t : t + 1], cache=first.cache).hidden_states for t in (6,)]  # one token, by the step
    torch.testing.assert_close(rest[0], expected[:, 6:7], rtol=1e-9, atol=1e-11)


def test_flips_know_no_variance():
    with pytest.raises(ValueError, match="output_uncertainty with allow_neg_eigval"):
        make(design="deltanet", allow_neg_eigval=True)(hidden(), output_uncertainty=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"output_gate": "tanh"}, "output_gate is 'tanh'; expected one of 'silu', 'sigmoid', 'none'"),
        ({"conv_bias": True, "conv_size": 0}, "conv_bias is set and conv_size is 0"),
        ({"allow_neg_eigval": True}, "allow_neg_eigval with design bayesian"),
        ({"allow_neg_eigval": True, "design": "longhorn"}, "allow_neg_eigval with design longhorn"),
        ({"allow_neg_eigval": True, "design": "mixture"}, "allow_neg_eigval with design mixture"),
    ],
)
def test_options_that_contradict(options, said):
    with pytest.raises(ValueError, match=said):
        BayesianLayerConfig(**SIZES | options)


@pytest.mark.parametrize("design", ["gated_deltanet", "kda", "retnet", "mamba2", "bayesian_forgetting"])
def test_decay_init_is_what_a_token_leaves_of_the_mean(design):
    """Where the gate hears nothing, every head and channel keeps that share."""
    config = BayesianLayerConfig(hidden_size=8, num_heads=2, head_dim=4, design=design, decay_init=0.997)
    layer = BayesianLayer(config)
    kept = layer.gates(torch.zeros(1, 3, 8))["log_decay"].exp()
    torch.testing.assert_close(kept, torch.full_like(kept, 0.997), rtol=1e-6, atol=0)
