"""The norm of the residual stream, and of queries and keys where attention has one."""

from jaxtyping import Float
from torch import Tensor, nn

from bayesmem.ops.pointwise import product_dtype, rms_norm


class RMSNorm(nn.RMSNorm):
    """Root mean square norm, computed in float32 at least."""

    def forward(self, x: Float[Tensor, "*axes D"]) -> Float[Tensor, "*axes D"]:
        """``x / rms(x) * weight``, under autocast in the dtype in which a linear layer reads it."""
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps, dtype=product_dtype(x))
