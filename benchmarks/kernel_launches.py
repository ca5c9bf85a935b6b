"""Every launch of a Triton kernel that calls of this library make, recorded with tensors of a CPU and not run.

What is recorded is what Triton would compile a kernel for. Results hold anything, so that nothing may be made of them.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import normalize
from triton import JITFunction

from bayesmem.ops import Assumptions, PriorMixing, bayesian_filter, fused, precision_kernel
from bayesmem.ops.api import Backend
from bayesmem.ops.fused import norms
from bayesmem.ops.fused.short_convolution import short_convolution
from bayesmem.ops.triton import covariance_segments, mean_chain
from bayesmem.ops.triton.launched import ALIGNED, Launched
from bayesmem.types import Belief

OPTIONS = {"num_warps", "num_stages", "maxnreg"}
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
BATCH, LENGTH, GROUPS, HEADS = 2, 80, 2, 4
EVERYTHING = ("predictive_var", "log_evidence", "final_belief")


@dataclass(frozen=True, slots=True)
class Launch:
    """What one kernel is compiled for; the first four as ``triton.compiler.ASTSource`` takes them.

    Attributes:
        kernel: made by ``triton.jit``.
        signature: the type of every argument, by name.
        constants: values of those that are compiled in, by place.
        attributes: what else is known of the others, by place.
        options: warps and stages.
        caller: who launched it first: path, dtype, sizes.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[tuple[int], Any]
    attributes: dict[tuple[int], list[list[Any]]]
    options: dict[str, int]
    caller: str

    @property
    def name(self) -> str:
        """Module and function."""
        return f"{self.kernel.fn.__module__.split('.')[-1]}.{self.kernel.fn.__name__}"


def launch_of(kernel: Any, args: tuple[Any, ...], named: dict[str, Any], caller: str) -> Launch:
    """Arguments told apart as Triton does for a GPU of NVIDIA's.

    Raises:
        KeyError: an argument is missing or unknown, or a tensor of a dtype that no kernel has taken so far.
        TypeError: an argument is neither tensor nor number.
    """
    given = dict(zip(kernel.arg_names, args, strict=False)) | named
    signature, constants, attributes = {}, {}, {}
    for place, (name, param) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        x, special, aligned = given.pop(name), not param.do_not_specialize, False
        if param.is_constexpr or x is None or (type(x) is int and x == 1 and special):
            signature[name], constants[place,] = "constexpr", x
        elif isinstance(x, Tensor):
            signature[name], aligned = POINTERS[x.dtype], x.data_ptr() % ALIGNED == 0
        elif type(x) is int:
            signature[name], aligned = "i64" if x.bit_length() > 31 else "i32", x % ALIGNED == 0
        elif type(x) is float:
            signature[name] = "fp32"
        else:
            raise TypeError(f"{name} of {kernel.fn.__name__} is a {type(x).__name__}.")
        if aligned and special:
            attributes[place,] = [["tt.divisibility", ALIGNED]]
    if unknown := given.keys() - OPTIONS:
        raise KeyError(f"{kernel.fn.__name__} has no {', '.join(sorted(unknown))}")
    return Launch(kernel, signature, constants, attributes, given, caller)


@contextmanager
def recording(caller: str, launches: dict[str, Launch]) -> Iterator[None]:
    """Every launch goes to ``launches`` by all that it is compiled for, the first of a kind only."""

    def record(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **named: Any) -> None:
            made = launch_of(kernel, args, named, caller)
            key = repr((made.name, made.signature, made.constants, made.attributes, made.options))
            launches.setdefault(key, made)

        return launch

    with (
        patch.object(JITFunction, "__getitem__", record),
        patch.object(Launched, "__getitem__", lambda self, grid: record(self.kernel, grid)),
        patch.dict(os.environ, TRITON_INTERPRET="1"),  # only so that a CPU is not refused
    ):
        yield


def streams(dtype: torch.dtype, key_dim: int, value_dim: int, length: int = LENGTH) -> list[Tensor]:
    """q, k, v, that gradients are asked for."""
    q, k = (normalize(torch.randn(BATCH, length, GROUPS, key_dim), dim=-1).to(dtype) for _ in range(2))
    return [x.requires_grad_() for x in (q, k, torch.randn(BATCH, length, HEADS, value_dim).to(dtype))]


def filtered(
    assumptions: dict[str, Any], by_channel: bool, dtype: torch.dtype, key_dim: int, value_dim: int, chunk: int
) -> None:
    """Forward and backward with all that can be asked for and a belief to start from, and with nothing of it."""
    x, latent = streams(dtype, key_dim, value_dim), assumptions.get("write") == "latent_input"
    decay = torch.full((BATCH, LENGTH, HEADS, key_dim) if by_channel else (BATCH, LENGTH, HEADS), -0.1)
    gates = (decay.requires_grad_(), None if latent else torch.ones(BATCH, LENGTH, HEADS).requires_grad_())
    a, sizes = Assumptions(**assumptions), {"full": (key_dim, key_dim), "diagonal": (key_dim,), "isotropic": (1,)}
    cov = sizes.get(a.covariance)
    mean = torch.zeros(BATCH, HEADS, key_dim, value_dim, requires_grad=True)
    belief = Belief(mean, None if cov is None else torch.ones(BATCH, HEADS, *cov).requires_grad_())
    every = ("final_belief",) if latent else EVERYTHING
    for initial, outputs in ((belief, every), (None, ())):
        options: dict[str, Any] = {"backend": Backend("triton", chunk), "validate": False, "outputs": outputs}
        out = bayesian_filter(*x, *gates, a, initial_belief=initial, **options)
        last = out.final_belief
        found = (out.o, out.predictive_var, out.log_evidence, *((last.mean, last.cov) if last else ()))
        sum(y.float().sum() for y in found if y is not None and y.requires_grad).backward()
        with torch.no_grad():
            bayesian_filter(*x, *gates, a, initial_belief=initial, **options)


def segmented(dtype: torch.dtype, key_dim: int, value_dim: int, chunk: int) -> None:
    """Sequences cut into segments, as long ones of few heads are."""
    cuts = (chunk, 2)
    with (
        patch.object(covariance_segments, "CUTS", cuts),
        patch.object(mean_chain, "CUTS", cuts),
    ):
        length = 4 * chunk
        x, gate = streams(dtype, key_dim, value_dim, length), torch.ones(BATCH, length, HEADS)
        noise = PriorMixing(-0.01 * gate)
        backend = Backend("triton", chunk)
        out = bayesian_filter(*x, -gate, gate, Assumptions("full", noise), backend=backend, validate=False)
        out.o.float().sum().backward()


def decoded(dtype: torch.dtype, key_dim: int, value_dim: int, chunk: int) -> None:
    """One token, of every structure that has a step of its own."""
    q, k = (torch.randn(BATCH, GROUPS, key_dim).to(dtype) for _ in range(2))
    v, gate, floor = torch.randn(BATCH, HEADS, value_dim).to(dtype), torch.ones(BATCH, HEADS), torch.ones(HEADS)
    mean = torch.zeros(BATCH, HEADS, key_dim, value_dim)
    for wanted in ((True, True), (False, False)):
        for covariance, size in (("full", (key_dim, key_dim)), ("diagonal", (key_dim,))):
            cov = torch.ones(BATCH, HEADS, *size)
            fused.decode_op(q, k, v, gate, gate, gate, gate, floor, mean, cov, None, covariance, *wanted)
        fused.decode_op(q, k, v, gate, None, None, gate, None, mean, None, torch.ones(HEADS), "reset", *wanted)


def mesanet(dtype: torch.dtype, key_dim: int, value_dim: int, chunk: int) -> None:
    """Log-linear mixing: reads solved for by chunk, and the write in float32, whatever the streams are."""
    if key_dim > precision_kernel.MAX_KEY_DIM:
        return
    tokens = torch.randn(BATCH, precision_kernel.CHUNK, key_dim)
    start, weight = torch.ones(BATCH, key_dim, key_dim), torch.ones(BATCH, *[precision_kernel.CHUNK] * 2)
    fused.solve_chunks(start, tokens[..., :1], tokens, tokens, weight, tokens, 4 * key_dim, precision_kernel.TOLERANCE)
    q, k = (torch.randn(BATCH, HEADS, LENGTH, key_dim, requires_grad=True) for _ in range(2))
    v, decay = torch.randn(BATCH, HEADS, LENGTH, value_dim).to(dtype), torch.zeros(BATCH, HEADS, LENGTH, 1)
    state = torch.zeros(BATCH, HEADS, key_dim, value_dim, requires_grad=True)
    with patch.object(precision_kernel, "chunk_size", lambda *_: chunk):
        precision_kernel.kernel_write(q, k, v.requires_grad_(), decay.requires_grad_(), state).sum().backward()


def around(dtype: torch.dtype, key_dim: int, value_dim: int, chunk: int) -> None:
    """Norms of values, unit norms of keys, gated products and short convolutions of all channels."""
    x, other = (torch.randn(BATCH, LENGTH, HEADS * value_dim).to(dtype).requires_grad_() for _ in range(2))
    for weight in (torch.ones(HEADS * value_dim), torch.ones(HEADS * value_dim, dtype=dtype)):
        norms.norm_op(x, None, weight.requires_grad_(), 1e-6, None, x.dtype).sum().backward()
        taps, position = torch.ones(len(weight), 4, dtype=weight.dtype), torch.arange(LENGTH)
        for given in ((None, None, None), (weight, torch.ones(BATCH, 3, len(weight), dtype=dtype), position)):
            short_convolution(x, taps.requires_grad_(), *given).sum().backward()
    heads, gate = (y.detach().unflatten(-1, (HEADS, value_dim)).requires_grad_() for y in (x, other))
    for act in ("silu", "sigmoid"):
        weight = torch.ones(value_dim, requires_grad=True)
        norms.norm_op(heads, gate, weight, 1e-6, act, x.dtype).sum().backward()
    norms.norm_op(heads, None, None, 1e-6, None, x.dtype).sum().backward()
    keys = torch.randn(BATCH, LENGTH, GROUPS, key_dim).to(dtype).requires_grad_()
    sum(part.float().sum() for part in norms.unit_norm_op(keys, 1e-6)).backward()
    norms.gated_product_op(x, other).sum().backward()


def of_structure(covariance: str, by_channel: bool = False, **more: Any) -> Callable[..., None]:
    """A filter of this structure, its retention a gate of its own where it carries one."""
    if covariance in ("full", "diagonal", "isotropic"):
        more["process_noise"] = PriorMixing(torch.full((BATCH, LENGTH, HEADS), -0.01, requires_grad=True))
    return lambda *sizes: filtered({"covariance": covariance, **more}, by_channel, *sizes)


# Of dtype, K, V and tokens a chunk.
PATHS: dict[str, Callable[[torch.dtype, int, int, int], None]] = {
    "full": of_structure("full"),
    "full-prior": of_structure("full", prior_var=torch.ones(HEADS, requires_grad=True)),
    "full-tied": lambda *sizes: filtered({"covariance": "full"}, False, *sizes),
    "diagonal": of_structure("diagonal"),
    "isotropic": of_structure("isotropic"),
    "steady_state": of_structure("steady_state", steady_var=torch.ones(HEADS)),
    "reset": of_structure("reset"),
    "reset-channel": of_structure("reset", by_channel=True),
    "latent": of_structure("none", write="latent_input"),
    "latent-channel": of_structure("none", by_channel=True, write="latent_input"),
    "segments": segmented,
    "decode": decoded,
    "mesanet": mesanet,
    "around": around,
}
