"""Every launch of a kept kernel, without a GPU: a process of its own, in which Triton neither interprets nor compiles.

Prints how often each kernel was launched again with what was kept of its first launch.
"""

import os
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # kernels are then what a GPU would be given
sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

import torch
from triton import JITFunction

from bayesmem.ops.triton import launched
from kernel_launches import OPTIONS, PATHS

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


def main():
    JITFunction.__getitem__ = getitem
    torch.cuda.current_device = lambda: 0
    launched.current_stream = lambda device: 0
    os.environ["TRITON_INTERPRET"] = "1"  # only so that a CPU is not refused
    for _ in range(2):
        for dtype, key_dim in ((torch.bfloat16, 64), (torch.bfloat16, 200), (torch.float32, 64)):
            for path in PATHS.values():
                path(dtype, key_dim, 48, 16)
    print(*(f"{name} {count}" for name, count in sorted(again.items())), sep="\n")


if __name__ == "__main__":
    main()
