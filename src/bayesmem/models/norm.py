"""The norm of the residual stream, and of queries and keys where attention has one."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.RMSNorm):
    """Root mean square norm, computed in float32 at least."""

    def forward(self, x: Float[Tensor, "*axes D"]) -> Float[Tensor, "*axes D"]:
        """``x / rms(x) * weight``."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        weight = self.weight.to(wide.dtype)
        return F.rms_norm(wide, (x.shape[-1],), weight, self.eps).to(x.dtype)
