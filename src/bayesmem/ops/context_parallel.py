"""``bayesian_filter`` over a sequence that is split across ranks, exactly. docs/math.md section 5.4.

Two exchanges, each of one small element a rank (``bayesmem.ops.segment``): of covariances, so that every rank knows the
one that enters its slice; then, since gains depend on it, of means. With both, each filters its slice as if alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from bayesmem.ops import api, segment
from bayesmem.ops import validate as check
from bayesmem.ops.api import Backend, bayesian_filter
from bayesmem.ops.assumptions import Additive, Assumptions, PriorMixing
from bayesmem.ops.exchange import agree, carry, place_in
from bayesmem.ops.normalise import normalised, working_dtype
from bayesmem.ops.segment import Given, either
from bayesmem.types import Belief, FilterOutput


def context_parallel_filter(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    obs_noise: Tensor | None,
    assumptions: Assumptions | None = None,
    *,
    group: dist.ProcessGroup | None,
    initial_belief: Belief | None = None,
    cu_seqlens: Tensor | None = None,
    outputs: Sequence[str] = (),
    backend: str | Backend = "auto",
    validate: bool | None = None,
) -> FilterOutput:
    """Filter a sequence whose slices lie on the ranks of a group: equal to ``bayesian_filter`` of the whole.

    Every rank passes its own slice, in rank order; slices may differ in length. Full and diagonal covariances under
    prior mixing or additive noise, reset, steady state and latent inputs can be split.

    All ranks must call it, and all run the backward pass if one does. Gradients are those of the sum of all ranks'
    losses: of its own slice a rank gets the whole, of what the ranks share (``prior_var``, ``steady_var``,
    ``initial_belief``) its share, and the shares sum over ranks to the whole.

    Args:
        q: this rank's queries ``[B, T, G, K]``.
        k: this rank's keys ``[B, T, G, K]``.
        v: this rank's values ``[B, T, H, V]``.
        log_decay: of this rank's tokens, as of ``bayesian_filter``.
        obs_noise: likewise.
        assumptions: likewise; what they hold over time is of this rank's tokens.
        group: the ranks that share the sequence; ``None`` is all of them.
        initial_belief: before the first token of the whole sequence, the same on every rank.
        cu_seqlens: offsets of sequences packed in the *whole* row (B = 1), the same on every rank; they may begin and
            end anywhere. Neither an initial nor a final belief goes with it.
        outputs: as of ``bayesian_filter``. ``final_belief`` is that after the last rank's last token, on every rank (a
            loss on it belongs on one rank, or it counts once a rank).
        backend: of every pass, as of ``bayesian_filter``.
        validate: whether to read the values and compare the ranks' shapes before any work; what one rank refuses,
            all refuse then. Default: on a CPU only.

    Returns:
        ``FilterOutput`` of this rank's slice.

    Raises:
        ValueError: as of ``bayesian_filter``; assumptions that cannot be split, slices that do not fit together, or
            no process group.
    """
    assumptions = assumptions or Assumptions()
    backend = Backend(backend) if isinstance(backend, str) else backend
    if validate is None:
        validate = not isinstance(q, Tensor) or q.device.type == "cpu"
    given = (q, k, v, log_decay, obs_noise, assumptions)
    place = _agreed(given, initial_belief, cu_seqlens, outputs, backend, validate, group)
    if place_in(group)[1] == 1:
        return _filter(given, initial_belief, cu_seqlens, outputs, backend)
    with torch.autocast(q.device.type, enabled=False):
        last = _from(given, place.last)
        problem = normalised(*last, initial_belief, None)
        prior, whole = problem.initial, "final_belief" in outputs
        entering = last_cov = None
        if prior.cov is not None:  # a structure that carries one
            start = prior.cov.double()
            if assumptions.covariance == "full":
                element = segment.covariance_element(problem, assumptions, place.through, backend)
                entering, last_cov = carry(segment.through_covariance, element, start, group, to_the_end=whole)
            else:
                element = segment.moebius_element(problem, place.through)
                entering, last_cov = carry(segment.through_moebius, element, start, group, to_the_end=whole)
            entering = either(place.continues, entering, start)
        before = Belief(prior.mean, None if entering is None else either(place.through, entering, start))
        element = segment.mean_element(last, before, place.through, backend)
        mean, last_mean = carry(segment.through_mean, element, prior.mean.double(), group, to_the_end=whole)
        belief = Belief(either(place.continues, mean, prior.mean.double()), entering)
        bounds = None
        if cu_seqlens is not None:
            belief, bounds = _with_fresh(belief, prior, place), torch.tensor(place.bounds, device=q.device)
        out = _filter(given, belief, bounds, [name for name in outputs if name != "final_belief"], backend)
        if not whole:
            return out
        dtype = prior.mean.dtype
        final = Belief(last_mean.to(dtype), None if last_cov is None else last_cov.to(dtype))
        return replace(out, final_belief=final)


def _filter(
    given: Given, belief: Belief | None, cu_seqlens: Tensor | None, outputs: Sequence[str], backend: Backend
) -> FilterOutput:
    """The slice by itself; its values are checked already."""
    return bayesian_filter(
        *given, initial_belief=belief, cu_seqlens=cu_seqlens, outputs=outputs, backend=backend, validate=False
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank's slice stands among the sequences.

    Attributes:
        bounds: offsets, within the slice, of its (parts of) sequences.
        continues: whether the first of them goes on from the rank before, or from the initial belief.
    """

    bounds: tuple[int, ...]
    continues: bool

    @property
    def last(self) -> int:
        """Where the sequence begins that reaches the slice's end."""
        return self.bounds[-2]

    @property
    def through(self) -> bool:
        """Whether what enters the slice reaches its end."""
        return self.continues and self.last == 0


def place_of(cu_seqlens: Tensor, lengths: Sequence[int], rank: int) -> Place:
    """Where the slice of ``rank`` stands, the slices of all ranks having these ``lengths``.

    Raises:
        ValueError: offsets that do not rise from 0 to the sum of the lengths.
    """
    bounds = check.check_bounds(cu_seqlens, 1, sum(lengths))
    start, length = sum(lengths[:rank]), lengths[rank]
    inner = [bound - start for bound in bounds if start < bound < start + length]
    return Place((0, *inner, length), start not in bounds)


def _agreed(
    given: Given,
    belief: Belief | None,
    cu_seqlens: Tensor | None,
    outputs: Sequence[str],
    backend: Backend,
    validate: bool,
    group: dist.ProcessGroup | None,
) -> Place:
    """Refuse here what can be refused, on all ranks together; then say where this rank's slice stands."""
    rank, _ = place_in(group)
    q, v, refusal, sizes = given[0], given[2], None, [0] * len("TBGKHV")
    try:
        _check(given, belief, cu_seqlens, outputs, backend, validate)
        sizes = [*(q.shape[axis] for axis in (1, 0, 2, 3)), *v.shape[2:]]
    except ValueError as error:
        if not validate and cu_seqlens is None:
            raise
        refusal = error
    if not validate and cu_seqlens is None:
        return Place((0, sizes[0]), True)
    told = agree(refusal, sizes, q if isinstance(q, Tensor) else torch.empty(0), group)
    for other, theirs in enumerate(told):
        if theirs[1:] != told[0][1:]:
            raise ValueError(
                f"slices do not fit together: B, G, K, H, V are {told[0][1:]} on rank 0 and {theirs[1:]} on rank "
                f"{other}; only T may differ. Cut one batch along time."
            )
    lengths = [theirs[0] for theirs in told]
    return Place((0, lengths[rank]), True) if cu_seqlens is None else place_of(cu_seqlens, lengths, rank)


def _check(
    given: Given,
    belief: Belief | None,
    cu_seqlens: Tensor | None,
    outputs: Sequence[str],
    backend: Backend,
    validate: bool,
) -> None:
    """As ``bayesian_filter`` checks its arguments; then what cannot be split."""
    q, assumptions = given[0], given[-1]
    api.check_arguments(*given, belief, None, outputs, backend)
    check.check_numbers(assumptions, working_dtype(q))
    named = api.named_tensors(*given, belief)
    check.check_kinds(named, q)
    if validate:
        check.check_values(named)
    reason = segment.unsupported(assumptions)
    if reason is not None:
        raise ValueError(f"this memory cannot be split across ranks: {reason}. Filter the whole on one device.")
    if cu_seqlens is None:
        return
    if q.shape[0] != 1:
        raise ValueError(f"cu_seqlens with B = {q.shape[0]}; packed sequences lie in one row: reshape to B = 1.")
    if belief is not None or "final_belief" in outputs:
        raise ValueError(
            "cu_seqlens with an initial or final belief: packed sequences begin and end on several ranks. "
            "Leave both out, or pass rows that are not packed."
        )


def _from(given: Given, start: int) -> Given:
    """The tokens from ``start`` on."""
    if start == 0:
        return given
    q, k, v, log_decay, obs_noise, assumptions = given
    noise = assumptions.process_noise
    if isinstance(noise, PriorMixing) and noise.log_retention is not None:
        noise = PriorMixing(noise.log_retention[:, start:])
    elif isinstance(noise, Additive) and isinstance(noise.variance, Tensor):
        noise = Additive(noise.variance[:, start:])
    decay, seen = (None if x is None else x[:, start:] for x in (log_decay, obs_noise))
    return q[:, start:], k[:, start:], v[:, start:], decay, seen, replace(assumptions, process_noise=noise)


def _with_fresh(first: Belief, prior: Belief, place: Place) -> Belief:
    """A row for every sequence of the slice: what enters the first, and the prior for those that begin here."""
    more = len(place.bounds) - 2

    def rows(x: Tensor, fresh: Tensor) -> Tensor:
        return torch.cat([x, fresh.double().expand(more, *fresh.shape[1:])])

    cov = None if first.cov is None or prior.cov is None else rows(first.cov, prior.cov)
    return Belief(rows(first.mean, prior.mean), cov)
