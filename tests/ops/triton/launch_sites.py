"""Every launch of a kept kernel, without a GPU: a process of its own, in which Triton neither interprets nor compiles.

Prints how often each kernel was launched again with what was kept of its first launch.
"""

import os

os.environ.pop("TRITON_INTERPRET", None)  # kernels are then what a GPU would be given

import torch
from torch.nn.functional import normalize
from triton import JITFunction

from bayesmem.ops import bayesian_filter, validate
from bayesmem.ops.assumptions import Assumptions, PriorMixing
from bayesmem.ops.fused import norms
from bayesmem.ops.fused.short_convolution import short_convolution
from bayesmem.ops.triton import launched

OPTIONS = {"num_warps", "num_stages", "maxnreg"}
again: dict[str, int] = {}


class Compiled:
    function = packed_metadata = None

    def __init__(self, kernel):
        self.kernel = kernel

    def run(self, x, y, z, stream, function, packed_metadata, metadata, enter, leave, *args):
        assert len(args) == len(self.kernel.arg_names), self.kernel
        name = self.kernel.fn.__name__
        again[name] = again.get(name, 0) + 1


def getitem(kernel, grid):
    def launch(*args, **options):
        bound = set(kernel.arg_names[: len(args)]) | set(options)
        assert len(args) + len(set(options) - OPTIONS) == len(bound - OPTIONS) == len(kernel.arg_names), kernel
        return Compiled(kernel)

    return launch


def filtered(dtype, key_dim, structure, by_channel, wanted):
    decays = (2, 40, 4, key_dim) if by_channel else (2, 40, 4)
    q, k = (normalize(torch.randn(2, 40, 2, key_dim), dim=-1).to(dtype).requires_grad_() for _ in range(2))
    v = torch.randn(2, 40, 4, 48).to(dtype).requires_grad_()
    noise = {} if structure == "reset" else {"process_noise": PriorMixing(torch.full((2, 40, 4), -0.01))}
    gates = (torch.full(decays, -0.1), torch.ones(2, 40, 4))
    out = bayesian_filter(q, k, v, *gates, Assumptions(covariance=structure, **noise), backend="triton", outputs=wanted)
    (out.o.float().sum() + sum(getattr(out, name).sum() for name in wanted)).backward()


def normed():
    x, other = (torch.randn(3, 40, 64, requires_grad=True) for _ in range(2))
    norms.norm_op(x, other, torch.ones(64, requires_grad=True), 1e-6, "silu", x.dtype).sum().backward()
    norms.norm_op(x, None, None, 1e-6, None, x.dtype).sum().backward()
    sum(part.sum() for part in norms.unit_norm_op(x, 1e-6)).backward()
    norms.gated_product_op(x, other).sum().backward()
    short_convolution(x, torch.ones(64, 4, requires_grad=True)).sum().backward()


def main():
    JITFunction.__getitem__ = getitem
    torch.cuda.current_device = lambda: 0
    launched.current_stream = lambda device: 0
    validate.check_values = lambda named: None  # what is not computed holds anything
    os.environ["TRITON_INTERPRET"] = "1"  # only so that a CPU is not refused
    for _ in range(2):
        for dtype, key_dim in ((torch.bfloat16, 64), (torch.bfloat16, 200), (torch.float32, 64)):
            for structure, by_channel in (("full", False), ("reset", False), ("reset", True)):
                for wanted in (("log_evidence",), ("log_evidence", "predictive_var")):
                    filtered(dtype, key_dim, structure, by_channel, wanted)
        normed()
    print(*(f"{name} {count}" for name, count in sorted(again.items())), sep="\n")


if __name__ == "__main__":
    main()
