"""A reduction: a design, a peer, and how the inputs of both come from the same leaves.

So gradients are compared where the inputs begin: raw keys, the peer's gates, and so on. The table of
reductions is in ``driven`` (latent inputs) and ``measured``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

Leaves = Mapping[str, Tensor]
Run = Callable[..., Tensor]  # model.filter of the design, giving its outputs

RELEASES = ("fla", "transformers", "qwen")  # what the names of released peers begin with
# Log decays: hardly any, nearly all at every token, and both with hard resets among them.
DECAYS = {"weak": (-0.05, -1e-3), "strong": (-12.0, -3.0)}
RANGES = {
    "beta": (0.02, 0.98),
    "noise": (0.05, 1.0),
    "head_noise": (0.1, 1.0),
    "channel_noise": (0.05, 1.0),
    "step": (0.1, 2.0),
    "lamb": (0.5, 1.5),
    "retention": (-1.0, -0.1),
    "head_discount": (-0.3, -0.01),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a case and the strength of its decays."""

    name: str
    T: int
    decays: str = "mixed"
    G: int = 2
    H: int = 2
    B: int = 2
    K: int = 4
    V: int = 3


SHAPES = [
    Shape("one-token", 1),
    Shape("short-strong", 13, "strong"),
    Shape("long-weak", 70, "weak"),
    Shape("long-mixed", 70, B=1, K=6, V=5),
    Shape("grouped", 37, H=6, B=1),
]


@dataclass(frozen=True)
class Reduction:
    """A design of the zoo and a peer that it is equal to.

    Attributes:
        design: name in ``ZOO``.
        peer: what it is held against, in words.
        leaves: axes of the inputs that both sides read, by name; the name tells the distribution.
        ours, theirs: outputs ``[B, T, H, V]`` from the leaves.
        multiple: lengths the peer takes are multiples of this.
        grouped: whether the peer takes more value heads than key heads.
        grad: whether the peer can be differentiated.
        decays: strengths it can be differentiated under.
        rtol: relative tolerance in float64.
    """

    design: str
    peer: str
    leaves: Mapping[str, str]
    ours: Callable[[Run, Leaves], Tensor]
    theirs: Callable[[Leaves], Tensor]
    multiple: int = 1
    grouped: bool = False
    grad: bool = True
    decays: tuple[str, ...] = ("weak", "strong", "mixed")
    rtol: float = field(default=1e-9, repr=False)

    def __str__(self) -> str:
        return f"{self.design}={self.peer}"

    def shapes(self) -> list[Shape]:
        timeless = not any("decay" in name for name in self.leaves)
        wanted = [s for s in SHAPES if (self.grouped or s.G == s.H) and s.decays in self.decays]
        return [s for s in wanted if not (timeless and s.name == "short-strong")]


def make_leaves(reduction: Reduction, shape: Shape, seed: int) -> dict[str, Tensor]:
    """Random inputs in float64, the length rounded up to what the peer takes."""
    rng = torch.Generator().manual_seed(seed)
    length = -(-shape.T // reduction.multiple) * reduction.multiple
    sizes = vars(shape) | {"T": length, "N": 2 * length, "1": 1}

    def uniform(size: list[int], low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=rng, dtype=torch.float64)

    found = {}
    for name, axes in reduction.leaves.items():
        size = [sizes[axis] for axis in axes.split()]
        if name == "decay":
            x = uniform(size, *DECAYS.get(shape.decays, DECAYS["weak"]))
            if shape.decays == "mixed":
                other, pick = uniform(size, *DECAYS["strong"]), uniform(size, 0, 1)
                x = torch.where(pick < 0.1, other, x).where(pick > 0.02, torch.tensor(-55.0, dtype=x.dtype))
        elif name in RANGES:
            x = uniform(size, *RANGES[name])
        else:
            x = torch.randn(size, generator=rng, dtype=torch.float64)
        found[name] = x.requires_grad_()
    return found


# Inputs of one as inputs of the other ------------------------------------------------------------


def scaled(q: Tensor) -> Tensor:
    """The peers scale queries by ``K^-1/2``; ours are taken as they come."""
    return q * q.shape[-1] ** -0.5


def unit(k: Tensor) -> Tensor:
    return normalize(k, dim=-1)


def l2norm(x: Tensor) -> Tensor:
    """As Qwen3-Next has it, not quite of norm 1."""
    return x * torch.rsqrt(x.square().sum(-1, True) + 1e-6)


def short(k: Tensor) -> Tensor:
    """Keys of any norm below 1."""
    return k * (1 + k.square().sum(-1, True)).rsqrt()


def shared(k: Tensor, beta: Tensor) -> Tensor:
    """``|k|^2`` for each value head."""
    return k.square().sum(-1).repeat_interleave(beta.shape[2] // k.shape[2], 2)


def noise_of(beta: Tensor, k: Tensor | None = None) -> Tensor:
    """The noise under which the gain is ``beta k``: ``1 / beta - |k|^2``; for unit keys ``(1 - beta) / beta``."""
    return (1 - beta) / beta if k is None else 1 / beta - shared(k, beta)


def swap(*tensors: Tensor) -> list[Tensor]:
    return [x.transpose(1, 2) for x in tensors]


QKV = {"q": "B T G K", "k": "B T G K", "v": "B T H V"}
HEADS, CHANNELS = {"decay": "B T H"}, {"decay": "B T H K"}
