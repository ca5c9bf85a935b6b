"""One rank of the context-parallel tests: ``python -m ops.ranks RANK WORLD FOLDER``. Not a test itself.

Runs the checks of ``NAMES`` among real gloo processes and writes to FOLDER which of them failed, and how.
"""

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import accumulate, product
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from bayesmem.ops import Additive, Assumptions, bayesian_filter
from bayesmem.ops.context_parallel import context_parallel_filter
from bayesmem.ops.exchange import exchange_tail, slice_start
from bayesmem.types import Belief, FilterOutput
from ops.cases import OVER_TIME, Case, Design, assert_close, fields, make_case

RTOL = 1e-9
LENGTHS = {2: (6, 9), 4: (5, 1, 7, 3)}  # of the slices: uneven, one of a single token


@dataclass(frozen=True)
class Split:
    """A case over the whole sequence, how it is cut, and how it is to be filtered."""

    case: Case
    lengths: tuple[int, ...]
    cu_seqlens: Tensor | None = None
    assumptions: Callable[[Case], Assumptions] = Case.assumptions

    def run(
        self, filter_: Callable[..., FilterOutput], case: Case, outputs: tuple[str, ...], **options
    ) -> FilterOutput:
        x = case.tensors
        return filter_(
            x["q"],
            x["k"],
            x["v"],
            x.get("log_decay"),
            x.get("obs_noise"),
            self.assumptions(case),
            initial_belief=Belief(x["mean"], x.get("cov")) if "mean" in x else None,
            cu_seqlens=self.cu_seqlens,
            outputs=outputs,
            **options,
        )


def weighted(output: FilterOutput, start: int, total: int, rank: int) -> Tensor:
    """A sum of all of a slice's outputs with weights of their own; the final belief counts once."""
    loss = output.o.new_zeros(())
    for seed, (name, x) in enumerate(fields(output).items()):
        rng = torch.Generator().manual_seed(seed)
        over_time = name not in ("mean", "cov")
        shape = (x.shape[0], total, *x.shape[2:]) if over_time else x.shape
        weight = torch.randn(shape, generator=rng, dtype=torch.float64).to(x.dtype)
        weight = weight[:, start : start + x.shape[1]] if over_time else weight * (rank == 0)
        loss = loss + (x * weight).sum()
    return loss


def check_split(split: Split, rtol: float = RTOL) -> None:
    """Outputs and gradients of the slices are those of the whole."""
    rank, total = dist.get_rank(), sum(split.lengths)
    start, stop = sum(split.lengths[:rank]), sum(split.lengths[: rank + 1])
    outputs = split.case.design.outputs
    if split.cu_seqlens is not None:
        outputs = tuple(name for name in outputs if name != "final_belief")
    if split.assumptions(split.case).covariance == "none":
        outputs = ("final_belief",)

    whole = split.case.leaves()
    expected = split.run(bayesian_filter, whole, outputs, backend="recurrent")
    weighted(expected, 0, total, 0).backward()

    own = split.case.between(start, stop).leaves()
    actual = split.run(context_parallel_filter, own, outputs, backend="chunk", group=None)
    weighted(actual, start, total, rank).backward()

    right = fields(expected)
    for name, x in fields(actual).items():
        assert_close(x, right[name] if name in ("mean", "cov") else right[name][:, start:stop], rtol, name)
    for name, leaf in own.tensors.items():
        wanted = whole.tensors[name].grad
        if wanted is None:  # not part of this design's computation
            assert leaf.grad is None or not leaf.grad.any(), name
            continue
        grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        if name in OVER_TIME:
            wanted = wanted[:, start:stop]
        else:
            dist.all_reduce(grad)
        if name == "cov" and grad.ndim == 4:  # of a symmetric matrix only the symmetric part means anything
            grad, wanted = grad + grad.mT, wanted + wanted.mT
        scale = whole.tensors[name].grad.abs().max().item()
        torch.testing.assert_close(
            grad, wanted, rtol=rtol, atol=rtol * 1e-2 * scale, msg=lambda text, name=name: f"gradient of {name}: {text}"
        )


def splits(world: int) -> dict[str, Split]:
    """Every structure, noise and kind of decay that can be split, in several shapes."""
    lengths = LENGTHS[world]
    total = sum(lengths)
    found = {}

    def add(name: str, design: Design, cu_seqlens: tuple[int, ...] | None = None, drop=(), **options) -> None:
        given = {"heads": 2, "length": total, "seed": len(found), **options}
        case = make_case(design, **given).with_(**dict.fromkeys(drop))
        bounds = None if cu_seqlens is None else torch.tensor(cu_seqlens)
        if bounds is not None:
            case = case.with_(mean=None, cov=None)
        found[name] = Split(case, lengths, bounds)

    for covariance in ("full", "diagonal"):
        for noise in ("prior_mixing", "additive"):
            for channels in (False, True):
                kind = "channels" if channels else "heads"
                add(f"{covariance}-{noise}-{kind}", Design(covariance, noise), channels=channels)
    mixing, added = Design("full", "prior_mixing"), Design("full", "additive")
    add("retention-is-decay", mixing, drop=["log_retention"])
    add("no-decay", mixing, drop=["log_decay"])
    add("from-the-prior", mixing, drop=["mean", "cov"])
    add("grouped", mixing, batch=2, groups=2, heads=4, value_dim=5)
    add("latent", Design("full", "prior_mixing", "latent_input"))
    add("latent-additive-channels", Design("full", "additive", "latent_input"), channels=True)
    add("reset", Design("reset", "prior_mixing"), channels=True)
    add("steady-given", Design("steady_state", "prior_mixing", given_steady_var=True))
    add("steady", Design("steady_state", "prior_mixing"))
    add("static", added, drop=["log_decay", "variance"])
    found["static"] = replace(found["static"], assumptions=lambda case: Assumptions(process_noise=Additive(0.0)))
    add("no-covariance", Design("full", "prior_mixing", "latent_input"), drop=["cov", "log_retention", "prior_var"])
    found["no-covariance"] = replace(
        found["no-covariance"], assumptions=lambda case: Assumptions(covariance="none", write="latent_input")
    )
    ends = (0, *accumulate(lengths))
    add("packed-anywhere", mixing, cu_seqlens=(0, 2, 3, total - 2, total))
    add("packed-at-the-cuts", added, cu_seqlens=ends, channels=True)
    add("packed-one", Design("diagonal", "additive"), cu_seqlens=(0, total))
    middle = (0, lengths[0] + 1, total)
    add("packed-diagonal", Design("diagonal", "prior_mixing"), cu_seqlens=middle, drop=["log_retention"])
    add("packed-reset", Design("reset", "prior_mixing"), cu_seqlens=(0, 4, lengths[0], total))
    return found


def check_float32() -> None:
    """Float32 as close to float64 as the unsplit filter is, few keys measured often, and 16-bit in its own type."""
    lengths = (96, 160) if dist.get_world_size() == 2 else (96, 64, 32, 64)
    total, rank = sum(lengths), dist.get_rank()
    start, stop = sum(lengths[:rank]), sum(lengths[: rank + 1])
    case = make_case(Design("full", "prior_mixing"), length=total, key_dim=8, value_dim=4, seed=3)
    few = torch.randn(3, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    keys = few[torch.arange(total) % 3][None, :, None]
    case = case.with_(
        k=keys / keys.norm(dim=-1, keepdim=True),
        obs_noise=torch.full((1, total, 2), 1e-3, dtype=torch.float64),
        log_retention=torch.zeros(1, total, 2, dtype=torch.float64),
        log_decay=None,
    )
    exact = case.run("recurrent")
    single = case.to(torch.float32)
    unsplit, right = fields(single.run("chunk")), fields(exact)
    split = Split(single.between(start, stop), lengths)
    actual = fields(split.run(context_parallel_filter, split.case, case.design.outputs, backend="chunk", group=None))
    for name, x in actual.items():
        cut = (lambda y: y) if name in ("mean", "cov") else (lambda y: y[:, start:stop])
        scale = right[name].abs().max()
        error = (x - cut(right[name])).abs().max() / scale
        usual = (unsplit[name] - right[name]).abs().max() / scale
        assert error <= 3 * usual + 1e-6, (name, error.item(), usual.item())
    half = {name: x.to(torch.bfloat16) if name in ("q", "k", "v") else x for name, x in split.case.tensors.items()}
    out = split.run(context_parallel_filter, Case(case.design, half), case.design.outputs, backend="auto", group=None)
    assert out.o.dtype == torch.bfloat16 and out.final_belief.cov.dtype == torch.float32


def check_tail() -> None:
    """Earlier inputs across one rank or several, in any length and type, over padding, and their gradients."""
    world, rank = dist.get_world_size(), dist.get_rank()
    lengths = LENGTHS[world]
    ends = (0, *accumulate(lengths))
    start, stop = ends[rank], ends[rank + 1]
    assert slice_start(lengths[rank], torch.empty(0), None) == start
    masks = [None, torch.rand(2, ends[-1], generator=torch.Generator().manual_seed(0)) < 0.6]
    for size, dtype, mask in product((0, 1, 3, 8), (torch.float64, torch.float32, torch.bfloat16), masks):
        rng = torch.Generator().manual_seed(size)
        whole = torch.randn(2, ends[-1], 3, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
        tails = []
        for first in ends[:-1]:
            rows = [x[:first] if mask is None else x[:first][mask[row, :first]] for row, x in enumerate(whole)]
            tails.append(torch.stack([pad(x, (0, 0, size, 0))[len(x) :] for x in rows]))
        sum((tail * (other + 1)).sum() for other, tail in enumerate(tails)).backward()
        own = whole.detach()[:, start:stop].clone().requires_grad_()
        tail = exchange_tail(own, size, None, None if mask is None else mask[:, start:stop])
        assert tail.dtype == dtype and torch.equal(tail, tails[rank])
        if size:
            (tail * (rank + 1)).sum().backward()
            assert torch.equal(own.grad, whole.grad[:, start:stop]), (size, dtype)


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    raise AssertionError("not refused")


def check_refusals() -> None:
    """What cannot be done is refused by every rank, and none waits for the others."""
    rank = dist.get_rank()

    def run(case: Case, **options) -> str:
        assumptions = options.pop("assumptions", Case.assumptions)
        split = Split(case, (), options.pop("cu_seqlens", None), assumptions)
        outputs = options.pop("outputs", ())
        return refusal(lambda: split.run(context_parallel_filter, case, outputs, group=None, **options))

    case = make_case(Design("full", "prior_mixing"))
    spoilt = case.with_(v=case.tensors["v"] * float("nan")) if rank == 1 else case
    assert ("v holds NaN" if rank == 1 else "rank 1 of the context group refused") in run(spoilt)
    assert "backend is 'x'" in run(case, backend="x")
    heads = make_case(Design("full", "prior_mixing"), heads=3 if rank == 0 else 2)
    assert "slices do not fit together" in run(heads)
    assert "isotropic" in run(make_case(Design("isotropic", "prior_mixing")))
    assert "LogLinearMixing" in run(make_case(Design("full", "log_linear")))
    assert "Discount" in run(make_case(Design("full", "discount")))
    assert "Student-t" in run(case, assumptions=lambda c: Assumptions(dof=4))
    assert "initial or final belief" in run(case, cu_seqlens=torch.tensor([0, 3]))
    bare = case.with_(mean=None, cov=None)
    assert "does not cover" in run(bare, cu_seqlens=torch.tensor([0, 3]))
    two = make_case(Design("full", "prior_mixing"), batch=2).with_(mean=None, cov=None)
    assert "B = 2" in run(two, cu_seqlens=torch.tensor([0, 3]))
    assert "3 axes" in refusal(lambda: exchange_tail(torch.ones(2, 3), 1, None))
    assert "size is -1" in refusal(lambda: exchange_tail(torch.ones(2, 3, 4), -1, None))
    assert "attention_mask" in refusal(lambda: exchange_tail(torch.ones(2, 3, 4), 1, None, torch.ones(2, 4)))
    others = dist.new_group([1])
    assert rank == 1 or "does not hold this process" in refusal(lambda: exchange_tail(torch.ones(2, 3, 4), 1, others))


FEWER = ("full-prior_mixing-heads", "full-additive-channels", "diagonal-additive-channels", "grouped", "no-decay")
NAMES = {
    2: (*splits(2), "float32", "tail", "refusals"),
    4: (*FEWER, "retention-is-decay", "latent", "reset", "packed-anywhere", "packed-at-the-cuts", "tail"),
}


def check(name: str, world: int) -> None:
    others = {"float32": check_float32, "tail": check_tail, "refusals": check_refusals}
    if name in others:
        others[name]()
    else:
        check_split(splits(world)[name])


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    found = {}
    for name in NAMES[world]:
        try:
            check(name, world)
        except Exception:
            found[name] = traceback.format_exc()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads now and then abort a Python that shuts down ("terminate called without ...")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
