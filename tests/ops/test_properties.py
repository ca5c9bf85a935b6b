"""Properties at random shapes and extreme gates, in float32 and float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesmem.ops import Backend
from bayesmem.types import FilterOutput
from ops.cases import BACKENDS, Case, each_design, fields, make_case

PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=100)
LOG_GATES = (0.0, -1e-7, -1e-3, -0.1, -1.0, -7.0, -30.0, -69.0, -torch.inf)  # 1 down to 1e-30, and 0
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}
KEYS = ("spread", "repeated", "collinear", "axes")


@st.composite
def problems(draw: st.DrawFn) -> Case:
    """Any design at any small shape: gates from 1 to 0, noise from 1e-4 to 1e6, unit keys that repeat."""
    design, channels = draw(st.sampled_from(each_design()))
    groups, seed = draw(st.integers(1, 2)), draw(st.integers(0, 2**16))
    case = make_case(
        design,
        channels=channels,
        batch=draw(st.integers(1, 2)),
        length=draw(st.integers(1, 20)),
        groups=groups,
        heads=groups * draw(st.integers(1, 2)),
        key_dim=draw(st.integers(1, 5)),
        value_dim=draw(st.integers(1, 4)),
        seed=seed,
    )
    rng, x = torch.Generator().manual_seed(seed), case.tensors
    changed = {"k": unit_keys(x["k"], draw(st.sampled_from(KEYS)), rng)}
    # A few levels at a time, so that runs without decay and runs of resets both come up.
    levels = torch.tensor(draw(st.lists(st.sampled_from(LOG_GATES), min_size=1, max_size=3)), dtype=torch.float64)
    for name in sorted({"log_decay", "log_retention", "log_discount"} & set(x)):
        changed[name] = levels[torch.randint(len(levels), x[name].shape, generator=rng)]
    if "obs_noise" in x:
        low, high = sorted(draw(st.tuples(st.floats(-4, 6), st.floats(-4, 6))))
        changed["obs_noise"] = 10 ** (low + (high - low) * torch.rand(x["obs_noise"].shape, generator=rng).double())
    if "cov" in x:
        largest = eigenvalues(x["cov"]).amax(-1, True)
        scale = draw(st.sampled_from([1.0, 0.5, 1e-3])) * least_prior(case)[:, None] / largest
        changed["cov"] = x["cov"] * (scale[..., None] if x["cov"].ndim == 4 else scale)
    return case.with_(**changed)


def unit_keys(keys: Tensor, kind: str, rng: torch.Generator) -> Tensor:
    unit = keys / keys.norm(dim=-1, keepdim=True)
    if kind == "spread":
        return unit
    if kind == "axes":
        return torch.eye(keys.shape[-1], dtype=keys.dtype)[keys.abs().argmax(-1)]
    first = unit[:, :1].expand_as(unit)
    if kind == "repeated":
        return first
    signs = torch.randint(2, keys.shape[:-1], generator=rng)[..., None] * 2.0 - 1.0
    return first * signs + 1e-6 * unit  # one direction, either way, to within a hair


def eigenvalues(cov: Tensor) -> Tensor:
    """Of a covariance in any layout, ``[B, H, K or 1]``."""
    return torch.linalg.eigvalsh(cov.double()) if cov.ndim == 4 else cov.double()


def least_prior(case: Case) -> Tensor:
    prior = case.tensors["prior_var"].double()
    return prior.mean(-1) if case.design.covariance == "isotropic" else prior.amin(-1)


def prior_at_queries(case: Case) -> Tensor:
    """``q^T P_0 q``, what a filter knows of nothing."""
    x = case.tensors
    prior = x["prior_var"].double()
    if case.design.covariance in ("isotropic", "steady_state"):
        prior = prior.mean(-1, True).expand_as(prior)
    queries = x["q"].double().repeat_interleave(x["v"].shape[2] // x["q"].shape[2], 2)
    return (queries**2 * prior).sum(-1)


def check_properties(case: Case, out: FilterOutput, tolerance: float) -> None:
    """Finite, symmetric, positive to rounding on the prior's scale and, mixing with it, never above it."""
    for name, field in fields(out).items():
        assert field.isfinite().all(), name
    assert (out.predictive_var >= 0).all()
    prior, mixing = case.tensors["prior_var"].double().amax(), case.design.noise == "prior_mixing"
    if mixing and not case.design.given_steady_var:
        known = prior_at_queries(case)
        assert (out.predictive_var <= known * (1 + tolerance)).all()
    cov = out.final_belief.cov
    if cov is None:
        return
    if cov.ndim == 4:
        assert torch.equal(cov, cov.mT)
    values = eigenvalues(cov)
    scale = max(prior, values.max())
    assert (values >= -tolerance * scale).all()
    if mixing and case.design.covariance != "full":
        bound = case.tensors["prior_var"].double()
        assert (values <= (bound if cov.shape[-1] > 1 else bound.mean(-1, True)) * (1 + tolerance)).all()
    elif mixing:
        above = cov.double() - torch.diag_embed(case.tensors["prior_var"].double())
        assert (torch.linalg.eigvalsh(above) <= tolerance * prior).all()


@PROPERTY
@given(problems(), st.sampled_from(BACKENDS), st.sampled_from(list(ROUNDING)))
def test_beliefs_stay_beliefs(case: Case, backend: Backend, dtype: torch.dtype):
    case = case.to(dtype)
    check_properties(case, case.run(backend), ROUNDING[dtype])


@PROPERTY
@given(problems(), st.integers(1, 24))
def test_chunk_is_the_token_loop_at_the_extremes(case: Case, size: int):
    expected = fields(case.run("recurrent"))
    for name, field in fields(case.run(Backend("chunk", size))).items():
        scale = expected[name].abs().max().clamp(min=1e-6)
        torch.testing.assert_close(field / scale, expected[name] / scale, rtol=1e-9, atol=1e-9, msg=name)
