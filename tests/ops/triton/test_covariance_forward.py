"""The covariance pass forward, in Triton and in CUDA, against the float64 chunk form.

Without a GPU the Triton kernel runs in Triton's interpreter, and the CUDA source in an emulation thread by thread.
"""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesmem.ops.covariance_pass import covariance_pass
from bayesmem.ops.triton import covariance_cuda
from bayesmem.ops.triton.covariance_cuda import chosen_settings, settings, shared_bytes
from bayesmem.ops.triton.covariance_cuts import cut_room, side_by_side
from bayesmem.ops.triton.covariance_forward import covariance_forward
from bayesmem.ops.triton.device import Device
from bayesmem.ops.triton.spans import spans_of
from ops.triton import emulation
from ops.triton.emulation import emulated_forward

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
CHUNK = 32
NAMES = ("gain", "innovation_var", "checkpoints", "final_cov")
TOLERANCE = 2e-6  # relative root mean squared error; float32 throughout


def inputs(lengths, heads, groups, key_dim, dtype, kind) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(sum(lengths))

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=source)

    count = sum(lengths)
    k = normalize(torch.randn(count, groups, key_dim, generator=source), dim=-1)
    log_retention = -0.3 * uniform(count, heads)
    obs_noise = 0.01 + uniform(count, heads)
    noise = -torch.expm1(2 * log_retention)
    if kind == "static":
        log_retention, noise = torch.zeros_like(noise), torch.zeros_like(noise)
    if kind == "hard":  # one key again and again with hardly any noise, and resets in between
        k[count // 2 :] = k[count // 2]
        obs_noise[::3] = 1e-3
        log_retention[::7] = -60.0
        noise = -torch.expm1(2 * log_retention) + 0.01
    if kind == "floored":
        k, obs_noise = 3 * k, 0.01 * obs_noise
    root = torch.randn(len(lengths), heads, key_dim, key_dim, generator=source)
    given = {
        "k": k.to(dtype),
        "log_retention": log_retention,
        "process_noise": noise,
        "obs_noise": obs_noise,
        "floor": torch.full((heads,), 0.05 if kind == "floored" else 1e-4),
        "initial_cov": root @ root.mT / key_dim + 0.1 * torch.eye(key_dim),
    }
    return {name: x.to(DEVICE) for name, x in given.items()}


def reference(x: dict[str, Tensor], lengths) -> tuple[Tensor, ...]:
    """Every sequence by itself, chunk by chunk, in float64."""
    heads = x["log_retention"].shape[1]
    keys = x["k"].double().repeat_interleave(heads // x["k"].shape[1], 1)
    noise = torch.maximum(x["obs_noise"], x["floor"] * keys.square().sum(-1))
    rows = (keys, *(x[name].double()[..., None] for name in ("log_retention", "process_noise")), noise)
    gains, spread, kept, final = [], [], [], []
    start = 0
    for sequence, length in enumerate(lengths):
        cov = x["initial_cov"][sequence : sequence + 1].double()
        for first in range(start, start + length, CHUNK):
            stop = min(first + CHUNK, start + length)
            kept.append(cov)
            out = covariance_pass(*(row[first:stop].transpose(0, 1)[None] for row in rows), cov)
            gains.append(out.gain[0].transpose(0, 1))
            spread.append(out.innovation_var[0].T)
            cov = out.final_cov
        final.append(cov)
        start += length
    return torch.cat(gains), torch.cat(spread), torch.cat(kept), torch.cat(final)


def wide(found) -> tuple[Tensor, ...]:
    """Outputs with gains that are not halved."""
    (gain, low), *rest = found
    assert low is None
    return gain, *rest


CASES = [
    ((40,), 1, 1, 16, "mixed", torch.bfloat16),
    ((1, 15, 16, 17, 33), 2, 1, 16, "mixed", torch.float32),
    ((50,), 4, 2, 24, "hard", torch.float16),
    ((70,), 1, 1, 32, "static", torch.bfloat16),
    ((35,), 2, 2, 48, "floored", torch.float32),
    ((20,), 2, 2, 33, "mixed", torch.bfloat16),
]
WAYS = ("triton", 1, 2)  # blocks a covariance of the CUDA kernel


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("lengths", "heads", "groups", "key_dim", "kind", "dtype"), CASES)
def test_forward_is_the_chunk_form(tmp_path_factory, way, lengths, heads, groups, key_dim, kind, dtype):
    x = inputs(lengths, heads, groups, key_dim, dtype, kind)
    spans = spans_of(tuple(torch.tensor([0, *lengths]).cumsum(0).tolist()), CHUNK, DEVICE)
    if way != "triton" and not GPU:
        found = emulated_forward(tmp_path_factory.getbasetemp(), **x, spans=spans, cluster=way)
    else:
        found = covariance_forward(**x, spans=spans, cuda=False if way == "triton" else way)
    for name, actual, expected in zip(NAMES, wide(found), reference(x, lengths), strict=True):
        error = (actual.double() - expected).norm() / expected.norm()
        assert error < TOLERANCE, f"{name}: {error:.2e}"


@pytest.mark.parametrize("way", WAYS)
def test_sequences_may_share_where_they_start(tmp_path_factory, way):
    """As of a prior: it lies in memory once."""
    lengths = (5, 20, 33)
    x = inputs(lengths, 2, 1, 16, torch.bfloat16, "mixed")
    x["initial_cov"] = x["initial_cov"][:1].expand(3, -1, -1, -1)
    spans = spans_of((0, 5, 25, 58), CHUNK, DEVICE)
    if way != "triton" and not GPU:
        found = emulated_forward(tmp_path_factory.getbasetemp(), **x, spans=spans, cluster=way)
    else:
        found = covariance_forward(**x, spans=spans, cuda=False if way == "triton" else way)
    for name, actual, expected in zip(NAMES, wide(found), reference(x, lengths), strict=True):
        assert (actual.double() - expected).norm() < TOLERANCE * expected.norm(), name


def cut(x: dict[str, Tensor], spans, segments: int, folder, monkeypatch, **given) -> tuple[tuple, Tensor]:
    """Chains cut into segments at most, and what the kernels counted of them."""
    rooms = []

    def room(*sizes):
        rooms.append(cut_room(*sizes))
        return rooms[-1]

    monkeypatch.setattr(covariance_cuda if GPU else emulation, "cut_room", room)
    monkeypatch.setattr("bayesmem.ops.triton.covariance_forward.side_by_side", lambda *_: segments)
    if GPU:
        found = covariance_forward(**x, spans=spans, cuda=1, keep=given.get("keep", True))
    else:
        found = emulated_forward(folder, **x, spans=spans, segments=segments, **given)
    return found, rooms[-1][1].cpu()


def held(x: dict[str, Tensor], lengths, found, keep: bool = True) -> None:
    pairs = [*zip(NAMES, wide(found), reference(x, lengths), strict=True)]
    for name, actual, wanted in pairs if keep else [*pairs[:2], pairs[3]]:
        error = (actual.double() - wanted).norm() / wanted.norm()
        assert error < TOLERANCE, f"{name}: {error:.2e}"


CUT = [
    ("mixed", True, 24, torch.bfloat16, {}),
    ("mixed", False, 24, torch.float16, {"backwards": True}),
    ("late", True, 24, torch.float32, {"backwards": True}),
    ("late", False, 60, torch.bfloat16, {"together": True}),
    ("static", True, 24, torch.bfloat16, {}),
    *([("late", True, 128, torch.bfloat16, {}), ("mixed", False, 64, torch.bfloat16, {})] if GPU else []),
]


@pytest.mark.parametrize(("kind", "keep", "key_dim", "dtype", "way"), CUT, ids=str)
def test_segments_are_the_chunk_form(tmp_path_factory, monkeypatch, kind, keep, key_dim, dtype, way):
    """Chains that forget as soon as is estimated, later (so that they are mended), and never (which are not cut)."""
    lengths = (500, 40, 0, 333)
    x = inputs(lengths, 2, 1, key_dim, dtype, "mixed" if kind == "late" else kind)
    if kind == "late":
        for name in ("log_retention", "process_noise"):
            x[name][200:460] = 0
    spans = spans_of((0, 500, 540, 540, 873), CHUNK, DEVICE)
    found, count = cut(x, spans, 4, tmp_path_factory.getbasetemp(), monkeypatch, keep=keep, **way)
    agreed, done, mended = (y.view(4, 2, -1) for y in (count[:, 4:8], count[:, 8:9], count[:, 9:10]))
    if kind == "static":
        assert not count.any()
    else:
        assert done[0].min() >= 3 and not done[1:3].any() and done[3].min() >= 2
        assert mended.any() == (kind == "late") and agreed[3].any()
        assert kind == "late" or (agreed[0].sum() == (done[0] - 1).sum() and agreed[3].sum() == (done[3] - 1).sum())
    held(x, lengths, found, keep)


def test_what_is_mended_is_looked_at_to_the_end(tmp_path_factory, monkeypatch):
    """Two stretches that forget nothing, and between them a segment that began as it must."""
    x = inputs((900,), 1, 1, 16, torch.bfloat16, "mixed")
    for name in ("log_retention", "process_noise"):
        x[name][150:224] = x[name][630:704] = 0
    found, count = cut(x, spans_of((0, 900), CHUNK, DEVICE), 6, tmp_path_factory.getbasetemp(), monkeypatch)
    assert count[0, 6:11].tolist() == [0, 1, 1, 0, 1] and count[0, 13] == 1
    held(x, (900,), found)


@pytest.mark.skipif(GPU, reason="the kernel in use asks for 15")
@pytest.mark.parametrize("nats", [15, 9])
def test_a_guess_that_is_not_quite_forgotten_does_not_agree(tmp_path, monkeypatch, nats):
    """Of 9 some 5e-6 are left, which would not show in what is held below."""
    x = inputs((2000,), 1, 1, 32, torch.bfloat16, "mixed")
    x["log_retention"] = x["log_retention"] / 12
    x["process_noise"] = -torch.expm1(2 * x["log_retention"])
    spans = spans_of((0, 2000), CHUNK, DEVICE)
    found, count = cut(x, spans, 4, tmp_path, monkeypatch, nats=nats, keep=False)
    assert count[0, 4:7].tolist() == [int(nats == 15)] * 3
    held(x, (2000,), found, keep=False)


def test_keys_that_lie_alike_tell_little_of_the_others(tmp_path, monkeypatch):
    """Two thirds of the directions are never told of: chains then forget by time alone, and still agree."""
    x = inputs((1500,), 1, 1, 16, torch.bfloat16, "mixed")
    x["k"][..., 5:] = 0
    x["log_retention"] = x["log_retention"] / 6
    x["process_noise"] = -torch.expm1(2 * x["log_retention"])
    found, count = cut(x, spans_of((0, 1500), CHUNK, DEVICE), 4, tmp_path, monkeypatch)
    assert count[0, 4:7].tolist() == [1, 1, 1]
    held(x, (1500,), found)


def test_nan_does_not_pass_for_agreement(tmp_path, monkeypatch):
    """What a segment makes of a guess is not what follows a token that is not a number."""
    x = inputs((500,), 1, 1, 16, torch.bfloat16, "mixed")
    x["process_noise"][20] = torch.nan
    found, count = cut(x, spans_of((0, 500), CHUNK, DEVICE), 4, tmp_path, monkeypatch)
    assert count[0, 9] == 1 and wide(found)[0][20:].isnan().all()


def test_chains_are_cut_to_fill_the_processors():
    def most(bounds: tuple[int, ...], heads: int) -> int:
        return side_by_side(spans_of(bounds, 64, torch.device("cpu")), heads, 132)

    assert most((0, 4096), 8) == 16 and most((0, 4096, 8192), 8) == 8
    assert most((0, 1024), 8) == 4  # none shorter than it need be
    assert most((0, 100, 65536), 1) == 66
    assert most((0, 65536), 132) == most((0, 65536), 67) == most((0, 100), 1) == most((0, 0), 1) == 1


@pytest.mark.skipif(GPU, reason="there the cases above take these products where the GPU has them")
@pytest.mark.parametrize(("lengths", "key_dim", "kind", "dtype"), [((33, 0, 20), 60, "hard", torch.float16)])
def test_products_of_four_warps_are_the_chunk_form(tmp_path, lengths, key_dim, kind, dtype):
    x = inputs(lengths, 2, 1, key_dim, dtype, kind)
    spans = spans_of(tuple(torch.tensor([0, *lengths]).cumsum(0).tolist()), CHUNK, DEVICE)
    found = emulated_forward(tmp_path, **x, spans=spans, together=True)
    for name, actual, expected in zip(NAMES, wide(found), reference(x, lengths), strict=True):
        error = (actual.double() - expected).norm() / expected.norm()
        assert error < TOLERANCE, f"{name}: {error:.2e}"


HALVED = [(way, key_dim) for key_dim in (33, 60) for way in WAYS]
HALVED += [] if GPU else [("together", 60)]


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "passing"])
@pytest.mark.parametrize(("way", "key_dim"), HALVED)
def test_halved_gains_are_the_same_gains(bfloat16, tmp_path_factory, way, key_dim, keep):
    """Of a NaN the high half is one too: the mean reads it alone. For no backward pass there is no other."""
    lengths = (1, 20, 33)
    x = inputs(lengths, 2, 1, key_dim, torch.bfloat16, "mixed")
    x["process_noise"][30, 1] = torch.nan
    spans = spans_of((0, 1, 21, 54), CHUNK, DEVICE)
    if way != "triton" and not GPU:
        folder, together = tmp_path_factory.getbasetemp(), way == "together"
        given = {"cluster": 1 if together else way, "together": together, "keep": keep}
        plain, found = (emulated_forward(folder, **x, spans=spans, **given, halved=y) for y in (False, True))
    else:
        given = {"cuda": False if way == "triton" else way, "keep": keep}
        plain, found = (covariance_forward(**x, spans=spans, **given, halved=y) for y in (False, True))
    (gain, _), (high, low) = plain[0], found[0]
    assert high.dtype == torch.bfloat16 and gain.isnan().any() and not gain.isnan().all()
    assert (low is not None) == keep
    pairs = [(high, gain.bfloat16()), *zip(found[1:], plain[1:], strict=True)]
    if keep:
        pairs.append((low, (gain - high.float()).bfloat16()))
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_gains_of_other_keys_are_not_halved():
    x = inputs((5,), 1, 1, 16, torch.float16, "mixed")
    with pytest.raises(ValueError, match=r"halved for keys of bfloat16, not of torch.float16"):
        covariance_forward(**x, spans=spans_of((0, 5), CHUNK, DEVICE), halved=True)


def test_products_of_four_warps_are_taken_where_they_fit():
    taken = {
        (key_dim, dtype, cluster): bool(settings(key_dim, dtype, cluster, groups=True)["WARPGROUPS"])
        for key_dim in (32, 60, 64, 80, 128, 256)
        for dtype in (torch.bfloat16, torch.float32)
        for cluster in (1, 2, 4)
    }
    sizes = ((60, 1), (64, 1), (128, 1), (256, 4))
    assert {key for key, value in taken.items() if value} == {(k, torch.bfloat16, c) for k, c in sizes}
    assert not settings(64, torch.bfloat16, 1)["WARPGROUPS"]


def test_products_of_four_warps_are_chosen_where_they_are_faster(monkeypatch):
    def chosen(key_dim: int, cluster: int, capability: tuple[int, int]) -> bool:
        monkeypatch.setattr("bayesmem.ops.triton.covariance_cuda.limits", lambda _: Device(capability, 132, 232448))
        return bool(chosen_settings(key_dim, torch.bfloat16, cluster, 0)["WARPGROUPS"])

    assert chosen(128, 1, (9, 0)) and chosen(256, 4, (9, 0)) and not chosen(64, 1, (9, 0))
    assert not chosen(128, 1, (8, 0)) and not chosen(128, 1, (10, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_consumer_cards_hold_a_covariance_of_128(dtype):
    assert shared_bytes(settings(128, dtype, 1)) <= 99 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("together", [False, True], ids=["warps", "warpgroups"])
@pytest.mark.parametrize(("key_dim", "cluster"), [(64, 1), (80, 1), (128, 1), (128, 2), (128, 4), (200, 4), (256, 4)])
def test_cuda_source_at_the_sizes_of_use(tmp_path, key_dim, cluster, together, dtype):
    if together and (GPU or not settings(key_dim, dtype, cluster, together)["WARPGROUPS"]):
        pytest.skip("the same kernel as without")
    lengths = (49, 20)
    x = inputs(lengths, 1, 1, key_dim, dtype, "mixed")
    spans = spans_of((0, 49, 69), CHUNK, DEVICE)
    if GPU:
        found = covariance_forward(**x, spans=spans, cuda=cluster)
    else:
        found = emulated_forward(tmp_path, **x, spans=spans, cluster=cluster, together=together)
    for actual, expected in zip(wide(found), reference(x, lengths), strict=True):
        assert (actual.double() - expected).norm() < TOLERANCE * expected.norm()
