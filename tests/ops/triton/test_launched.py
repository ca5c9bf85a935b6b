"""A launch asks Triton once for each kind of arguments that it would compile anew for."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton import knobs

from bayesmem.ops import triton as triton_kernels
from bayesmem.ops.triton.launched import Launched
from bayesmem.ops.triton.sizes import block, cdiv, power_of_two

SITES = Path(__file__).with_name("launch_sites.py")
ARGUMENTS = ("x", "y", "count", "K", "C")


class Compiled:
    """What ``Launched`` needs of a compiled kernel."""

    function, packed_metadata = "function", "metadata"

    def __init__(self, told):
        self.told = told

    def run(self, x, y, z, *args):
        self.told.append(("again", (x, y, z), args))


class Param:
    def __init__(self, name):
        self.is_constexpr = name.isupper()


class Kernel:
    """What ``Launched`` needs of a kernel."""

    arg_names = ARGUMENTS
    params = tuple(map(Param, ARGUMENTS))

    def __init__(self):
        self.told = []
        self.answer = Compiled(self.told)

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.told.append(("bound", grid, args, options))
            return self.answer

        return launch


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr("bayesmem.ops.triton.launched.current_stream", lambda device: 70 + device)
    return Launched(Kernel())


def ways(kernel):
    return [told[0] for told in kernel.kernel.told]


OPTIONS = {"C": 8, "K": 4, "num_warps": 2}


def test_the_second_launch_gives_all_arguments_in_the_kernels_order(kernel):
    x, y = torch.zeros(64), torch.zeros(64)
    kernel[(7,)](x, None, 32, **OPTIONS)
    kernel[(3, 2)](y, None, 48, **OPTIONS)
    again = kernel.kernel.told[-1]
    assert ways(kernel) == ["bound", "again"] and again[1] == (3, 2, 1)
    assert again[2][:6] == (70, "function", "metadata", None, None, None)
    assert again[2][6] is y and again[2][7:] == (None, 48, 4, 8)


@pytest.mark.parametrize(
    "other",
    [
        (torch.zeros(64).half(), None, 32),
        (torch.zeros(64)[1:], None, 32),  # not at a multiple of 16 bytes
        (torch.zeros(64), torch.zeros(64), 32),
        (torch.zeros(64), None, 1),
        (torch.zeros(64), None, 33),
        (torch.zeros(64), None, 2**40),
        (torch.zeros(64), None, 32.0),
        (torch.zeros(64), None, True),
    ],
    ids=["dtype", "unaligned", "given", "one", "not a multiple", "wide", "float", "bool"],
)
def test_what_triton_compiles_anew_for_is_bound_anew(kernel, other):
    kernel[(7,)](torch.zeros(64), None, 32, **OPTIONS)
    kernel[(7,)](*other, **OPTIONS)
    kernel[(7,)](*other, **OPTIONS)
    assert ways(kernel) == ["bound", "bound", "again"]


def test_options_and_devices_are_told_apart(kernel, monkeypatch):
    given = (torch.zeros(64), None, 32)
    kernel[(7,)](*given, **OPTIONS)
    kernel[(7,)](*given, **OPTIONS | {"num_warps": 4})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    kernel[(7,)](*given, **OPTIONS)
    assert ways(kernel) == ["bound"] * 3


@pytest.mark.parametrize("which", ["launch_enter_hook", "launch_exit_hook"])
def test_a_profilers_hook_is_called_by_triton_itself(kernel, monkeypatch, which):
    given = (torch.zeros(64), None, 32)
    kernel[(7,)](*given, **OPTIONS)
    with monkeypatch.context() as hooked:
        hooked.setattr(knobs.runtime, which, lambda metadata: None)
        kernel[(7,)](*given, **OPTIONS)
    kernel[(7,)](*given, **OPTIONS)
    assert ways(kernel) == ["bound", "bound", "again"]


def test_a_constexpr_by_its_place_is_refused(kernel):
    with pytest.raises(TypeError, match="4 arguments in their order; expected 3, and every constexpr by its name"):
        kernel[(7,)](torch.zeros(64), None, 32, 4, C=8)
    assert not kernel.kernel.told


def test_what_was_not_compiled_is_not_kept(kernel):
    kernel.kernel.answer = None  # as a hook of Triton's may have it
    for _ in range(2):
        kernel[(7,)](torch.zeros(64), None, 32, **OPTIONS)
    assert ways(kernel) == ["bound", "bound"]


def test_sizes():
    assert [block(n) for n in (1, 17, 600)] == [16, 32, 512]
    assert [cdiv(n, 16) for n in (1, 16, 17)] == [1, 1, 2]
    assert [power_of_two(n) for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]


def test_every_launch_gives_what_its_kernel_takes():
    """The kept kernels, each with all that it takes, and again from what is kept."""
    done = subprocess.run([sys.executable, SITES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = {line.split()[0] for line in done.stdout.splitlines()}
    source = "".join(path.read_text() for path in Path(triton_kernels.__file__).parent.glob("*.py"))
    assert again == set(re.findall(r"@launched\n@triton\.jit.*\n@no_type_check\ndef (\w+)\(", source)) and again
