"""The latent-input write through the kernels, held as in ``test_fused``: decays, single tokens, the zoo, refusals."""

import pytest
import torch
from torch.nn.functional import logsigmoid, normalize

from bayesmem.design import ZOO
from bayesmem.ops import Assumptions, Backend
from bayesmem.ops.fused_filter import unsupported
from ops.cases import DRIVEN, Case, Design, fields, make_case
from ops.test_fused import CHUNK, DEVICE, GPU, PACKED, TOLERANCE, assert_filters, error, prepared

# Chunks made room for but without tokens compute on whatever memory holds, and store nothing.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
BACKEND = Backend("triton", CHUNK)
ZOO_NAMES = ("linear_attention", "linear_attention_information", "retnet", "gla", "mamba2", "hgrn2")


def driven(dtype: torch.dtype = torch.float32, **sizes) -> Case:
    return prepared(DRIVEN, dtype, **({"key_dim": 5, "value_dim": 7} | sizes))


def test_decays_per_channel_of_packed_sequences():
    assert_filters(driven(channels=True, length=51, rows=4, heads=1), torch.float32, PACKED)


@pytest.mark.parametrize("channels", [False, True], ids=["heads", "channels"])
def test_keys_shared_by_value_heads(channels: bool):
    case = driven(channels=channels, length=17, groups=2, heads=4)
    assert_filters(case, torch.float32)


def test_sixteen_bits_with_decays_per_channel():
    dtype = torch.bfloat16 if GPU else torch.float16
    assert_filters(driven(dtype, channels=True, length=20, groups=1, heads=2, key_dim=20), dtype)


@pytest.mark.parametrize("channels", [False, True], ids=["heads", "channels"])
def test_strong_decays_and_hard_resets(channels: bool):
    case = driven(channels=channels, length=37, heads=1, key_dim=16)
    decay = case.tensors["log_decay"].clone()
    assert_filters(case.with_(log_decay=decay - 20.0), torch.float32)
    decay[:, 5::9] = -torch.inf
    assert_filters(case.with_(log_decay=decay), torch.float32)


def test_from_nothing_and_without_decay():
    assert_filters(driven(length=33).with_(mean=None, log_decay=None), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [False, True], ids=["heads", "channels"])
def test_one_token_at_a_time_is_the_whole(channels: bool, dtype: torch.dtype):
    """The belief stays float32, and as it came, whatever the streams are: a token's rounding does not add up."""
    case = driven(dtype, channels=channels, batch=2, heads=1, length=4)
    exact, now = case.to(torch.float64).run("recurrent"), case
    for t in range(4):
        kept = now.tensors["mean"].clone()
        with torch.no_grad():
            step = case.between(t, t + 1).with_(mean=now.tensors["mean"]).run(BACKEND)
        assert torch.equal(kept, now.tensors["mean"]) and step.o.dtype == dtype
        assert error(step.o, exact.o[:, t : t + 1]) < TOLERANCE[dtype][0]
        now = now.after(step.final_belief)
    assert error(now.tensors["mean"], exact.final_belief.mean) < TOLERANCE[torch.float32][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_outputs_have_the_dtypes_of_the_chunk_form(dtype: torch.dtype):
    case = driven(dtype, length=5)
    ours, theirs = fields(case.run(BACKEND)), fields(case.run("chunk"))
    assert {name: x.dtype for name, x in ours.items()} == {name: x.dtype for name, x in theirs.items()}


@pytest.mark.parametrize("name", ZOO_NAMES)
def test_the_designs_of_the_zoo(name: str):
    design, source = ZOO[name], torch.Generator().manual_seed(0)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=source).to(DEVICE)

    q, k, v = normalize(made(1, 19, 2, 4), dim=-1), normalize(made(1, 19, 2, 4), dim=-1), made(1, 19, 2, 3)
    shapes = {"B": 1, "T": 19, "H": 2, "K": 4}
    raw = {x.name: made(*(shapes[axis] for axis in x.axes.split())) for x in design.recurrence.inputs}
    given = {name: logsigmoid(x) if name.startswith("log") else x.exp() for name, x in raw.items()}
    keys = None if name == "hgrn2" else k
    out = design.filter(q, keys, v, backend=BACKEND, **given)
    wide = {name: x.double() for name, x in given.items()}
    exact = design.filter(q.double(), None if keys is None else k.double(), v.double(), backend="recurrent", **wide)
    assert error(out.o, exact.o) < TOLERANCE[torch.float32][0]


@pytest.mark.parametrize("channels", [False, True], ids=["heads", "channels"])
def test_auto_takes_the_kernels(channels: bool):
    case = driven(channels=channels, length=5)
    x = case.tensors
    assert unsupported(x["q"], x["k"], x["v"], x["log_decay"], case.assumptions(), None) is None
    if GPU:
        assert torch.equal(case.run("auto").o, case.run("triton").o)


def test_an_open_loop_covariance_is_refused_by_name_and_left_to_the_chunk_form():
    case = make_case(Design("full", "prior_mixing", "latent_input"), length=5).to(torch.float32)
    case = case.with_(**{name: x.to(DEVICE) for name, x in case.tensors.items()})
    with pytest.raises(ValueError, match=r"'triton' cannot do this: .*takes covariance='none' .got 'full'"):
        case.run("triton", assumptions=Assumptions(write="latent_input"))
    assert torch.equal(case.run("auto").o, case.run("chunk").o)
