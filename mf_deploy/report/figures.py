"""Numbers as a reader wants them: few digits, a real minus sign, no exponents."""

import math

MINUS = "\u2212"


def digits(value: float, significant: int = 3) -> str:
    """``significant`` digits without an exponent: 0.0123, 4.56, 12345."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else str(value)
    places = max(0, significant - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(places, 12)}f}".replace("-", MINUS)


def points(value: float) -> str:
    """Percentage points, two places."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", MINUS)


def megabytes(count: int) -> str:
    """Bytes in units of 10^6."""
    return digits(count / 1e6)


def count(value: int) -> str:
    """A count with an SI letter: 25.9 M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{digits(value / limit)} {letter}"
    return str(value)


def scientific(value: float) -> str:
    """Two digits and a power of ten, as for an error: 1.2e-06."""
    return f"{value:.1e}".replace("-", MINUS)
