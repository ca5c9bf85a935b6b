"""The kernels of the mean pass with decays per channel against the float64 token loop, and its gradients.

The interpreter's products take no bfloat16, which is therefore for the GPU.
"""

import pytest
import torch
from torch import Tensor

from bayesmem.ops import Backend
from bayesmem.ops.fused import channel_mean_op
from bayesmem.ops.triton.channel_backward import channel_backward
from bayesmem.ops.triton.channel_forward import channel_forward
from bayesmem.ops.triton.spans import spans_of
from ops.cases import Design, fields, make_case
from ops.test_fused import assert_filters, prepared

# Chunks made room for but without tokens compute on whatever memory holds, and store nothing.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
NAMES = ("q", "k", "v", "gain", "log_decay", "initial_mean")
# Relative root mean squared errors: of outputs, of gradients of streams and means, of those of gains and decays.
TOLERANCE = {torch.float32: (1e-6, 2e-6, 2e-6), torch.float16: (2e-3, 2e-3, 5e-3), torch.bfloat16: (5e-3, 8e-3, 2e-2)}
DTYPES = [dtype for dtype in TOLERANCE if GPU or dtype != torch.bfloat16]
CASES = {
    "grouped": dict(lengths=(17, 1, 15), heads=2, groups=1, key=16, value=16, decay=0.1, room=5),
    "padded": dict(lengths=(35,), heads=1, groups=1, key=24, value=40, decay=0.1, resets=True),
    "blocks": dict(lengths=(63, 37), heads=1, groups=1, key=20, value=16, decay=1.0, resets=True, chunk=64),
    "strong": dict(lengths=(33,), heads=1, groups=1, key=16, value=16, least=20.0, chunk=32),
    "undecayed": dict(lengths=(33,), heads=2, groups=1, key=16, value=16, chunk=32),
}


def inputs(lengths, heads, groups, key, value, dtype, decay=0.0, least=0.0, resets=False) -> dict[str, Tensor]:
    """Streams, gains of a delta rule that lean away from their keys, and decays, every channel its own."""
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    n = sum(lengths)
    q, k = (torch.nn.functional.normalize(normal(n, groups, key), dim=-1).to(dtype) for _ in range(2))
    beta = torch.rand(n, heads, 1, generator=source)
    gain = k.float().repeat_interleave(heads // groups, 1) * beta + 0.02 * normal(n, heads, key)
    log_decay = -least - decay * torch.rand(n, heads, key, generator=source)
    if resets:  # of single channels, and of whole tokens
        log_decay[torch.rand(n, heads, key, generator=source) < 0.1] = -60.0
        log_decay[torch.rand(n, heads, generator=source) < 0.1] = -20.0
    made = q, k, normal(n, heads, value).to(dtype), gain, log_decay
    return dict(zip(NAMES, (x.to(DEVICE) for x in (*made, normal(len(lengths), heads, key, value))), strict=True))


def reference(x: dict[str, Tensor], lengths, share: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, energies and final means of every sequence by itself, token by token."""
    q, k, v, gain, log_decay, initial_mean = (x[name] for name in NAMES)
    q, k = (y.repeat_interleave(share, 1) for y in (q, k))
    read, energy, last, now = [], [], [], 0
    for length, mean in zip(lengths, initial_mean, strict=True):
        for t in range(now, now + length):
            mean = log_decay[t].exp()[..., None] * mean
            innovation = v[t] - (mean.mT @ k[t, :, :, None])[..., 0]
            mean = mean + gain[t, :, :, None] * innovation[:, None]
            read.append((mean.mT @ q[t, :, :, None])[..., 0])
            energy.append(innovation.square().sum(-1))
        last.append(mean)
        now += length
    return torch.stack(read), torch.stack(energy), torch.stack(last)


def error(x: Tensor, exact: Tensor) -> float:
    assert x.shape == exact.shape
    return ((x.double() - exact).norm() / exact.norm()).item()


def check(lengths, heads, groups, key, value, dtype, chunk=16, whole=True, tuning=None, room=0, **decays) -> None:
    """Hold outputs and gradients; ``whole``: with an initial mean, and energies and final means in the loss."""
    x = inputs(lengths, heads, groups, key, value, dtype, **decays)
    streams = [x[name] for name in NAMES[:5]]
    start = x["initial_mean"] if whole else None
    spans = spans_of((0, *torch.tensor(lengths).cumsum(0).tolist()), chunk, DEVICE, room)
    o, energy, final_mean, saved = channel_forward(*streams, start, spans, whole, "tf32x3", tuning)
    assert o.dtype == dtype and (energy is not None) == whole

    leaves = {name: y.double().requires_grad_() for name, y in x.items()}
    read = leaves if whole else leaves | {"initial_mean": leaves["initial_mean"].detach() * 0}
    wanted = reference(read, lengths, heads // groups)
    source = torch.Generator().manual_seed(1)
    given = [torch.randn(y.shape, generator=source).to(DEVICE) for y in wanted]
    given = [given[0].to(dtype), *(given[1:] if whole else (None, None))]
    got = channel_backward(*streams, saved, spans, *given, "tf32x3", tuning)
    torch.autograd.backward(*zip(*((y, d.double()) for y, d in zip(wanted, given) if d is not None)))  # noqa: B905

    outputs, of_streams, of_gates = TOLERANCE[dtype]
    for name, y, exact in zip(("o", "energy", "final_mean"), (o, energy, final_mean), wanted, strict=True):
        assert y is None or error(y, exact) < outputs, name
    for name, gradient in zip(NAMES, got, strict=True):
        if name in ("q", "k"):
            assert gradient.dtype == dtype
            gradient = gradient.float().view(-1, groups, heads // groups, key).sum(2)
        exact = leaves[name].grad
        if exact is not None:
            assert error(gradient, exact) < (of_gates if name in ("gain", "log_decay") else of_streams), name


# Strong decays leave the keys gradients of 1e-9, which is 0 in float16.
PAIRS = [(case, dtype) for case in CASES for dtype in DTYPES if (case, dtype) != ("strong", torch.float16)]


@pytest.mark.parametrize(("case", "dtype"), PAIRS, ids=str)
def test_the_kernels_are_the_token_loop_and_its_gradients(case: str, dtype: torch.dtype) -> None:
    check(dtype=dtype, **CASES[case])


def test_what_is_not_asked_for_is_left_out() -> None:
    check(whole=False, dtype=torch.float32, **CASES["padded"])


def test_more_channels_than_one_block_holds() -> None:
    names = {"chain": ("BV",), "readout": ("BK", "BV"), "chain_backward": ("BV",), "channel_pairs": ("BV",)}
    names |= {"channel_scale": ("BK",), "channel_scores": ("BK",), "channel_local": ("BK", "BV")}
    tuning = {kernel: dict.fromkeys(sizes, 16) for kernel, sizes in names.items()}
    check(tuning=tuning, dtype=torch.float32, **CASES["padded"])


def kda(**sizes):
    """The filter of KDA: the covariance put back at every token, decays per channel."""
    return prepared(Design("reset", "prior_mixing"), torch.float32, channels=True, **sizes)


def test_the_filter_of_kda_on_packed_sequences() -> None:
    bounds = torch.tensor([0, 1, 19, 30])
    assert_filters(kda(length=30, rows=3, key_dim=5, value_dim=7), torch.float32, bounds)


def test_a_diagonal_covariance_that_decays_with_its_mean() -> None:
    case = prepared(Design("diagonal", "prior_mixing"), torch.float32, channels=True, length=37, heads=1, key_dim=5)
    assert_filters(case.with_(log_retention=None), torch.float32)


def test_a_full_covariance_that_retains_per_head() -> None:
    case = prepared(Design("full", "prior_mixing"), torch.float32, length=20, heads=1, key_dim=5)
    source = torch.Generator().manual_seed(3)
    decay = case.tensors["log_decay"][..., None] * torch.rand(5, generator=source).to(DEVICE)
    assert_filters(case.with_(log_decay=decay), torch.float32)


@pytest.mark.parametrize("log_decay", [-torch.inf, -20.0, 0.0])
def test_resets_strong_decays_and_none_are_the_token_loops(log_decay: float) -> None:
    case = kda(length=21, key_dim=4)
    decay = case.tensors["log_decay"].clone()
    decay[:, 4:9] = log_decay
    case = case.with_(log_decay=decay)
    got, exact = fields(case.run(Backend("triton", 16))), fields(case.to(torch.float64).run("recurrent"))
    for name in exact:
        assert error(got[name], exact[name]) < 2e-6, name


def test_one_token_at_a_time_is_the_whole() -> None:
    case = kda(length=4, key_dim=4)
    whole, belief = case.run(Backend("triton", 16)), None
    for now in range(4):
        step = case.between(now, now + 1)
        with torch.no_grad():
            step = (step if belief is None else step.with_(mean=belief.mean)).run(Backend("triton", 16))
        assert error(step.o, whole.o[:, now : now + 1].double()) < 2e-6
        belief = step.final_belief


def test_the_operator_is_what_it_tells_torch() -> None:
    x = inputs((17, 3), 2, 1, 16, 16, torch.float32, decay=0.1)
    bounds = torch.tensor([0, 17, 20], device=DEVICE)
    given = [x[name].requires_grad_() for name in NAMES]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(channel_mean_op.dispatched, (*given, bounds, 1, 16, True), test_utils=tests)


def test_a_full_covariance_that_retains_per_channel_is_refused_by_name_and_left_to_the_chunk_form() -> None:
    case = make_case(Design("full", "prior_mixing"), channels=True, length=5).to(torch.float32)
    case = case.with_(prior_var=case.tensors["prior_var"][:, 0])
    tied = case.with_(log_retention=None)
    for refused in (case, tied):
        with pytest.raises(ValueError, match=r"backend='triton' cannot do this: .*per head, not per channel"):
            refused.run("triton")
    exact = case.to(torch.float64).run("recurrent")
    assert error(case.run("auto").o, exact.o) < 5e-6
