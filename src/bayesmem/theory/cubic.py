"""The largest real root of a cubic, which two predictions come down to (capacity, drift)."""

import numpy as np

from bayesmem.theory.domains import Floats


def largest_root(cubed: Floats, squared: Floats, linear: Floats, constant: Floats) -> Floats:
    """Largest real root of a cubic with a positive leading coefficient.

    By bisection, of an interval that holds this root alone: right of the local minimum where that is not above
    0, else left of the local maximum. Cardano's formula would do, but loses digits to subtraction.

    Args:
        cubed: coefficient of x^3, positive.
        squared: of x^2.
        linear: of x.
        constant: of 1; arguments broadcast.

    Returns:
        The root, as exactly as the sign of the cubic can be told.

    Source: the shape of a cubic; Fujiwara's bound on its roots.
    """
    b, c, d = squared / cubed, linear / cubed, constant / cubed
    bound = 2 * np.maximum(np.abs(b), np.maximum(np.sqrt(np.abs(c)), np.cbrt(np.abs(d))))
    # Both extrema from the sum of like signs, 3 x + b = -+ root, and the product of the two, c / 3.
    discriminant = b**2 - 3 * c
    summed = -(b + np.copysign(np.sqrt(np.maximum(discriminant, 0)), b))
    one, other = summed / 3, c / np.where(summed == 0, 1.0, summed)
    dip, hump = np.maximum(one, other), np.minimum(one, other)
    folded = discriminant > 0
    beyond = folded & (_cubic(dip, b, c, d) <= 0)
    low = np.where(beyond, dip, -bound)
    high = np.where(folded & ~beyond, np.minimum(hump, bound), bound)
    for _ in range(110):
        middle = (low + high) / 2
        below = _cubic(middle, b, c, d) <= 0
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


def _cubic(x: Floats, b: Floats, c: Floats, d: Floats) -> Floats:
    return ((x + b) * x + c) * x + d
