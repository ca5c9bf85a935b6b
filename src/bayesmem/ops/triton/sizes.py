"""Whole numbers of a launch on the host: Triton's own, which kernels can call too, take some microseconds each."""


def cdiv(size: int, step: int) -> int:
    """How many steps cover ``size``."""
    return -(-size // step)


def power_of_two(size: int) -> int:
    """The least that is ``size`` (at least 1) or more."""
    return 1 << (size - 1).bit_length()
