"""What every design and every back end must do, whatever its equations."""

import numpy as np
import pytest
import torch
from torch import Tensor

import oracles
from bayesmem.ops import Backend
from bayesmem.types import Belief, FilterOutput
from ops.cases import (
    BACKENDS,
    CARRIED,
    MEASURED,
    OVER_TIME,
    STREAMS,
    Case,
    Design,
    assert_close,
    assert_same,
    each_design,
    fields,
    label,
    make_case,
)

LENGTHS = (4, 1, 6, 1, 3)
BOUNDS = torch.tensor([0, *LENGTHS]).cumsum(0)
NO_WRITE = 1e30

every_backend = pytest.mark.parametrize("backend", BACKENDS, ids=label)
every_design = pytest.mark.parametrize(("design", "channels"), each_design(), ids=label)


def separately(case: Case, bounds: Tensor, backend: Backend) -> list[FilterOutput]:
    """The packed sequences of a case, each filtered by itself."""
    ends = zip(bounds.tolist(), bounds.tolist()[1:], strict=False)
    return [case.between(a, b).rows(n, n + 1).run(backend) for n, (a, b) in enumerate(ends)]


def joined(parts: list[FilterOutput]) -> FilterOutput:
    """Runs of successive tokens as one row, with the belief of every run."""

    def cat(pieces: list[Tensor | None], axis: int) -> Tensor | None:
        return None if pieces[0] is None else torch.cat(pieces, axis)

    return FilterOutput(
        o=torch.cat([part.o for part in parts], 1),
        predictive_var=cat([part.predictive_var for part in parts], 1),
        log_evidence=cat([part.log_evidence for part in parts], 1),
        final_belief=Belief(
            torch.cat([part.final_belief.mean for part in parts]), cat([part.final_belief.cov for part in parts], 0)
        ),
    )


def flooded(case: Case, start: int, stop: int) -> Case:
    """The case with huge evidence, and other gates, at the tokens from ``start`` to ``stop``.

    Keys grow less: past 1e15 prior variances of evidence a token, the flooded part itself is lost.
    """
    changed = {name: x.clone() for name, x in case.tensors.items() if name in OVER_TIME}
    for name, x in changed.items():
        x[:, start:stop] *= {"q": 1e12, "k": 1e2, "v": 1e12}.get(name, 0.5)
    return case.with_(**changed)


@every_backend
@every_design
class TestConformance:
    def test_causality(self, design: Design, channels: bool, backend: Backend):
        case = make_case(design, channels=channels, length=8)
        whole = case.run(backend)
        for now in (1, 4, 7):
            changed = flooded(case, now, 8).run(backend)
            for name in {"o", "predictive_var", "log_evidence"} & set(fields(whole)):
                assert_close(fields(changed)[name][:, :now], fields(whole)[name][:, :now], 1e-12, name)
            assert not torch.equal(changed.o, whole.o) and changed.o.isfinite().all()

    def test_split_anywhere_and_resumed_is_the_whole(self, design: Design, channels: bool, backend: Backend):
        case = make_case(design, channels=channels, batch=2, length=6)
        whole = case.run(backend)
        for now in range(1, 6):
            first = case.between(0, now).run(backend)
            rest = case.between(now).after(first.final_belief).run(backend)
            for name, field in fields(whole).items():
                found = fields(rest)[name]
                if name in ("o", "predictive_var", "log_evidence"):
                    found = torch.cat([fields(first)[name], found], 1)
                assert_close(found, field, 1e-9, name)

    def test_covariance_is_symmetric_and_positive(self, design: Design, channels: bool, backend: Backend):
        case = make_case(design, channels=channels, length=9, key_dim=4)
        for stop in (1, 5, 9):
            out = case.between(0, stop).run(backend)
            assert (out.predictive_var > 0).all()
            cov = out.final_belief.cov
            assert (cov is not None) is design.carries
            if design.covariance == "full":
                assert torch.equal(cov, cov.mT)
                assert (torch.linalg.eigvalsh(cov) > 0).all()
            elif design.carries:
                assert (cov > 0).all()

    def test_packed_is_separate(self, design: Design, channels: bool, backend: Backend):
        case = make_case(design, channels=channels, length=sum(LENGTHS), rows=len(LENGTHS))
        assert_same(case.run(backend, cu_seqlens=BOUNDS), joined(separately(case, BOUNDS, backend)))

    def test_packed_from_the_prior_is_separate(self, design: Design, channels: bool, backend: Backend):
        case = make_case(design, channels=channels, length=sum(LENGTHS), groups=2, heads=4).with_(mean=None, cov=None)
        ends = zip(BOUNDS.tolist(), BOUNDS.tolist()[1:], strict=False)
        parts = [case.between(a, b).run(backend) for a, b in ends]
        assert_same(case.run(backend, cu_seqlens=BOUNDS), joined(parts))

    def test_packed_sequences_do_not_leak(self, design: Design, channels: bool, backend: Backend):
        """The first sequence is flooded: it is batched with the third, and padding repeats its first token."""
        length, count, stop = sum(LENGTHS), len(LENGTHS), LENGTHS[0]
        case = make_case(design, channels=channels, length=length, rows=count)
        clean = fields(case.run(backend, cu_seqlens=BOUNDS))
        leaves = flooded(case, 0, stop).leaves()
        out = fields(leaves.run(backend, cu_seqlens=BOUNDS))
        assert not torch.equal(out["o"][:, :stop], clean["o"][:, :stop])
        for name, field in out.items():
            if name in ("mean", "cov"):
                assert torch.equal(field[1:], clean[name][1:]), name
            else:
                assert torch.equal(field[:, stop:], clean[name][:, stop:]), name
        loss = out["o"][:, stop:].sum() + out["predictive_var"][:, stop:].sum() + out["mean"][1:].sum()
        tensors = {name: x for name, x in leaves.tensors.items() if name in OVER_TIME}
        found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True, materialize_grads=True)
        for name, gradient in zip(tensors, found, strict=True):
            assert (gradient[:, :stop] == 0).all(), name

    def test_rows_and_heads_stand_alone(self, design: Design, channels: bool, backend: Backend):
        """Batch rows and heads do not mix, and grouped value heads share their group's key."""
        case = make_case(design, channels=channels, batch=2, groups=2, heads=4)
        whole = case.run(backend)
        x = case.tensors
        for row, head in [(0, 1), (1, 2)]:
            group, one = head // 2, {}
            for name, tensor in x.items():
                if name in ("prior_var", "steady_var"):
                    one[name] = tensor[head : head + 1]
                elif name in ("mean", "cov"):
                    one[name] = tensor[row : row + 1, head : head + 1]
                else:
                    at = group if name in ("q", "k") else head
                    one[name] = tensor[row : row + 1, :, at : at + 1]
            for name, field in fields(case.with_(**one).run(backend)).items():
                expected = fields(whole)[name][row : row + 1]
                axis = 1 if name in ("mean", "cov") else 2
                assert_close(field, expected.narrow(axis, head, 1), 1e-11, name)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
    def test_half_precision_is_of_the_inputs_alone(self, design: Design, channels: bool, backend: Backend, dtype):
        """Streams in 16 bits, gates and belief in float32: the filter itself runs in float32 or better."""
        case = make_case(design, channels=channels).to(torch.float32)
        halves = {name: case.tensors[name].to(dtype) for name in STREAMS}
        out = case.with_(**halves).run(backend)
        exact = case.with_(**{name: x.float() for name, x in halves.items()}).run(backend)
        assert out.o.dtype == dtype
        assert torch.equal(out.o, exact.o.to(dtype))
        for name, field in fields(out).items():
            if name != "o":
                assert field.dtype in (torch.float32, torch.float64), name
                assert torch.equal(field, fields(exact)[name]), name

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_autocast_does_not_lower_the_precision(self, design: Design, channels: bool, backend: Backend, dtype):
        leaves = make_case(design, channels=channels).to(dtype).leaves()
        expected = leaves.run(backend)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = leaves.run(backend)
        names, tensors = list(fields(out)), list(leaves.tensors.values())
        for name in names:
            assert fields(out)[name].dtype == fields(expected)[name].dtype
            assert torch.equal(fields(out)[name], fields(expected)[name]), name
        options = {"allow_unused": True, "materialize_grads": True}
        pairs = [torch.autograd.grad(run.o.square().sum(), tensors, **options) for run in (out, expected)]
        for name, actual, wanted in zip(leaves.tensors, *pairs, strict=True):
            assert torch.equal(actual, wanted), name


@every_backend
class TestLimits:
    @pytest.mark.parametrize("design", CARRIED, ids=label)
    def test_no_process_noise_is_ridge_regression(self, design: Design, backend: Backend):
        """Where the structure is exact: diagonal over axis-aligned keys, isotropic over one channel."""
        size = 1 if design.covariance == "isotropic" else 3
        case = make_case(design, length=11, key_dim=size, value_dim=4)
        names = {"log_decay", "log_retention", "variance", "log_discount"} & set(case.tensors)
        case = case.with_(**{name: torch.zeros_like(case.tensors[name]) for name in names})
        if design.covariance == "diagonal":
            axes = torch.eye(3, dtype=torch.float64)[torch.arange(11) % 3]
            case = case.with_(k=axes[None, :, None] * case.tensors["k"])
        out, x = case.run(backend), {name: tensor.numpy() for name, tensor in case.tensors.items()}
        for head in range(2):
            keys, start = x["k"][0, :, 0], x["cov"][0, head]
            start = start if design.covariance == "full" else np.diag(start)
            weights = keys.T / x["obs_noise"][0, :, head]
            cov = np.linalg.inv(weights @ keys + np.linalg.inv(start))
            mean = cov @ (weights @ x["v"][0, :, head] + np.linalg.inv(start) @ x["mean"][0, head])
            assert_close(out.final_belief.mean[0, head], torch.from_numpy(mean), 1e-9)
            found = out.final_belief.cov[0, head]
            assert_close(found if found.ndim == 2 else torch.diag(found), torch.from_numpy(cov), 1e-9)

    @pytest.mark.parametrize(("design", "channels"), each_design(MEASURED), ids=label)
    def test_infinite_observation_noise_writes_nothing(self, design: Design, channels: bool, backend: Backend):
        case = make_case(design, channels=channels)
        case = case.with_(obs_noise=torch.full_like(case.tensors["obs_noise"], NO_WRITE))
        out, unheard = case.run(backend), case.with_(k=torch.zeros_like(case.tensors["k"])).run(backend)
        assert_same(out, unheard)
        if design.noise != "log_linear":  # whose mean moves towards the prior's as well
            decays = case.tensors["log_decay"].sum(1).exp()
            decays = decays[..., None] if channels else decays[..., None, None]
            assert_close(out.final_belief.mean, decays * case.tensors["mean"], 1e-9)

    @pytest.mark.parametrize(("design", "channels"), each_design(MEASURED), ids=label)
    def test_no_retention_is_the_delta_rule(self, design: Design, channels: bool, backend: Backend):
        """Every token meets the prior, whatever the structure; only some noises also lose the mean."""
        case = make_case(design, channels=channels).with_(prior_var=torch.full((2, 3), 0.8, dtype=torch.float64))
        x, lost = dict(case.tensors), {}
        for name in {"log_retention", "log_discount"} & set(x):
            lost[name] = torch.full_like(x[name], -torch.inf)
        if design.noise in ("additive", "log_linear"):
            lost["log_decay"] = torch.full_like(x["log_decay"], -torch.inf)
        if design.noise == "additive":
            lost["variance"] = torch.full_like(x["variance"], 0.8)
        if design.noise == "discount":  # whose floor is the precision that a reset falls back to
            lost["prior_var"] = 0.1 * x["prior_var"]
        if design.given_steady_var:
            lost["steady_var"] = torch.full_like(x["steady_var"], 0.8)
        out = case.with_(**lost).run(backend)
        for head in range(2):
            y = {name: x[name][0].numpy() for name in ("q", "k")}
            keys, noise = y["k"][:, 0], x["obs_noise"][0, :, head].numpy()
            decay = np.exp(lost.get("log_decay", x["log_decay"])[0, :, head].numpy().reshape(7, -1) + np.zeros(3))
            beta = 1 / (noise / 0.8 + (keys**2).sum(-1))
            start = x["mean"][0, head].numpy()
            o, memory = oracles.delta_rule(y["q"][:, 0], keys, x["v"][0, :, head].numpy(), decay, beta, start)
            assert_close(out.o[0, :, head], torch.from_numpy(o), 1e-9)
            assert_close(out.final_belief.mean[0, head], torch.from_numpy(memory), 1e-9)
