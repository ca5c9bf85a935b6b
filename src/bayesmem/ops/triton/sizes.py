"""Whole numbers of a launch on the host: Triton's own, which kernels can call too, take some microseconds each."""


def cdiv(size: int, step: int) -> int:
    """How many steps cover ``size``."""
    return -(-size // step)


def power_of_two(size: int) -> int:
    """The least that is ``size`` (at least 1) or more."""
    return 1 << (size - 1).bit_length()


def block(size: int, most: int = 512) -> int:
    """The power of two that covers ``size``, at least 16, which products ask for, and at most ``most``."""
    return min(max(power_of_two(size), 16), most)
