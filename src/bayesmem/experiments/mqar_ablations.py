"""What makes the Bayesian Layer work: one choice changed at a time, as data.

Every entry changes the learned-retention Bayesian Layer (decay and retention learned, K = V = width) at its own best
learning rate; head sizes stay, so that the entries differ in what they assume and not in how they project.
"""

from dataclasses import dataclass, field
from typing import Any

from bayesmem.design import MeanAndVariance, Measurement, NoNoise, PrecisionWeighted, Prior
from bayesmem.design.zoo import BAYESIAN


@dataclass(frozen=True, slots=True)
class Ablation:
    """One changed choice.

    Attributes:
        question: which choice, in words; entries of one question are told together.
        value: what it is changed to, in words.
        fields: of ``Job``, in place of the base's.
    """

    question: str
    value: str
    fields: dict[str, Any] = field(default_factory=dict)


def _mixer(**options: Any) -> dict[str, Any]:
    return {"changes": options}


def _design(name: str, **changes: Any) -> dict[str, Any]:
    return _mixer(design=BAYESIAN.but(name=name, **changes).to_dict())


ABLATIONS: dict[str, Ablation] = {
    "base": Ablation("as it is", "as it is"),
    # Where it starts.
    "prior_0.1": Ablation("prior variance", "0.1", _design("prior_0.1", prior=Prior(0.1))),
    "prior_10": Ablation("prior variance", "10", _design("prior_10", prior=Prior(10.0))),
    "prior_learned": Ablation("prior variance", "learned, from 1", _design("prior_learned", prior=Prior("head"))),
    "retention_0.5": Ablation("initial retention", "0.5", _mixer(retention_init=0.5)),
    "retention_0.9": Ablation("initial retention", "0.9", _mixer(retention_init=0.9)),
    "retention_0.99": Ablation("initial retention", "0.99", _mixer(retention_init=0.99)),
    "retention_0.9999": Ablation("initial retention", "0.9999", _mixer(retention_init=0.9999)),
    # What is forgotten.
    "tied": Ablation("retention", "tied to the decay", _mixer(design="bayesian_forgetting")),
    "no_decay": Ablation("retention", "learned, without a decay of the mean", _mixer(design="bayesian_prior_mixing")),
    "no_retention": Ablation(
        "retention", "absent, with a decay of the mean", _design("no_retention", process_noise=NoNoise())
    ),
    "static": Ablation("retention", "absent, as the decay", _mixer(design="bayesian_static")),
    # How noisy a token is taken to be.
    "noise_head": Ablation(
        "observation noise", "one a head, learned", _design("noise_head", write=Measurement(obs_noise="head"))
    ),
    "noise_fixed": Ablation(
        "observation noise", "0.1 for every token", _design("noise_fixed", write=Measurement(obs_noise=0.1))
    ),
    # How the covariance is carried.
    "diagonal": Ablation("covariance", "its diagonal", _design("diagonal", covariance="diagonal")),
    "isotropic": Ablation("covariance", "one variance", _design("isotropic", covariance="isotropic")),
    "reset": Ablation("covariance", "reset at every token", _mixer(design="gated_deltanet")),
    # What the read-out hears of the variance.
    "variance_beside": Ablation(
        "variance in the read-out", "beside the channels", _design("variance_beside", readout=MeanAndVariance())
    ),
    "variance_weighs": Ablation(
        "variance in the read-out", "weighs the mean", _design("variance_weighs", readout=PrecisionWeighted())
    ),
    "gate_sigmoid": Ablation("output gate", "sigmoid", _mixer(output_gate="sigmoid")),
    "gate_silu": Ablation("output gate", "silu", _mixer(output_gate="silu")),
    # How fast the mean forgets at first.
    "decay_mamba2": Ablation("initial decay", "as Mamba-2 draws it", _mixer(decay_init=None)),
    "decay_0.99": Ablation("initial decay", "0.99", _mixer(decay_init=0.99)),
    "decay_0.9999": Ablation("initial decay", "0.9999", _mixer(decay_init=0.9999)),
    # How it is computed: no effect expected.
    "chunk_16": Ablation("chunk size", "16 tokens", {"chunk_size": 16}),
    "chunk_32": Ablation("chunk size", "32 tokens", {"chunk_size": 32}),
    "chunk_64": Ablation("chunk size", "64 tokens", {"chunk_size": 64}),
    "float32": Ablation("precision", "float32 throughout", {"precision": "float32"}),
    "bf16": Ablation("precision", "bf16 autocast", {"precision": "bf16"}),
}
