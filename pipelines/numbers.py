"""Numbers as people read them."""

from __future__ import annotations


def human_bytes(size: int) -> str:
    """A size in the unit that people read.

    >>> human_bytes(1_234_000)
    '1.2 MB'
    """
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def format_number(value: float) -> str:
    """A number as people read it: thousands apart, four significant digits.

    >>> format_number(20972), format_number(0.43794), format_number(-0.000485)
    ('20,972', '0.4379', '−0.000485')
    """
    text = f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 10_000 else f"{value:,.4g}"
    return text.replace("-", "−")
