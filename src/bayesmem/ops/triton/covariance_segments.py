"""The covariance's reverse chain in Triton over long sequences of few heads: in segments, side by side, exactly.

The adjoint Lambda goes through a segment as A^T Lambda A, plus what the segment gathers from zero. So its segments are
gone through twice: from zero, to learn what each gathers, and from what then leaves it. (The CUDA chains go through
theirs once, from a guess that is looked at afterwards: covariance_cuts.cu.)
"""

from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.step import symmetric
from bayesmem.ops.triton.carry import leaving
from bayesmem.ops.triton.covariance_chain import Chained, chain
from bayesmem.ops.triton.covariance_config import chain_config
from bayesmem.ops.triton.covariance_prepare import Prepared
from bayesmem.ops.triton.covariance_transition import transitions
from bayesmem.ops.triton.device import limits
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.segments import Segments, cut
from bayesmem.ops.triton.spans import Spans

MAX_KEY_DIM = 128
# Least tokens a segment, and least segments of the longest sequence, as measured (docs/notes/003-kernels.md).
CUTS = (2048, 6)


def chain_segments(final_cov: Tensor, spans: Spans, prec: str, tuning: Tuning | None) -> Segments | None:
    """How the chain is cut, or ``None`` where whole sequences are at least as fast; not where Lambda lies in memory."""
    key_dim = final_cov.shape[-1]
    if key_dim > MAX_KEY_DIM or chain_config(final_cov, prec, tuning)["BK"] < key_dim:
        return None
    return cut(spans, final_cov.shape[1], limits(final_cov.device).processors, *CUTS)


def segmented_chain(
    prepared: Prepared,
    dvar: Float[Tensor, "N H"] | None,
    k: Float[Tensor, "N G K"],
    gates: tuple[Tensor, Tensor, Tensor, Tensor],
    checkpoints: Float[Tensor, "NC H K K"],
    final_cov: Float[Tensor, "S H K K"],
    d_final_cov: Float[Tensor, "S H K K"] | None,
    segments: Segments,
    prec: str,
    tuning: Tuning | None,
) -> tuple[Chained, Float[Tensor, "S H K K"]]:
    """As ``chain``, in ``segments``."""
    spans = segments.spans
    after = spans.chunk_first[1:].long().clamp(max=len(checkpoints) - 1)
    ends = checkpoints[after]
    ends[segments.last] = final_cov
    given, rest = (prepared, dvar, k, gates, checkpoints, ends), (spans, prec, tuning)
    _, gathered = chain(*given, None, *rest)
    through = transitions(prepared.gain, prepared.read, gates[0], prepared.to_end, spans, prec, tuning)
    d_final = None if d_final_cov is None else symmetric(d_final_cov)
    leaves = leaving(gathered, through, d_final, segments, both=True)
    chained, d_initial = chain(*given, leaves, *rest)
    return chained, d_initial[segments.first]
