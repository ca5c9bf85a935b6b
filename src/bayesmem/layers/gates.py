"""From hidden states to what a design needs besides q, k and v, in float32 at least."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bayesmem.layers.config import BayesianLayerConfig

BETA_LOGIT_BOUND = 30.0  # observation noise within e^-30 ... e^30
PROCESS_NOISE_INIT = 1e-3
STEP_INIT = 0.01  # the middle of Mamba-2's draws
PREFIXES = {
    "log_retention": "retention",
    "log_discount": "discount",
    "process_noise": "process_noise",
    "step": "step",
}


class Gates(nn.Module):
    """One gate for each input of the design's recurrence, ``design.recurrence.inputs``.

    ===============  ==================================================  ==============================
    input            given at every token                                one number a head
    ===============  ==================================================  ==============================
    log_decay        ``-exp(A_log) softplus(a + dt_bias)`` (Mamba-2)     ``logsigmoid``, from RetNet's
    step             ``softplus(a + dt_bias)``, the decay's own rate;
                     beside other decays ``softplus(s)``
    log_retention    ``logsigmoid(c) / 2``: the gate is on rho^2         likewise
    log_discount     ``logsigmoid(c)``                                   likewise
    process_noise    ``softplus(n)``                                     likewise
    obs_noise        ``exp(-b)``; at reset, ``beta = sigmoid(b)``        likewise
    prior_var                                                            ``exp``, from 1
    ===============  ==================================================  ==============================

    The retention's gate is on rho^2 since at rho = 0 the gradient of rho^2 in rho vanishes.

    Args:
        config: sizes and design.
    """

    def __init__(self, config: BayesianLayerConfig):
        super().__init__()
        self.config = config
        self.axes = {x.name: x.axes for x in config.model.recurrence.inputs}
        if "obs_noise" in self.axes:
            if self._at_token("obs_noise"):
                self.b_proj = nn.Linear(config.hidden_size, config.value_heads * config.measurements, bias=False)
            else:
                self.b_bias = nn.Parameter(torch.empty(self._width("obs_noise")))
        if self._at_token("log_decay"):
            self.a_proj = nn.Linear(config.hidden_size, self._width("log_decay"), bias=False)
            self.A_log = nn.Parameter(torch.empty(config.value_heads))
            self.dt_bias = nn.Parameter(torch.empty(self._width("log_decay")))
        elif "log_decay" in self.axes:
            self.decay_bias = nn.Parameter(torch.empty(self._width("log_decay")))
        # Mamba-2's step is the rate of its decay; beside another decay it has a gate of its own.
        self.step_is_rate = "step" in self.axes and self.axes.get("log_decay") == "B T H"
        for name, prefix in PREFIXES.items():
            if name in self.axes and not (name == "step" and self.step_is_rate):
                if self._at_token(name):
                    setattr(self, f"{prefix}_proj", nn.Linear(config.hidden_size, self._width(name), bias=False))
                setattr(self, f"{prefix}_bias", nn.Parameter(torch.empty(self._width(name))))
        if "prior_var" in self.axes:
            self.log_prior_var = nn.Parameter(torch.empty(self._width("prior_var")))
        self.reset_parameters()

    def _at_token(self, name: str) -> bool:
        return self.axes.get(name, "").startswith("B")

    def _width(self, name: str) -> int:
        return self.config.value_heads * (self.config.head_dim if self.axes[name].endswith("K") else 1)

    def reset_parameters(self) -> None:
        """Start decays at ``decay_init``, or as Mamba-2 or RetNet do, and certainty kept at ``retention_init``."""
        kept, remembered = self.config.retention_init, self.config.decay_init
        with torch.no_grad():
            if hasattr(self, "A_log"):
                self.A_log.copy_(torch.empty_like(self.A_log).uniform_(1, 16).log())
            if hasattr(self, "dt_bias"):
                low, high = math.log(1e-3), math.log(0.1)
                dt = torch.empty_like(self.dt_bias).uniform_(low, high).exp()
                self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse softplus
            if hasattr(self, "decay_bias"):  # 1 - 2^(-5 - h), RetNet's
                heads = torch.arange(self.config.value_heads, device=self.decay_bias.device)
                lost = torch.exp2(-5.0 - heads).repeat_interleave(self.decay_bias.numel() // len(heads))
                self.decay_bias.copy_(torch.log1p(-lost) - lost.log())
            starts = {"b_bias": 0.0, "step_bias": 0.0, "log_prior_var": 0.0}
            starts |= dict.fromkeys(("retention_bias", "discount_bias"), math.log(kept / (1 - kept)))
            starts["process_noise_bias"] = math.log(math.expm1(PROCESS_NOISE_INIT))
            if remembered is not None:
                # The step stays as large as Mamba-2's, since it may be the strength of the write too.
                starts["A_log"] = math.log(-math.log(remembered) / STEP_INIT)
                starts["dt_bias"] = math.log(math.expm1(STEP_INIT))
                starts["decay_bias"] = math.log(remembered / (1 - remembered))
            for name, value in starts.items():
                if hasattr(self, name):
                    getattr(self, name).fill_(value)

    def forward(self, x: Float[Tensor, "B T D"]) -> dict[str, Tensor]:
        """Every input of the design, by name, in the shapes that ``filter_design`` takes."""
        given: dict[str, Tensor] = {}
        if "obs_noise" in self.axes:
            logit = self._logit("b", x).clamp(-BETA_LOGIT_BOUND, BETA_LOGIT_BOUND)
            # beta = 2 sigmoid(b) where it may reach 2: 1 / beta - 1 is then (e^-b - 1) / 2
            given["obs_noise"] = torch.expm1(-logit) / 2 if self.config.allow_neg_eigval else torch.exp(-logit)
        if hasattr(self, "a_proj"):
            rate = F.softplus(_wide(self.a_proj(x)) + _wide(self.dt_bias))
            speed = _wide(self.A_log).exp()
            given["log_decay"] = -(speed[:, None] * rate.unflatten(-1, (len(speed), -1))).flatten(-2)
            if self.step_is_rate:
                given["step"] = rate
        if hasattr(self, "decay_bias"):
            given["log_decay"] = F.logsigmoid(_wide(self.decay_bias))
        if "log_retention" in self.axes:
            given["log_retention"] = 0.5 * F.logsigmoid(self._logit("retention", x))
        if "log_discount" in self.axes:
            given["log_discount"] = F.logsigmoid(self._logit("discount", x))
        if "step" in self.axes and not self.step_is_rate:
            given["step"] = F.softplus(self._logit("step", x))
        if "process_noise" in self.axes:
            given["process_noise"] = F.softplus(self._logit("process_noise", x))
        if "prior_var" in self.axes:
            given["prior_var"] = _wide(self.log_prior_var).exp()
        return {name: self._shaped(name, value) for name, value in given.items()}

    def _logit(self, prefix: str, x: Tensor) -> Tensor:
        """The gate's projection, its bias, or both, whichever it has."""
        terms = [_wide(getattr(self, f"{prefix}_proj")(x))] if hasattr(self, f"{prefix}_proj") else []
        if hasattr(self, f"{prefix}_bias"):
            terms.append(_wide(getattr(self, f"{prefix}_bias")))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    def _shaped(self, name: str, value: Tensor) -> Tensor:
        """Channels, and several measurements a token, on axes of their own."""
        if "N" in self.axes[name].split():
            return value.unflatten(-1, (self.config.measurements, -1)).flatten(1, 2)
        return value.unflatten(-1, (self.config.value_heads, -1)) if self.axes[name].endswith("K") else value


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
