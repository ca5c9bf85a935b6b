"""Named designs: each a few lines of assumptions. ``ZOO`` holds them by name.

The reading of linear attention as latent-input designs, and of the delta rules as covariance
resets, is that of Dowling et al., arXiv 2605.31163 (2026); where a published layer was written by
its authors in other terms, the reduction is derived in docs/math.md and held by tests/peers.
"""

from bayesmem.design.assumptions import (
    Additive,
    Decay,
    Discount,
    Expected,
    Information,
    LatentInput,
    LogLinearMixing,
    Measurement,
    Prior,
    PriorMixing,
)
from bayesmem.design.mixture import MixtureModel
from bayesmem.design.model import DesignModel

# The memory is driven: latent input ---------------------------------------------------------------

LINEAR_ATTENTION = DesignModel(
    name="linear_attention",
    write=LatentInput(),
    covariance="none",
    equals="linear attention without normaliser and feature map",
    source="Katharopoulos et al., arXiv 2006.16236",
)

# The other reading, ours: evidence is measured, and the answer leaves the precision out.
LINEAR_ATTENTION_INFORMATION = DesignModel(
    name="linear_attention_information",
    write=Measurement(obs_noise=1.0),
    covariance="none",
    readout=Information(),
    equals="linear attention, as the information vector of a measured memory",
    source="our reading",
)

RETNET = DesignModel(
    name="retnet",
    transition=Decay("head"),
    write=LatentInput(),
    covariance="none",
    equals="RetNet's retention, without its rotation of q and k",
    source="Sun et al., arXiv 2307.08621",
)

GLA = DesignModel(
    name="gla",
    transition=Decay(per="channel"),
    write=LatentInput(),
    covariance="none",
    equals="gated linear attention",
    source="Yang et al., arXiv 2312.06635",
)

MAMBA2 = DesignModel(
    name="mamba2",
    transition=Decay(),
    write=LatentInput(strength="token"),
    covariance="none",
    equals="the SSD recurrence of Mamba-2, k = B, q = C, v = x, step = dt",
    source="Dao and Gu, arXiv 2405.21060",
)

HGRN2 = DesignModel(
    name="hgrn2",
    transition=Decay(per="channel"),
    write=LatentInput(key="complement"),
    covariance="none",
    equals="HGRN-2, its key the complement of its forget gate",
    source="Qin et al., arXiv 2404.07904",
)

# The memory is measured, its covariance put back at every token: the delta rules -----------------

DELTANET = DesignModel(
    name="deltanet",
    covariance="reset",
    equals="DeltaNet, beta = 1 / (r + |k|^2), while beta |k|^2 is below 1",
    source="Yang et al., arXiv 2406.06484",
)

GATED_DELTANET = DesignModel(
    name="gated_deltanet",
    transition=Decay(),
    covariance="reset",
    equals="Gated DeltaNet, beta = 1 / (r + |k|^2), while beta |k|^2 is below 1",
    source="Yang et al., arXiv 2412.06464",
)

KDA = DesignModel(
    name="kda",
    transition=Decay(per="channel"),
    covariance="reset",
    equals="Kimi Delta Attention, beta = 1 / (r + |k|^2), while beta |k|^2 is below 1",
    source="Kimi Team, arXiv 2510.26692",
)

DELTAPRODUCT = DesignModel(
    name="deltaproduct",
    transition=Decay(),
    write=Measurement(per_token=2),
    covariance="reset",
    equals="Gated DeltaProduct of two Householder steps a token, while beta |k|^2 is below 1",
    source="Siems et al., arXiv 2502.10297",
)

LONGHORN = DesignModel(
    name="longhorn",
    write=Measurement(unit_keys=False),
    covariance="reset",
    equals="Longhorn's proximal step, its beta 1 / r, before its diagonal approximation of k k^T",
    source="Liu et al., arXiv 2407.14207",
)

KACZMARZ = DesignModel(
    name="kaczmarz",
    write=Measurement(obs_noise=1e-6, unit_keys=False),
    covariance="reset",
    equals="a Kaczmarz projection, gain k / |k|^2, to the part 1e-6 / |k|^2",
    source="Kaczmarz (1937)",
)

# The covariance is carried, approximated ---------------------------------------------------------

KALMAN_DIAGONAL = DesignModel(
    name="kalman_diagonal",
    transition=Decay(),
    process_noise=Additive(per="channel"),
    covariance="diagonal",
    equals="a Kalman filter whose posterior is projected to the diagonal (mean field), as in Kalman Delta Networks",
    source="our parameterisation",
)

KALMAN_ISOTROPIC = DesignModel(
    name="kalman_isotropic",
    transition=Decay(),
    process_noise=Additive(),
    covariance="isotropic",
    equals="a Kalman filter whose posterior is projected to one variance a head, as in Kalman Delta Networks",
    source="our parameterisation",
)

BAYESIAN_STEADY = DesignModel(
    name="bayesian_steady",
    transition=Decay(),
    process_noise=PriorMixing(),
    covariance="steady_state",
    equals="a delta rule whose step is the steady state of its retention and noise",
    source="ours",
)

# The covariance is carried in full ---------------------------------------------------------------

RLS = DesignModel(
    name="rls",
    write=Measurement(obs_noise="head", unit_keys=False),
    process_noise=Discount("head", floor=0.0),
    equals="recursive least squares with exponential forgetting; at gamma = 1 the ridge solution",
    source="Plackett (1950); Haykin, Adaptive Filter Theory",
)

MESANET = DesignModel(
    name="mesanet",
    prior=Prior("head", per="channel"),
    process_noise=LogLinearMixing(),
    equals="MesaNet solved exactly, Lambda = 1 / p₀, beta = 1 / r",
    source="von Oswald et al., arXiv 2506.05233; Kulhavy and Zarrop (1993)",
)

BAYESIAN_STATIC = DesignModel(
    name="bayesian_static",
    equals="ridge regression of values on keys, each token weighed by 1 / r",
    source="Dowling et al., arXiv 2605.31163; our parameterisation",
)

BAYESIAN_FORGETTING = DesignModel(
    name="bayesian_forgetting",
    transition=Decay(),
    process_noise=PriorMixing("decay"),
    equals="the Kalman filter of an Ornstein-Uhlenbeck memory",
    source="Dowling et al., arXiv 2605.31163; our parameterisation",
)

BAYESIAN_PRIOR_MIXING = DesignModel(
    name="bayesian_prior_mixing",
    process_noise=PriorMixing(),
    equals="DeltaNet at retention 0, the static memory at 1",
    source="ours",
)

BAYESIAN = DesignModel(
    name="bayesian",
    transition=Decay(),
    process_noise=PriorMixing(),
    equals="Gated DeltaNet at retention 0, full propagation at 1",
    source="Dowling et al., arXiv 2605.31163; the retention gate is ours",
)

# Beyond the linear-Gaussian case: experimental ---------------------------------------------------

STUDENT_T = DesignModel(
    name="student_t",
    transition=Decay(),
    process_noise=PriorMixing(),
    write=Measurement(dof=4.0),
    equals="the Bayesian Layer as the degrees of freedom grow",
    source="ours, after Agamennoni et al. (2012)",
)

RECTIFIED = DesignModel(
    name="rectified",
    transition=Decay(),
    process_noise=PriorMixing(),
    readout=Expected("relu"),
    equals="relu of the read-out where the memory is sure",
    source="ours",
)

MIXTURE = MixtureModel(
    name="mixture",
    components=(BAYESIAN_STATIC, BAYESIAN_FORGETTING),
    equals="whichever of the static and the forgetting memory the evidence favours",
    source="ours, after Magill (1965)",
)

ZOO: dict[str, DesignModel | MixtureModel] = {
    x.name: x for x in list(globals().values()) if isinstance(x, DesignModel | MixtureModel)
}
