"""The kernels as torch operators with gradients: opaque to ``torch.compile``, one call each way.

The only importer of ``bayesmem.ops.triton``. Tokens stand in one row, ``[N, H, D]``: B sequences of T, or, with
``cu_seqlens``, S packed ones. Every operator recomputes in its backward pass from the states that its forward pass
kept once a chunk.
"""

from bayesmem.ops.fused.channel_mean import channel_mean_op
from bayesmem.ops.fused.constant_gain import constant_gain_op
from bayesmem.ops.fused.covariance import covariance_op
from bayesmem.ops.fused.decode import decode_op
from bayesmem.ops.fused.diagonal import diagonal_op
from bayesmem.ops.fused.filter import filter_op
from bayesmem.ops.fused.gates import gates_op
from bayesmem.ops.fused.isotropic import isotropic_op
from bayesmem.ops.fused.mean import mean_op
from bayesmem.ops.triton.decode import decode_step
from bayesmem.ops.triton.precision_solve import solve_chunks

__all__ = [
    "channel_mean_op",
    "constant_gain_op",
    "covariance_op",
    "decode_op",
    "decode_step",
    "diagonal_op",
    "filter_op",
    "gates_op",
    "isotropic_op",
    "mean_op",
    "solve_chunks",
]
