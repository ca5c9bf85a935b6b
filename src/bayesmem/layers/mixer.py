"""``BayesianLayer``: q, k, v and gates from hidden states, the filter, and back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from bayesmem.design import Mean, MeanAndVariance, PrecisionWeighted
from bayesmem.layers.cache import LayerCache
from bayesmem.layers.config import BayesianLayerConfig
from bayesmem.layers.filtering import FilterContext, filter_design, precision_weight
from bayesmem.layers.gates import Gates
from bayesmem.layers.projections import Projections
from bayesmem.layers.readout import Readout
from bayesmem.ops import Backend


@dataclass(frozen=True, slots=True)
class LayerOutput:
    """What a layer returns.

    Attributes:
        hidden_states: ``[B, T, D]``.
        cache: memory after the last token, where asked for.
        predictive_var: variance of each head's read-out, where asked for.
        log_evidence: log density of each token's values before they were written, in nats.
    """

    hidden_states: Float[Tensor, "B T D"]
    cache: LayerCache | None = None
    predictive_var: Float[Tensor, "B T H"] | None = None
    log_evidence: Float[Tensor, "B T H"] | None = None


class BayesianLayer(nn.Module):
    """A sequence mixer that is the filter of its design.

    In the shape of a Gated DeltaNet layer, and one with ``design="gated_deltanet"``.

    Args:
        config: sizes and assumptions.
        backend: of ``bayesian_filter``.
    """

    def __init__(self, config: BayesianLayerConfig, backend: str | Backend = "auto"):
        super().__init__()
        self.config = config
        self.backend = backend
        self.projections = Projections(config)
        self.gates = Gates(config)
        self.readout = Readout(config)

    def forward(
        self,
        hidden_states: Float[Tensor, "B T D"],
        attention_mask: Shaped[Tensor, "B T"] | None = None,
        cache: LayerCache | None = None,
        cu_seqlens: Int[Tensor, "_"] | None = None,
        *,
        use_cache: bool = False,
        output_uncertainty: bool = False,
    ) -> LayerOutput:
        """Write every token into the memory and read it out.

        Args:
            hidden_states: inputs.
            attention_mask: 0 or False where a token is padding, which the memory does not hear. The short
                convolution does hear its zeros after padding inside a row or on the right: to go on
                from a cache, pad on the left.
            cache: the memory to go on from; one row a sequence.
            cu_seqlens: offsets of sequences packed in one row (B = 1); not with a cache.
            use_cache: whether to return the memory after the last token.
            output_uncertainty: whether to return predictive variance and log evidence.

        Raises:
            ValueError: arguments that contradict, or inputs the filter refuses.
        """
        if cu_seqlens is not None and (cache is not None or use_cache):
            raise ValueError("cu_seqlens with a cache: packed sequences end at different places; pass them unpacked.")
        x = hidden_states
        if x.shape[-1] != self.config.hidden_size:
            raise ValueError(f"hidden_states has width {x.shape[-1]}; this layer expects {self.config.hidden_size}.")
        if attention_mask is not None:
            x = x * attention_mask[..., None].to(x.dtype)
        tail = self.projections.new_tail(x) if cache is None else cache.conv_tail
        position = None if cu_seqlens is None else _positions(cu_seqlens, x.shape[1])
        q, k, v, tail = self.projections(x, tail, position)
        inputs = self.gates(x)
        design = self.config.model
        readout = self.config.evidence.readout
        weighted = isinstance(readout, PrecisionWeighted)
        asked = ["predictive_var", "log_evidence"] if output_uncertainty else []
        asked += ["final_belief"] if use_cache else []
        asked += ["predictive_var"] if weighted or isinstance(readout, MeanAndVariance) else []
        context = FilterContext(
            None if cache is None else cache.belief, cu_seqlens, attention_mask, tuple(asked), self.backend
        )
        if weighted:  # once, after the norm: DesignModel.filter would weigh before it
            design = self.config.evidence.but(readout=Mean())
        filtered = filter_design(design, q, k, v, inputs, context)
        weight = precision_weight(self.config.evidence, inputs, filtered.predictive_var) if weighted else None
        belief = filtered.final_belief
        return LayerOutput(
            self.readout(filtered.o, x, filtered.predictive_var, weight),
            LayerCache(belief, tail) if belief is not None else None,
            filtered.predictive_var if output_uncertainty else None,
            filtered.log_evidence,
        )


def _positions(cu_seqlens: Int[Tensor, "_"], length: int) -> Int[Tensor, "T"]:
    """Position of every token in its own packed sequence."""
    index = torch.arange(length, device=cu_seqlens.device)
    return index - cu_seqlens[torch.searchsorted(cu_seqlens, index, right=True) - 1]
