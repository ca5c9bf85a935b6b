"""A launch asks Triton once for each kind of arguments that it would compile anew for."""

import pytest
import torch

from bayesmem.ops.triton.launched import Launched, cdiv, power_of_two

ARGUMENTS = ("x", "y", "count", "K", "C")


class Compiled:
    def __init__(self, told):
        self.told = told

    def __getitem__(self, grid):
        return lambda *args: self.told.append(("again", grid, args))


class Kernel:
    """What ``Launched`` needs of a kernel."""

    arg_names = ARGUMENTS

    def __init__(self):
        self.told = []

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.told.append(("bound", grid, args, options))
            return Compiled(self.told)

        return launch


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return Launched(Kernel())


def ways(kernel):
    return [told[0] for told in kernel.told]


OPTIONS = {"C": 8, "K": 4, "num_warps": 2}


def test_the_second_launch_gives_all_arguments_in_the_kernels_order(kernel):
    x, y = torch.zeros(64), torch.zeros(64)
    kernel[(7,)](x, None, 32, **OPTIONS)
    kernel[(3, 2)](y, None, 48, **OPTIONS)
    again = kernel.told[-1]
    assert ways(kernel) == ["bound", "again"] and again[1] == (3, 2, 1)
    assert again[2][0] is y and again[2][1:] == (None, 48, 4, 8)


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


def test_sizes():
    assert [cdiv(n, 16) for n in (1, 16, 17)] == [1, 1, 2]
    assert [power_of_two(n) for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]
