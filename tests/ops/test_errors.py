"""Bad input is refused with a ``ValueError`` that names the culprit and what was expected."""

import math
from collections.abc import Callable
from dataclasses import fields as fields_of
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bayesmem.ops import Additive, Assumptions, Backend, Discount, LogLinearMixing, PriorMixing, bayesian_filter
from bayesmem.types import Belief, FilterOutput

B, T, G, H, K, V = 2, 4, 2, 4, 3, 5


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def good() -> dict[str, object]:
    """Arguments that are accepted; every test below spoils one of them."""
    return {
        "q": torch.ones(B, T, G, K),
        "k": torch.ones(B, T, G, K),
        "v": torch.ones(B, T, H, V),
        "log_decay": zeros(B, T, H),
        "obs_noise": torch.ones(B, T, H),
    }


def run(**spoilt: object) -> FilterOutput:
    return bayesian_filter(**{**good(), **spoilt})


def unchecked(kind: type, **values: object):
    """A frozen dataclass past the type checks of the tests, which users do not run."""
    made = object.__new__(kind)
    for field in fields_of(kind):
        object.__setattr__(made, field.name, values[field.name])
    return made


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


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


ASSUMPTIONS = {
    "retention-heads": (Assumptions(process_noise=PriorMixing(zeros(B, T, G))), "log_retention", "axis H is 2"),
    "variance-time": (Assumptions(process_noise=Additive(zeros(B, 1, H))), "process noise variance", "axis T is 1"),
    "variance-flat": (Assumptions(process_noise=Additive(zeros(H))), "process noise variance", "[B, T, H]"),
    "variance-below-0": (Assumptions(process_noise=Additive(-0.1)), "process noise variance is -0.1", "non-negative"),
    "variance-nan": (Assumptions(process_noise=Additive(math.nan)), "process noise variance is nan", "non-negative"),
    "variances-below-0": (
        Assumptions(process_noise=Additive(zeros(B, T, H) - 1)),
        "process noise variance must be non-negative",
        "-1",
    ),
    "discount-channels": (Assumptions(process_noise=Discount(zeros(B, T, H, K))), "log_discount", "[B, T, H]"),
    "discount-above-0": (Assumptions(process_noise=Discount(zeros(B, T, H) + 0.5)), "log_discount", "at most 0", "0.5"),
    "discount-floor": (Assumptions(process_noise=Discount(zeros(B, T, H), -1.0)), "floor is -1.0", "0 to 1"),
    "discount-floor-above-1": (Assumptions(process_noise=Discount(zeros(B, T, H), 1.5)), "floor is 1.5", "0 to 1"),
    "discount-floor-nan": (Assumptions(process_noise=Discount(zeros(B, T, H), math.nan)), "floor is nan", "0 to 1"),
    "prior-0": (Assumptions(prior_var=0.0), "prior_var is 0.0", "positive"),
    "prior-below-0": (Assumptions(prior_var=-1.0), "prior_var is -1.0", "positive"),
    "prior-inf": (Assumptions(prior_var=math.inf), "prior_var is inf", "finite"),
    "prior-past-the-dtype": (Assumptions(prior_var=1e39), "prior_var", "finite"),
    "priors-0": (Assumptions(prior_var=zeros(H)), "prior_var must be positive", "0"),
    "priors-heads": (Assumptions(prior_var=torch.ones(G)), "prior_var", "axis H is 2, expected 4"),
    "priors-channels": (Assumptions(prior_var=torch.ones(H, K + 1)), "prior_var", "axis K is 4, expected 3"),
    "priors-scalar": (Assumptions(prior_var=torch.tensor(1.0)), "prior_var has shape ()", "[H]"),
    "steady-heads": (Assumptions("steady_state", steady_var=torch.ones(G)), "steady_var", "axis H is 2, expected 4"),
    "steady-0": (Assumptions("steady_state", steady_var=zeros(H)), "steady_var must be positive", "0"),
    "steady-unused": (Assumptions("full", steady_var=torch.ones(H)), "steady_var", "covariance='steady_state'", "full"),
    "floor-below-0": (Assumptions(obs_noise_floor=-1.0), "obs_noise_floor is -1.0", ">= 0"),
    "floor-nan": (Assumptions(obs_noise_floor=math.nan), "obs_noise_floor is nan", ">= 0"),
    "floor-inf": (Assumptions(obs_noise_floor=math.inf), "obs_noise_floor is inf", "finite"),
}
for structure in ("reset", "steady_state"):
    for noise in (Additive(0.1), Discount(zeros(B, T, H)), LogLinearMixing()):
        title = type(noise).__name__
        ASSUMPTIONS[f"{structure}-{title}"] = (Assumptions(structure, noise), title, structure, "no covariance")
for structure in ("diagonal", "isotropic", "reset", "steady_state"):
    made = Assumptions(structure, write="latent_input")
    ASSUMPTIONS[f"latent-{structure}"] = (made, "latent_input", "covariance='full'", structure)
for noise in (Discount(zeros(B, T, H)), LogLinearMixing()):
    made = Assumptions("full", noise, write="latent_input")
    ASSUMPTIONS[f"latent-{type(noise).__name__}"] = (made, "latent_input", "PriorMixing or Additive")


@pytest.mark.parametrize("name", ASSUMPTIONS)
def test_assumptions(name: str):
    assumptions, *words = ASSUMPTIONS[name]
    refused(lambda: run(assumptions=assumptions), *words)


def test_latent_input_takes_no_observation_noise():
    latent = Assumptions(write="latent_input")
    refused(lambda: run(assumptions=latent), "latent_input", "obs_noise=None")
    refused(lambda: run(assumptions=latent, obs_noise=None, outputs=("log_evidence",)), "latent_input", "log_evidence")


def test_log_linear_mixing_takes_one_decay_a_head():
    mixing = Assumptions(process_noise=LogLinearMixing())
    refused(lambda: run(assumptions=mixing, log_decay=zeros(B, T, H, K)), "LogLinearMixing", "[B, T, H]", "per channel")


@pytest.mark.parametrize(("option", "value"), [("covariance", "ful"), ("write", "write"), ("process_noise", None)])
def test_unknown_assumptions(option: str, value: object):
    defaults = Assumptions()
    chosen = {field.name: getattr(defaults, field.name) for field in fields_of(Assumptions)}
    expected = "PriorMixing()" if option == "process_noise" else repr(chosen[option])
    made = unchecked(Assumptions, **{**chosen, option: value})
    refused(lambda: run(assumptions=made), option, repr(value), expected)


@pytest.mark.parametrize("backend", ["triton", "", "Chunk", Backend("loop")])
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


def test_dtypes_of_what_is_assumed():
    wide = {"prior_var": torch.ones(H).double(), "process_noise": PriorMixing(zeros(B, T, H).double())}
    for name, value in wide.items():
        words = ("prior_var" if name == "prior_var" else "log_retention", "torch.float64", "expected torch.float32")
        refused(lambda name=name, value=value: run(assumptions=Assumptions(**{name: value})), *words)
    belief = Belief(zeros(B, H, K, V).double())
    refused(lambda: run(initial_belief=belief), "initial_belief.mean", "torch.float64", "expected torch.float32")


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


def belief(mean: Tensor, cov: Tensor | None = None) -> Belief:
    return unchecked(Belief, mean=mean, cov=cov)


MEAN = zeros(B, H, K, V)
BELIEFS = {
    "mean-turned": ("full", belief(zeros(B, H, V, K)), "initial_belief.mean", "axis K is 5, expected 3"),
    "mean-heads": ("full", belief(zeros(B, G, K, V)), "initial_belief.mean", "axis H is 2, expected 4"),
    "mean-rows": ("full", belief(zeros(1, H, K, V)), "initial_belief.mean", "axis B is 1, expected 2"),
    "mean-flat": ("full", belief(zeros(B, H, K)), "initial_belief.mean", "[B, H, K, V]"),
    "full-diagonal": ("full", belief(MEAN, zeros(B, H, K)), "initial_belief.cov", "[B, H, K, K]"),
    "full-keys": ("full", belief(MEAN, zeros(B, H, V, V)), "initial_belief.cov", "axis K is 5, expected 3"),
    "full-heads": ("full", belief(MEAN, zeros(B, G, K, K)), "initial_belief.cov", "axis H is 2, expected 4"),
    "diagonal-full": ("diagonal", belief(MEAN, zeros(B, H, K, K)), "initial_belief.cov", "[B, H, K]"),
    "diagonal-one": ("diagonal", belief(MEAN, zeros(B, H, 1)), "initial_belief.cov", "axis K is 1, expected 3"),
    "isotropic-diagonal": ("isotropic", belief(MEAN, zeros(B, H, K)), "initial_belief.cov", "axis 1 is 3, expected 1"),
    "reset": ("reset", belief(MEAN, zeros(B, H, K, K)), "initial_belief.cov", "reset", "Belief(mean, None)"),
    "steady": (
        "steady_state",
        belief(MEAN, zeros(B, H, 1)),
        "initial_belief.cov",
        "steady_state",
        "Belief(mean, None)",
    ),
    "nan": ("full", belief(MEAN + math.nan), "initial_belief.mean holds NaN"),
    "cov-inf": ("full", belief(MEAN, zeros(B, H, K, K) + math.inf), "initial_belief.cov holds infinity"),
}


@pytest.mark.parametrize("name", BELIEFS)
def test_initial_belief(name: str):
    covariance, given, *words = BELIEFS[name]
    refused(lambda: run(assumptions=Assumptions(covariance), initial_belief=given), *words)


def test_packed_rows_want_a_belief_a_sequence():
    row = {name: x[:1] for name, x in good().items()}
    given = Belief(zeros(1, H, K, V))
    call = {**row, "cu_seqlens": torch.tensor([0, 1, 4]), "initial_belief": given}
    refused(lambda: run(**call), "initial_belief.mean", "axis B is 1, expected 2")


@pytest.mark.parametrize("noise", [Discount(zeros(B, T, H)), LogLinearMixing()])
def test_precision_chunks_want_a_positive_definite_covariance(noise: Discount | LogLinearMixing):
    """Certainty has no finite precision."""
    given = Belief(MEAN, zeros(B, H, K, K))
    call = {"assumptions": Assumptions(process_noise=noise), "initial_belief": given, "backend": "chunk"}
    refused(lambda: run(**call), "initial_belief.cov", "positive definite")


def test_values_are_read_unless_told_not_to():
    spoilt = with_entry("v", math.nan)
    assert run(**spoilt, validate=False).o.isnan().any()
    refused(lambda: run(**spoilt, validate=True), "v holds NaN")


def test_a_spoilt_copy_of_defaults_is_what_was_tested():
    """``unchecked`` builds what the constructor would."""
    assert unchecked(Backend, name="auto", chunk_size=None) == replace(Backend())
