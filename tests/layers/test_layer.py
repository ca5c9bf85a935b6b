"""The layer: what it is under each structure, its cache, padding and packing."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from bayesmem import BayesianLayer, BayesianLayerConfig
from bayesmem.design import (
    ZOO,
    Additive,
    Decay,
    Discount,
    Expected,
    LatentInput,
    LogLinearMixing,
    MeanAndVariance,
    Measurement,
    MixtureModel,
    PrecisionWeighted,
    Prior,
    PriorMixing,
)

# Designs whose gates the zoo does not have: every quantity per channel, per head, fixed.
BAYESIAN = ZOO["bayesian"]
OTHERS = [
    BAYESIAN.but(name="channels", transition=Decay(per="channel"), process_noise=PriorMixing(per="channel")),
    BAYESIAN.but(name="heads", transition=Decay("head", per="channel"), process_noise=PriorMixing("head")),
    BAYESIAN.but(name="fixed", transition=Decay(0.9), process_noise=PriorMixing(0.95), write=Measurement(0.3)),
    BAYESIAN.but(name="added", process_noise=Additive("head", per="channel"), write=Measurement("head", per_token=2)),
    BAYESIAN.but(name="discounted", process_noise=Discount("token"), prior=Prior("head")),
    BAYESIAN.but(name="beside", readout=MeanAndVariance()),
    BAYESIAN.but(name="weighted", readout=PrecisionWeighted()),
    BAYESIAN.but(name="weighted_twice", readout=PrecisionWeighted(), write=Measurement(per_token=2)),
    BAYESIAN.but(name="squashed", readout=Expected("probit")),
    ZOO["gla"].but(name="strong", write=LatentInput("token")),
    ZOO["mesanet"].but(name="isotropic_mixing", prior=Prior(), covariance="isotropic", process_noise=LogLinearMixing()),
]
HEAVY = ZOO["bayesian_static"].but(name="heavy", write=Measurement(dof=4.0))
DESIGNS = [*ZOO.values(), *OTHERS, MixtureModel(name="mixed", components=(ZOO["bayesian_static"], HEAVY))]
MEASURED = [design for design in DESIGNS if design.recurrence.gain_rule]
each_design = pytest.mark.parametrize("design", DESIGNS, ids=lambda x: x.name)

SIZES = {"hidden_size": 24, "num_heads": 2, "head_dim": 6, "num_value_heads": 4, "value_dim": 5}


def make(design="bayesian", dtype=torch.float64, **options) -> BayesianLayer:
    torch.manual_seed(0)
    config = BayesianLayerConfig(**SIZES | {"design": design, "retention_init": 0.9} | options)
    return BayesianLayer(config).to(dtype)


def hidden(rows=2, length=19, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(rows, length, SIZES["hidden_size"], generator=torch.Generator().manual_seed(1)).to(dtype)


def parts_of(belief):
    return getattr(belief, "parts", (belief,))


@each_design
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cached_equals_uncached(design, dtype):
    layer, x = make(design, dtype), hidden(dtype=dtype)
    knows = design in MEASURED
    whole = layer(x, use_cache=True, output_uncertainty=knows)
    cache, parts = None, []
    for piece in x.split([7, 1, 1, 9, 1], dim=1):
        out = layer(piece, cache=cache, use_cache=True, output_uncertainty=knows)
        cache = out.cache
        parts.append(out)
    close = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-6}
    for name in ("hidden_states", "predictive_var", "log_evidence") if knows else ("hidden_states",):
        joined = torch.cat([getattr(part, name) for part in parts], 1)
        torch.testing.assert_close(joined, getattr(whole, name), **close)
    for mine, its in zip(parts_of(cache.belief), parts_of(whole.cache.belief), strict=True):
        torch.testing.assert_close(mine.mean, its.mean, **close)
    torch.testing.assert_close(cache.conv_tail, whole.cache.conv_tail, **close)


@each_design
def test_padding_changes_nothing(design):
    layer, x = make(design), hidden()
    mask = torch.ones(2, 19, dtype=torch.long)
    mask[0, :5] = 0  # left
    mask[1, 14:] = 0  # right
    out = layer(x, attention_mask=mask, use_cache=True)
    first, second = layer(x[:1, 5:], use_cache=True), layer(x[1:, :14], use_cache=True)
    torch.testing.assert_close(out.hidden_states[:1, 5:], first.hidden_states)
    torch.testing.assert_close(out.hidden_states[1:, :14], second.hidden_states)
    for both, one, other in zip(*(parts_of(o.cache.belief) for o in (out, first, second)), strict=True):
        torch.testing.assert_close(both.mean[0], one.mean[0])
        torch.testing.assert_close(both.mean[1], other.mean[0])


@each_design
def test_packed_equals_separate(design):
    layer, x = make(design), hidden(rows=1)
    bounds = [0, 3, 4, 19]
    knows = design in MEASURED
    packed = layer(x, cu_seqlens=torch.tensor(bounds), output_uncertainty=knows)
    for start, stop in pairwise(bounds):
        alone = layer(x[:, start:stop], output_uncertainty=knows)
        for name in ("hidden_states", "predictive_var", "log_evidence") if knows else ("hidden_states",):
            torch.testing.assert_close(getattr(packed, name)[:, start:stop], getattr(alone, name))


def test_reset_is_gated_delta_net():
    """Against Gated DeltaNet's published recurrence, written here as a loop."""
    layer, x = make("gated_deltanet"), hidden()
    heads, groups = 4, 2

    def mixed(projection, convolution):
        raw = F.pad(projection(x), (0, 0, 3, 0))
        taps = convolution.weight
        return F.silu(sum(raw[:, i : i + x.shape[1]] * taps[:, i] for i in range(4)))

    p, g = layer.projections, layer.gates
    q, k = (
        F.normalize(mixed(*pair).unflatten(-1, (2, -1)), dim=-1).repeat_interleave(groups, 2)
        for pair in ((p.q_proj, p.q_conv1d), (p.k_proj, p.k_conv1d))
    )
    v = mixed(p.v_proj, p.v_conv1d).unflatten(-1, (heads, -1))
    decay = torch.exp(-g.A_log.exp() * F.softplus(g.a_proj(x) + g.dt_bias))
    beta = torch.sigmoid(g.b_proj(x))
    state, outputs = torch.zeros(2, heads, 6, 5, dtype=x.dtype), []
    for t in range(x.shape[1]):
        state = decay[:, t, :, None, None] * state
        error = v[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bhk,bhv->bhkv", beta[:, t, :, None] * k[:, t], error)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    o = torch.stack(outputs, 1)
    normed = o * torch.rsqrt(o.pow(2).mean(-1, keepdim=True) + 1e-5) * layer.readout.o_norm.weight
    gated = normed * F.silu(layer.readout.g_proj(x).unflatten(-1, (heads, -1)))
    expected = layer.readout.o_proj(gated.flatten(-2))
    # unit_norm has an epsilon of 1e-6 under its root, F.normalize none that counts
    torch.testing.assert_close(layer(x).hidden_states, expected, rtol=1e-4, atol=1e-5)


def test_no_retention_is_the_delta_rule():
    """A retention gate fully shut turns the full covariance into the reset."""
    full, reset = make("bayesian"), make("gated_deltanet")
    reset.load_state_dict(full.state_dict(), strict=False)
    with torch.no_grad():
        full.gates.retention_bias.fill_(-1e3)
    x = hidden()
    torch.testing.assert_close(full(x).hidden_states, reset(x).hidden_states)


@each_design
def test_every_parameter_learns(design):
    layer = make(design, torch.float32)
    layer(hidden(dtype=torch.float32)).hidden_states.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_half_precision_keeps_a_wide_belief():
    layer = make(dtype=torch.bfloat16)
    out = layer(hidden(dtype=torch.bfloat16), use_cache=True)
    assert out.hidden_states.dtype == torch.bfloat16
    assert out.cache.belief.cov.dtype == torch.float32
    wide = make()
    wide.load_state_dict(layer.state_dict())
    exact = wide(hidden(dtype=torch.bfloat16).double()).hidden_states
    assert (out.hidden_states - exact).norm() / exact.norm() < 0.02


@each_design
def test_state_size_is_what_the_cache_holds(design):
    layer = make(design)
    belief = layer(hidden(rows=1), use_cache=True).cache.belief
    held = sum(x.numel() for part in parts_of(belief) for x in (part.mean, part.cov) if x is not None)
    held += belief.log_weights.numel() if hasattr(belief, "log_weights") else 0
    assert layer.config.state_size == held


def test_precision_weights_count_once():
    """After the norm, whatever their size: the layer is the plain one with its normed heads weighed."""
    weighted, plain = make(BAYESIAN.but(name="weighted", readout=PrecisionWeighted())), make("bayesian")
    with torch.no_grad():
        for layer in (weighted, plain):
            layer.gates.b_proj.weight.mul_(20)
    x = hidden()
    noise = plain.gates(x)["obs_noise"]
    var = plain(x, output_uncertainty=True).predictive_var
    share = (noise / (noise + var))[..., None]
    assert share.min() < 0.01
    seen = []
    plain.readout.o_norm.register_forward_hook(lambda *call: seen.append(call[2]) or call[2] * share)
    torch.testing.assert_close(weighted(x).hidden_states, plain(x).hidden_states)


def test_a_design_makes_its_layer():
    layer = ZOO["kda"].layer(24, num_heads=2, head_dim=6)
    assert layer.config.model == ZOO["kda"]
    assert layer(hidden(dtype=torch.float32)).hidden_states.shape == (2, 19, 24)
    with pytest.raises(TypeError, match="unexpected keyword argument 'heads'"):
        ZOO["kda"].layer(24, heads=2)


def test_a_design_as_plain_data_is_the_same_layer():
    for design in DESIGNS:
        first, second = make(design), make(design.to_dict())
        assert first.config.model == second.config.model
        torch.testing.assert_close(first(hidden()).hidden_states, second(hidden()).hidden_states)


def test_uncertainty_of_a_mean_alone_is_refused():
    with pytest.raises(ValueError, match="gla: this design computes a mean"):
        make("gla")(hidden(), output_uncertainty=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_heads": 0}, "num_heads is 0"),
        ({"num_value_heads": 3}, "multiple of num_heads 2"),
        ({"design": "gated_delta"}, "'gated_delta'; expected a DesignModel or one of linear_attention"),
        ({"design": {"name": "mine", "covariances": "full"}}, "unknown keys"),
        ({"conv_size": -1}, "conv_size is -1"),
        ({"retention_init": 1.0}, "retention_init is 1.0"),
        ({"decay_init": 1.0}, "decay_init is 1.0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        make(**options)


def test_bad_inputs_are_refused():
    layer = make()
    with pytest.raises(ValueError, match="width 23"):
        layer(hidden()[..., :-1])
    with pytest.raises(ValueError, match="cu_seqlens with a cache"):
        layer(hidden(rows=1), cu_seqlens=torch.tensor([0, 19]), use_cache=True)
    x = hidden()
    x[0, 3, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        layer(x)
