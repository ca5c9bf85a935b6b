"""``BayesianLayer``: q, k, v and gates from hidden states, the filter, and back."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from bayesmem.design import DesignModel, Mean, MeanAndVariance, PrecisionWeighted
from bayesmem.layers.cache import LayerCache
from bayesmem.layers.config import BayesianLayerConfig
from bayesmem.layers.filtering import FilterContext, filter_design, precision_weight
from bayesmem.layers.gates import Gates
from bayesmem.layers.projections import Projections
from bayesmem.layers.readout import Readout
from bayesmem.ops import Backend
from bayesmem.ops.exchange import exchange_tail, slice_start


@dataclass(frozen=True, slots=True)
class LayerOutput:
    """What a layer returns.

    Attributes:
        hidden_states: ``[B, T, D]``.
        cache: memory after the last token, where asked for.
        predictive_var: variance of each head's read-out, where asked for.
        log_evidence: log density of each token's values before they were written, in nats.
        innovation_var: variance with which each value channel was predicted; no mixture has one.
        innovation_energy: mean squared innovation over its variance, 1 on average where the memory knows its errors.
    """

    hidden_states: Float[Tensor, "B T D"]
    cache: LayerCache | None = None
    predictive_var: Float[Tensor, "B T H"] | None = None
    log_evidence: Float[Tensor, "B T H"] | None = None
    innovation_var: Float[Tensor, "B T H"] | None = None
    innovation_energy: Float[Tensor, "B T H"] | None = None


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
        context_group: dist.ProcessGroup | None = None,
    ) -> LayerOutput:
        """Write every token into the memory and read it out.

        Args:
            hidden_states: inputs.
            attention_mask: 0 or False where a token is padding, which neither the memory nor the short convolution
                hears, wherever it stands.
            cache: the memory to go on from; one row a sequence.
            cu_seqlens: offsets of sequences packed in one row (B = 1); not with a cache.
            use_cache: whether to return the memory after the last token.
            output_uncertainty: whether to return predictive variance, log evidence and innovation statistics.
            context_group: ranks that share every sequence, each holding a slice of its tokens, in rank order; all
                inputs are then slices but ``cu_seqlens``, which is that of the whole. Not with a cache.

        Raises:
            ValueError: arguments that contradict, or inputs the filter refuses.
        """
        if cu_seqlens is not None and (cache is not None or use_cache):
            raise ValueError("cu_seqlens with a cache: packed sequences end at different places; pass them unpacked.")
        if context_group is not None and (cache is not None or use_cache):
            raise ValueError("context_group with a cache: a sequence split across ranks is run whole, without one.")
        if self.config.allow_neg_eigval and output_uncertainty:
            raise ValueError(
                "output_uncertainty with allow_neg_eigval: a beta above 1 has no observation noise, so that there is "
                "no variance to report; leave it out, or train with allow_neg_eigval=False."
            )
        x = hidden_states
        if x.shape[-1] != self.config.hidden_size:
            raise ValueError(f"hidden_states has width {x.shape[-1]}; this layer expects {self.config.hidden_size}.")
        if attention_mask is not None:
            x = x * attention_mask[..., None].to(x.dtype)
        tail = self.projections.new_tail(x) if cache is None else cache.conv_tail
        start = 0
        if context_group is not None:
            padding = attention_mask if cu_seqlens is None else None  # the convolution passes over it in plain rows
            tail = self.projections.tail_of(exchange_tail(x, tail.shape[1], context_group, padding))
            start = 0 if cu_seqlens is None else slice_start(x.shape[1], x, context_group)
        position = None if cu_seqlens is None else _positions(cu_seqlens, x.shape[1], start)
        q, k, v, tail, missing = self.projections(x, tail, position, attention_mask)
        inputs = self.gates(x)
        measured = dict(inputs)
        if self.config.meets_beta:
            assert missing is not None
            measured["obs_noise"] = _of_beta(inputs["obs_noise"], missing, clamp=not self.config.allow_neg_eigval)
        design = self.config.model
        readout = self.config.evidence.readout
        weighted = isinstance(readout, PrecisionWeighted)
        asked = ["predictive_var", "log_evidence"] if output_uncertainty else []
        asked += (
            ["innovation_var", "innovation_energy"] if output_uncertainty and isinstance(design, DesignModel) else []
        )
        asked += ["final_belief"] if use_cache else []
        asked += ["predictive_var"] if weighted or isinstance(readout, MeanAndVariance) else []
        context = FilterContext(
            None if cache is None else cache.belief,
            cu_seqlens,
            attention_mask,
            tuple(asked),
            self.backend,
            validate=False if self.config.allow_neg_eigval else None,  # its noise may be negative, its gain is beta k
            group=context_group,
        )
        if weighted:  # once, after the norm: DesignModel.filter would weigh before it
            design = self.config.evidence.but(readout=Mean())
        filtered = filter_design(design, q, k, v, measured, context)
        weight = precision_weight(self.config.evidence, inputs, filtered.predictive_var) if weighted else None
        belief = filtered.final_belief
        return LayerOutput(
            self.readout(filtered.o, x, filtered.predictive_var, weight),
            LayerCache(belief, tail) if belief is not None else None,
            filtered.predictive_var if output_uncertainty else None,
            filtered.log_evidence,
            filtered.innovation_var,
            filtered.innovation_energy,
        )


def _of_beta(obs_noise: Float[Tensor, "B N H"], missing: Float[Tensor, "B N G"], clamp: bool) -> Float[Tensor, "B N H"]:
    """The noise whose gain is ``beta k`` to the letter: ``1 / beta - |k|^2``, also of keys a little short of 1.

    Args:
        obs_noise: ``1 / beta - 1``, which is the noise of keys of norm 1.
        missing: ``1 - |k|^2``.
        clamp: keep the noise positive where a 16-bit key is longer than 1 by rounding.
    """
    missing = missing.clamp(min=0) if clamp else missing
    return obs_noise + missing.to(obs_noise.dtype).repeat_interleave(obs_noise.shape[-1] // missing.shape[-1], -1)


def _positions(cu_seqlens: Int[Tensor, "_"], length: int, start: int = 0) -> Int[Tensor, "T"]:
    """Position of every token in its own packed sequence; the tokens begin at ``start`` of the whole row."""
    index = torch.arange(start, start + length, device=cu_seqlens.device)
    return index - cu_seqlens[torch.searchsorted(cu_seqlens, index, right=True) - 1]
