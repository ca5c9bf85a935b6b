"""What ``bayesian_filter`` refuses, before any work: what came, what was expected, the mend."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from bayesmem.ops.assumptions import (
    COVARIANCES,
    WRITES,
    Additive,
    Assumptions,
    Discount,
    LogLinearMixing,
    PriorMixing,
    ProcessNoise,
)
from bayesmem.ops.bounds import bounds_of
from bayesmem.types import Belief

MEASURED = ("log_evidence", "innovation_var", "innovation_energy")  # outputs of measurement designs alone
OUTPUTS = ("predictive_var", *MEASURED, "final_belief")


def one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse ``value`` unless it is among ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}.")


def shape_of(name: str, x: Tensor, axes: str, sizes: dict[str, int]) -> None:
    """Refuse ``x`` unless its shape is ``axes`` (such as ``"B T H K"``) at the given sizes.

    An axis not yet in ``sizes`` is learned from ``x``.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} is a {type(x).__name__}; expected a tensor [{axes}].")
    letters, shape = axes.split(), x.shape
    if len(shape) != len(letters):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {len(letters)} axes [{', '.join(letters)}].")
    for letter, size in zip(letters, shape, strict=True):
        expected = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
        if size != expected:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}: axis {letter} is {size}, expected {expected} as in "
                f"[{', '.join(letters)}]."
            )


def gate_shape(name: str, x: Tensor, sizes: dict[str, int], *, channels: bool = True) -> None:
    """Refuse a gate unless it is ``[B, T, H]`` or, where allowed, ``[B, T, H, K]``."""
    per_channel = channels and isinstance(x, Tensor) and x.ndim == 4
    shape_of(name, x, "B T H K" if per_channel else "B T H", sizes)


def check_streams(q: Tensor, k: Tensor, v: Tensor, sizes: dict[str, int]) -> None:
    """Shapes of q, k, v; ``sizes`` is filled with B, T, K, V and H, the value heads."""
    shape_of("q", q, "B T G K", sizes)
    shape_of("k", k, "B T G K", sizes)
    shape_of("v", v, "B T H V", sizes)
    for axis in "BTGKHV":
        if sizes[axis] == 0:
            raise ValueError(f"axis {axis} is empty (q {tuple(q.shape)}, v {tuple(v.shape)}); expected at least 1.")
    if sizes["H"] % sizes["G"]:
        raise ValueError(
            f"v has {sizes['H']} heads and k has {sizes['G']}: grouped value heads need a multiple of k's heads."
        )


def check_assumptions(a: Assumptions, sizes: dict[str, int], log_decay: Tensor | None) -> None:
    """Options, shapes of what they hold, and combinations that contradict."""
    one_of("covariance", a.covariance, COVARIANCES)
    one_of("write", a.write, WRITES)
    noise = a.process_noise
    if not isinstance(noise, ProcessNoise):
        raise ValueError(
            f"process_noise is {noise!r}; expected PriorMixing(), Additive(), Discount() or LogLinearMixing() of "
            "bayesmem.ops, which hold tensors (those of bayesmem.design say where the numbers come from)."
        )
    if a.covariance == "none" and a.write != "latent_input":
        raise ValueError(
            "covariance='none' leaves a measurement without a gain; it goes with write='latent_input' only."
        )
    carried = a.covariance in ("full", "diagonal", "isotropic")
    if not carried and not isinstance(noise, PriorMixing):
        raise ValueError(
            f"{type(noise).__name__} with covariance={a.covariance!r}: no covariance is carried from token to "
            "token, so this noise would have no effect. Use covariance='full', 'diagonal' or 'isotropic'."
        )
    open_loop = a.covariance in ("full", "none")
    if a.write == "latent_input" and (not open_loop or isinstance(noise, Discount | LogLinearMixing)):
        raise ValueError(
            "write='latent_input' measures nothing: its covariance runs open loop and takes covariance='full' "
            f"(or 'none') with PriorMixing or Additive; got {a.covariance!r} with {type(noise).__name__}."
        )
    if isinstance(noise, PriorMixing) and noise.log_retention is not None:
        gate_shape("log_retention", noise.log_retention, sizes)
    if isinstance(noise, Additive) and isinstance(noise.variance, Tensor):
        gate_shape("process noise variance", noise.variance, sizes)
    if isinstance(noise, Discount):
        gate_shape("log_discount", noise.log_discount, sizes, channels=False)
        if not 0 <= noise.floor <= 1:
            raise ValueError(f"Discount floor is {noise.floor}; expected a fraction of the prior precision, 0 to 1.")
    if isinstance(noise, LogLinearMixing) and log_decay is not None and log_decay.ndim == 4:
        raise ValueError("LogLinearMixing mixes whole beliefs: log_decay must be per head [B, T, H], not per channel.")
    if a.dof is not None and (a.write == "latent_input" or not 0 < a.dof < float("inf")):
        raise ValueError(
            f"dof is {a.dof} with write={a.write!r}; expected positive degrees of freedom of a measurement."
        )
    if isinstance(a.prior_var, Tensor):
        shape_of("prior_var", a.prior_var, "H" if a.prior_var.ndim < 2 else "H K", sizes)
    if a.steady_var is not None:
        shape_of("steady_var", a.steady_var, "H", sizes)
        if a.covariance != "steady_state":
            raise ValueError(f"steady_var needs covariance='steady_state'; got {a.covariance!r}.")


def check_belief(belief: Belief, covariance: str, rows: int, sizes: dict[str, int]) -> None:
    """Shape of an initial belief, in the structure's own layout; ``rows`` is B or the sequences."""
    sizes = {**sizes, "B": rows}
    shape_of("initial_belief.mean", belief.mean, "B H K V", sizes)
    layout = {"full": "B H K K", "diagonal": "B H K", "isotropic": "B H 1"}.get(covariance)
    if belief.cov is None:
        return
    if layout is None:
        raise ValueError(
            f"initial_belief.cov is given, but covariance={covariance!r} carries none; pass Belief(mean, None)."
        )
    shape_of("initial_belief.cov", belief.cov, layout, sizes)


def check_kinds(named: Iterable[tuple[str, Tensor, str]], reference: Tensor) -> None:
    """Refuse devices or dtypes that differ (a gate may be float32 beside 16-bit q, k, v); signs are not read."""
    device, dtype = reference.device, reference.dtype
    half = dtype in (torch.float16, torch.bfloat16)
    for name, x, _ in named:
        if x.device != device:
            raise ValueError(f"{name} is on {x.device} and q on {device}; move them to one device.")
        if x.dtype == dtype:
            continue
        streams = name in ("q", "k", "v")
        carried = name.startswith("initial_belief") and x.dtype == torch.float64
        if not carried and (streams or not (half and x.dtype == torch.float32)):
            allowed = f"{dtype}" + (" or torch.float32" if half and not streams else "")
            raise ValueError(f"{name} is {x.dtype} and q is {dtype}; expected {allowed}.")
    if not half and dtype not in (torch.float32, torch.float64):
        raise ValueError(f"q is {dtype}; expected float64, float32, bfloat16 or float16.")


def check_bounds(cu_seqlens: Tensor, batch: int, length: int) -> list[int]:
    """``cu_seqlens`` as a list, refused unless it rises from 0 to T and B is 1."""
    if batch != 1:
        raise ValueError(f"cu_seqlens with B = {batch}; packed sequences lie in one row: reshape to B = 1.")
    if not isinstance(cu_seqlens, Tensor):
        raise ValueError(f"cu_seqlens is a {type(cu_seqlens).__name__}; expected an int32 or int64 tensor, [N + 1].")
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}; expected int32 or int64, [N + 1]."
        )
    bounds = list(bounds_of(cu_seqlens))
    rising = all(a < b for a, b in pairwise(bounds))
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != length or not rising:
        raise ValueError(f"cu_seqlens {bounds} does not cover T = {length}: expected 0 < ... < {length}, rising.")
    return bounds


def check_numbers(a: Assumptions, dtype: torch.dtype) -> None:
    """Plain numbers among the assumptions: finite in the working dtype, and of their sign."""
    noise = a.process_noise
    numbers = [("prior_var", a.prior_var, "positive"), ("obs_noise_floor", a.obs_noise_floor, "non-negative")]
    if isinstance(noise, Additive):
        numbers.append(("process noise variance", noise.variance, "non-negative"))
    for name, value, sign in numbers:
        if isinstance(value, Tensor):
            continue
        if not (0 <= value <= torch.finfo(dtype).max) or (value == 0 and sign == "positive"):
            raise ValueError(f"{name} is {value}; expected a {sign} number, finite in {dtype}.")


def check_values(signs: Iterable[tuple[str, Tensor, str]]) -> None:
    """Refuse NaN, infinity and wrong signs. Reads the data: on a GPU this waits for it.

    Args:
        signs: name, tensor and one of ``any``, ``positive``, ``non-negative``, ``non-positive``
            (where minus infinity is a hard reset, and allowed).
    """
    for name, x, sign in signs:
        low, high = (bound.item() for bound in x.detach().aminmax())
        if low != low:
            raise ValueError(f"{name} holds NaN; look for an overflow or an uninitialised tensor upstream.")
        if high == float("inf") or (low == float("-inf") and sign != "non-positive"):
            raise ValueError(f"{name} holds infinity; expected finite numbers.")
        if (sign == "positive" and low <= 0) or (sign == "non-negative" and low < 0):
            hint = "a variance, not its logarithm" if low < 0 else "raise it to a small floor such as 1e-4"
            raise ValueError(f"{name} must be {sign}; its least value is {low:.4g} ({hint}).")
        if sign == "non-positive" and high > 0:
            raise ValueError(f"{name} must be at most 0, the log of a number in [0, 1]; its largest is {high:.4g}.")
