"""How far a released model is from its design where the two are not equal. docs/peers.md quotes these figures."""

import pytest
import torch
from torch import Tensor

from bayesmem.design import ZOO
from peers import released, textbook
from peers.cases import l2norm, noise_of, scaled, unit
from peers.draws import Draw, off
from peers.released import lifted

B, T, H, K, V = 2, 64, 2, 64, 8


def qkv(draw: Draw, key_norm: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Keys of one norm."""
    return draw.normal(B, T, H, K), draw.unit(B, T, H, K) * key_norm, draw.normal(B, T, H, V)


def fla_gated(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
    with lifted():
        return released.naive_recurrent_gated_delta_rule(q, k, v, beta, g)[0]


# Delta rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "size"), [(1.0, 5e-7), (0.1, 5e-5), (0.01, 5e-3), (0.001, 0.41)])
def test_epsilon_of_qwen3_next_in_its_key_norm(norm: float, size: float):
    """Against exactly unit keys and queries: half of 1e-6 / |k|^2, at norms near 1e-3 everything."""
    draw = Draw()
    q, k, v = qkv(draw, norm)
    beta, g = draw.normal(B, T, H).sigmoid(), draw.decay(-0.1, B, T, H)
    with lifted():
        theirs = released.qwen_chunk_gated_delta_rule(q, k, v, g, beta, use_qk_l2norm_in_kernel=True)[0]
    ours = ZOO["gated_deltanet"].filter(scaled(unit(q)), unit(k), v, log_decay=g, obs_noise=noise_of(beta)).o
    assert off(ours, theirs) == pytest.approx(size, rel=0.1)
    k = l2norm(k)  # with the epsilon in the keys and their own norm in the noise: none
    ours = ZOO["gated_deltanet"].filter(scaled(l2norm(q)), k, v, log_decay=g, obs_noise=noise_of(beta, k)).o
    assert off(ours, theirs) < 1e-12


def test_beta_of_one_is_a_limit_and_above_it_no_filter():
    draw = Draw()
    q, k, v = qkv(draw)
    g, one = draw.decay(-0.1, B, T, H), torch.ones(B, T, H, dtype=torch.float64)
    design = ZOO["gated_deltanet"]
    for beta in (one, 1.5 * one):
        with pytest.raises(ValueError, match="obs_noise must be positive"):
            design.filter(scaled(q), k, v, log_decay=g, obs_noise=noise_of(beta))
    near = design.filter(scaled(q), k, v, log_decay=g, obs_noise=1e-12 * one).o
    assert off(near, fla_gated(q, k, v, one, g)) < 2e-12
    # In float32 a logit of 17 gives beta = 1 already; its noise exp(-logit) is still there.
    logit = torch.tensor(17.0)
    assert noise_of(logit.sigmoid()) == 0 and (-logit).exp() > 4e-8


@pytest.mark.parametrize(("beta", "reset", "carried"), [(0.9999, 0, 0), (0.99999, 0, 1e-4), (0.999999, 0, 1.1e-4)])
def test_floor_of_the_observation_noise(beta: float, reset: float, carried: float):
    """Only where a covariance is carried, as by ``bayesian``: there beta ends at 1 / (1 + 1e-4)."""
    draw = Draw()
    q, k, v = qkv(draw)
    g = draw.decay(-0.1, B, T, H)
    noise = noise_of(torch.full_like(g, beta))
    theirs = fla_gated(q, k, v, torch.full_like(g, beta), g)
    ours = ZOO["gated_deltanet"].filter(scaled(q), k, v, log_decay=g, obs_noise=noise).o
    retention = torch.full_like(g, -torch.inf)
    other = ZOO["bayesian"].filter(scaled(q), k, v, log_decay=g, log_retention=retention, obs_noise=noise).o
    assert off(ours, theirs) == pytest.approx(reset, abs=1e-12)
    assert off(other, theirs) == pytest.approx(carried, rel=0.1, abs=1e-12)


@pytest.mark.parametrize("function", ["naive_chunk_gated_delta_rule", "qwen_chunk_gated_delta_rule"])
@pytest.mark.parametrize(("reset", "theirs_off"), [(-0.05, 2e-7), (-55.0, 8e-6)])
def test_hard_resets_in_float32(function: str, reset: float, theirs_off: float):
    """The peers' chunk forms subtract cumulative sums of log decays, which a reset makes large; ours do not."""
    draw = Draw()
    q, k, v = qkv(draw)
    g = torch.full((B, T, H), -0.05, dtype=torch.float64)
    g[:, ::8] = reset
    single = [x.float() for x in (q, k, v, g, draw.normal(B, T, H).sigmoid())]

    def ours(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        return ZOO["gated_deltanet"].filter(scaled(q), k, v, log_decay=g, obs_noise=noise_of(beta), backend="chunk").o

    exact = ours(*[x.double() for x in single])
    assert off(ours(*single), exact) < 2.5e-7
    assert off(getattr(released, function)(*single)[0], exact) == pytest.approx(theirs_off, rel=0.4)


def test_gradient_of_the_kda_reference_under_strong_decay():
    """Above the diagonal it forms exp of +63 log decays, then masks it: finite outputs, NaN gradients."""
    draw = Draw()
    x = [draw.normal(1, 64, 1, 4), draw.unit(1, 64, 1, 4), draw.normal(1, 64, 1, 3)]
    x = [*x, torch.full((1, 64, 1, 4), -1.5), torch.full((1, 64, 1), 0.5)]
    q, k, v, g, beta = (leaf.float().requires_grad_() for leaf in x)
    theirs = released.naive_chunk_kda(q, k, v, g, beta)[0]
    ours = ZOO["kda"].filter(scaled(q), k, v, log_decay=g, obs_noise=noise_of(beta), backend="chunk").o
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(theirs.sum(), g)[0].isnan().any()
    assert torch.autograd.grad(ours.sum(), g)[0].isfinite().all()


# Mamba-2, MesaNet, Kaczmarz, Longhorn -------------------------------------------------------------


def test_step_limits_of_mamba2_are_lost_when_decoding():
    """transformers clamps the step in its scan but not in its one-token update: two outputs for one model."""
    draw = Draw()
    x, dt, b, c = draw.normal(1, 1, 2, 4), draw.normal(1, 1, 2), draw.normal(1, 1, 2, 5), draw.normal(1, 1, 2, 5)
    a, bias = -torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    spread = a[:, None, None].expand(-1, 4, 5)
    rest = {"dt_softplus": True, "dt_limit": (0.0, 0.1)}
    with lifted():
        scan = released.mamba2_chunk_scan(x, dt, a, b, c, 16, dt_bias=bias, **rest)[:, 0]
        one = torch.zeros(1, 2, 4, 5, dtype=torch.float64)
        wide = dt[:, 0, :, None].expand(-1, -1, 4)
        update = released.mamba2_selective_state_update(one, x[:, 0], wide, spread, b[:, 0], c[:, 0], **rest)
    assert off(update, scan) > 1


@pytest.mark.parametrize(
    ("steps", "unit_queries", "large_queries"),
    [(1, 0.58, 0.58), (5, 2.3e-2, 2.3e-2), (10, 1.3e-3, 3.4e-4), (30, 6.1e-4, 6.9e-6)],
)
def test_conjugate_gradients_of_mesanet(steps: int, unit_queries: float, large_queries: float):
    """Off the exact solution, K = 32, Lambda = 0.25; queries of norm 1 and 100.

    Its 1e-5 in the denominators, not small against residuals of unit queries, holds it back.
    """
    draw, key_dim = Draw(), 32
    q, k = draw.unit(1, 128, 2, key_dim), draw.unit(1, 128, 2, key_dim)
    v, g = draw.normal(1, 128, 2, key_dim), draw.decay(-0.02, 1, 128, 2)
    beta, lamb = draw.normal(1, 128, 2).sigmoid(), torch.full((2, key_dim), 0.25, dtype=torch.float64)
    for norm, size in ((1, unit_queries), (100, large_queries)):
        exact = ZOO["mesanet"].filter(norm * q, k, v, log_discount=g, obs_noise=1 / beta, prior_var=1 / lamb).o
        with lifted():
            cg = released.naive_mesa_net_CG(norm * q, k, v, g, lamb, beta, 32, max_CG_iteration=steps)[0]
        assert off(cg, exact) == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize("strength", [1.0, 2500.0, 1e4])
def test_floor_of_mesanet(strength: float):
    """Unit keys: beta counts for 1e4 Lambda at most, here 2500, which a sigmoid's beta is far below."""
    draw = Draw()
    q, k, v = draw.normal(1, 12, 2, 4), draw.unit(1, 12, 2, 4), draw.normal(1, 12, 2, 4)
    g, lamb = draw.decay(-0.1, 1, 12, 2), torch.full((2, 4), 0.25, dtype=torch.float64)
    beta = torch.ones(1, 12, 2, dtype=torch.float64)
    beta[:, ::2] = strength
    with lifted():
        exact = released.naive_mesa_net_exact(q, k, v, g, lamb, beta.clamp(max=2500))[0]
    ours = ZOO["mesanet"].filter(q, k, v, log_discount=g, obs_noise=1 / beta, prior_var=1 / lamb).o
    assert off(ours, exact) < 1e-9


@pytest.mark.parametrize(("norm", "size"), [(3.0, 1.2e-7), (1.0, 1.1e-6), (0.1, 1.1e-4), (0.01, 1.1e-2), (0.001, 0.5)])
def test_kaczmarz_short_of_the_projection(norm: float, size: float):
    q, k, v = qkv(Draw(), norm)
    assert off(ZOO["kaczmarz"].filter(q, k, v).o, textbook.projections(q, k, v)) == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize(("key_dim", "unit_keys", "size"), [(1, False, 0), (16, False, 0.59), (16, True, 0.4)])
def test_longhorn_as_released(key_dim: int, unit_keys: bool, size: float):
    """Its diagonal approximation of ``k k^T``, which one key channel does not need."""
    draw = Draw()
    q, k = draw.normal(B, T, H, key_dim), draw.normal(B, T, H, key_dim)
    k, v, noise = unit(k) if unit_keys else k, draw.normal(B, T, H, V), draw.normal(B, T, H).exp()
    diagonal = textbook.longhorn_diagonal(q, k, v, noise[..., None].expand_as(v))
    assert off(diagonal, ZOO["longhorn"].filter(q, k, v, obs_noise=noise).o) == pytest.approx(size, rel=0.1, abs=1e-12)
