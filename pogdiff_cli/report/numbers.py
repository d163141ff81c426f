"""Numbers as words on a page: as many digits as they deserve, aligned, with a true minus sign."""

from __future__ import annotations

from collections.abc import Iterable

MISSING = "n/a"


def decimals(values: Iterable[float | None]) -> int:
    """Digits after the point that give the largest of these about three significant ones."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    for digits, bound in ((1, 100.0), (2, 1.0), (3, 0.01), (4, 0.001)):
        if largest >= bound:
            return digits
    return 5 if largest > 0 else 2


def share_decimals(values: Iterable[float | None]) -> int:
    """Two digits for a share, three where all are below a tenth."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return 3 if 0 < largest < 0.1 else 2


def number(value: float | None, digits: int, *, signed: str = "") -> str:
    """One number; ``signed="+"`` for a difference. None is "n/a"."""
    if value is None:
        return MISSING
    text = f"{value:{signed}.{digits}f}"
    if float(text) == 0:  # no "-0.00"
        text = f"{0.0:{signed}.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None, digits: int, *, signed: str = "") -> str | None:
    """Such as "0.18 to 0.44"; None where there is no interval."""
    if low is None or high is None:
        return None
    return f"{number(low, digits, signed=signed)} to {number(high, digits, signed=signed)}"


def p_value(p: float | None) -> str:
    """Such as "p = 0.012" or "p < 0.001"."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def count(n: int, one: str, many: str | None = None) -> str:
    """Such as "1 identity" or "7 identities"."""
    return f"{n:,} {one if n == 1 else many or one + 's'}".replace(",", "\N{NARROW NO-BREAK SPACE}")
