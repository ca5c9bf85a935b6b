"""Assumptions that cannot stand together, or of which one has no effect: the reason, and the mend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bayesmem.design import assumptions as a

if TYPE_CHECKING:
    from bayesmem.design.model import DesignModel


def contradictions(m: DesignModel) -> list[str]:
    """Every pair of assumptions that cannot both hold or of which one has no effect, with the mend."""
    if isinstance(m.write, a.LatentInput):
        return list(_latent(m))
    return list(_measured(m, m.write))


def _latent(m: DesignModel) -> list[str]:
    found = []
    if m.covariance != "none":
        found.append(
            f"covariance={m.covariance!r} with a latent-input write: nothing is measured, so there is no gain for a "
            "covariance to steer. Use covariance='none', or write=Measurement()."
        )
    if not isinstance(m.process_noise, a.NoNoise):
        found.append(
            f"process_noise={m.process_noise!r} with a latent-input write: nothing is measured, so noise would change "
            "no output. Use NoNoise(), or write=Measurement()."
        )
    if not isinstance(m.readout, a.Mean):
        found.append(f"readout={m.readout!r} with a latent-input write, which carries a mean only; use readout=Mean().")
    if m.prior != a.Prior():
        found.append(f"{m.prior!r} with a latent-input write: the mean starts at 0 whatever its variance; use Prior().")
    tied = isinstance(m.write, a.LatentInput) and m.write.key == "complement"
    if tied and not (isinstance(m.transition, a.Decay) and m.transition.per == "channel"):
        found.append(
            "LatentInput(key='complement') is 1 - a for each key channel; use transition=Decay(per='channel')."
        )
    return found


def _measured(m: DesignModel, write: a.Measurement) -> list[str]:
    found, noise = [], m.process_noise
    if isinstance(m.readout, a.Information) != (m.covariance == "none"):
        found.append(
            f"covariance={m.covariance!r} with readout={m.readout!r}: a measurement's gain needs a covariance, and the "
            "information vector alone needs none. Use covariance='none' with readout=Information(), and only there."
        )
    if m.covariance == "none":
        if not (isinstance(m.transition, a.Identity) and isinstance(noise, a.NoNoise | a.LogLinearMixing)):
            found.append(
                "readout=Information() follows a simple recursion only with transition=Identity() and NoNoise() or "
                f"LogLinearMixing(); got {m.transition!r}, {noise!r}."
            )
        if write.dof is not None:
            found.append("a Student-t measurement weighs evidence by the belief, which readout=Information() lacks.")
        if m.prior != a.Prior():
            found.append(f"{m.prior!r}: the information vector starts at 0 whatever the prior; use Prior().")
    if isinstance(noise, a.LogLinearMixing) and not isinstance(m.transition, a.Identity):
        found.append(
            "LogLinearMixing moves the mean towards the prior's by itself; use transition=Identity(), or another noise."
        )
    if isinstance(noise, a.PriorMixing) and noise.retention == "decay" and not isinstance(m.transition, a.Decay):
        found.append("PriorMixing('decay') without a decay keeps everything; say process_noise=NoNoise().")
    if m.covariance == "reset" and not isinstance(noise, a.NoNoise):
        found.append(
            f"covariance='reset' puts the prior back at every token, so {noise!r} has no effect; use NoNoise()."
        )
    if m.covariance == "steady_state" and not isinstance(noise, a.PriorMixing):
        found.append(
            f"covariance='steady_state' is the fixed point of PriorMixing(); {noise!r} has none in closed form."
        )
    if m.covariance == "steady_state" and write.per_token > 1:
        found.append("covariance='steady_state' balances one measurement a token; use Measurement(per_token=1).")
    if m.covariance == "isotropic" and m.prior.per == "channel":
        found.append("covariance='isotropic' has one variance a head; use a Prior(per='head').")
    return found
