"""Norms and gated products: in PyTorch, and on a GPU in one kernel each way."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "sigmoid": torch.sigmoid}
KINDS = (torch.float16, torch.bfloat16, torch.float32)
MAX_WIDTH = 8192  # channels that one program holds


def has_kernels(*tensors: Tensor | None) -> bool:
    """Whether these tensors can go through the kernels: on a GPU, with Triton, of dtypes that they know."""
    if not all(x is None or (x.is_cuda and x.dtype in KINDS) for x in tensors):
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a linear layer will read ``x``: autocast's where it is on."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype in KINDS:
        return torch.get_autocast_dtype(kind)
    return x.dtype


def rms_norm(
    x: Float[Tensor, "*axes V"],
    weight: Float[Tensor, "V"],
    eps: float,
    gate: Float[Tensor, "*axes V"] | None = None,
    activation: str = "silu",
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*axes V"]:
    """``x / rms(x) * weight * act(gate)``, computed in float32 at least.

    Args:
        x: of any float dtype.
        weight: one number a channel.
        eps: added to the mean square.
        gate: like x; ``None`` leaves it out.
        activation: of the gate, ``silu`` or ``sigmoid``.
        dtype: of the result; that of x by default.
    """
    dtype = dtype or x.dtype
    if has_kernels(x, gate, weight) and x.shape[-1] <= MAX_WIDTH:
        from bayesmem.ops.fused.norms import norm_op

        gate = None if gate is None else gate.contiguous()
        return norm_op(x.contiguous(), gate, weight, eps, None if gate is None else activation, dtype)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)
    return (normed if gate is None else normed * ACTIVATIONS[activation](gate.to(wide.dtype))).to(dtype)


def unit_norm(
    x: Float[Tensor, "*axes K"], eps: float = 1e-6
) -> tuple[Float[Tensor, "*axes K"], Float[Tensor, "*axes"]]:
    """``x / sqrt(|x|^2 + eps)``, as the released delta-rule models have it (0 stays 0), and what it lacks to 1.

    Returns:
        The vectors in the dtype of x, and ``1 - |x|^2`` of them as rounded, in float32 at least.
    """
    if has_kernels(x):
        from bayesmem.ops.fused.norms import unit_norm_op

        return unit_norm_op(x.contiguous(), eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    unit = (wide * torch.rsqrt((wide * wide).sum(-1, keepdim=True) + eps)).to(x.dtype)
    return unit, 1 - unit.to(wide.dtype).square().sum(-1)


def gated_product(a: Float[Tensor, "*axes V"], b: Float[Tensor, "*axes V"]) -> Float[Tensor, "*axes V"]:
    """``silu(a) b``."""
    if has_kernels(a, b) and a.dtype == b.dtype:
        from bayesmem.ops.fused.norms import gated_product_op

        return gated_product_op(a.contiguous(), b.contiguous())
    return F.silu(a) * b
