"""From hidden states to the filter's decay, retention and observation noise, in float32 at least."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bayesmem.layers.config import BayesianLayerConfig

BETA_LOGIT_BOUND = 30.0  # observation noise within e^-30 ... e^30


class Gates(nn.Module):
    """What each head and token assumes of time and noise.

    ``log_decay = -exp(A_log) softplus(a + dt_bias)`` as in Mamba-2 and Gated DeltaNet;
    ``obs_noise = exp(-b)``, of which ``beta = sigmoid(b)`` is the reset case with unit keys;
    ``rho^2 = sigmoid(c)`` (the gate is on rho^2: at rho = 0 the gradient of rho^2 in rho vanishes).

    Args:
        config: sizes and which gates there are.
    """

    def __init__(self, config: BayesianLayerConfig):
        super().__init__()
        self.config = config
        heads = config.value_heads
        self.b_proj = nn.Linear(config.hidden_size, heads, bias=False)
        if config.decay:
            self.a_proj = nn.Linear(config.hidden_size, heads, bias=False)
            self.A_log = nn.Parameter(torch.empty(heads))
            self.dt_bias = nn.Parameter(torch.empty(heads))
        if config.carries_cov and config.retention == "learned":
            self.retention_proj = nn.Linear(config.hidden_size, heads, bias=False)
            self.retention_bias = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start decays as Mamba-2 does and the retention at ``retention_init``."""
        with torch.no_grad():
            if self.config.decay:
                self.A_log.copy_(torch.empty_like(self.A_log).uniform_(1, 16).log())
                low, high = math.log(1e-3), math.log(0.1)
                dt = torch.empty_like(self.dt_bias).uniform_(low, high).exp()
                self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse softplus
            if hasattr(self, "retention_bias"):
                self.retention_bias.fill_(math.log(self.config.retention_init / (1 - self.config.retention_init)))

    def forward(
        self, x: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        """``log_decay``, ``log_retention`` and ``obs_noise`` of every token."""
        beta_logit = _wide(self.b_proj(x)).clamp(-BETA_LOGIT_BOUND, BETA_LOGIT_BOUND)
        obs_noise = torch.exp(-beta_logit)
        if self.config.decay:
            rate = F.softplus(_wide(self.a_proj(x)) + _wide(self.dt_bias))
            log_decay = -_wide(self.A_log).exp() * rate
        else:
            log_decay = torch.zeros_like(obs_noise)
        if hasattr(self, "retention_bias"):
            log_retention = 0.5 * F.logsigmoid(_wide(self.retention_proj(x)) + _wide(self.retention_bias))
        elif self.config.retention == "decay":
            log_retention = log_decay
        else:
            log_retention = torch.zeros_like(obs_noise)
        return log_decay, log_retention, obs_noise


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
