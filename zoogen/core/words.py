"""Numbers as people read them."""

from __future__ import annotations


def counted(count: int, what: str) -> str:
    """``1 model``, ``2,000 models``."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def in_bytes(count: float) -> str:
    """``512 bytes``, ``3.2 MB``, ``2.74 TB``: powers of ten, three digits."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} bytes" if unit == "bytes" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB" if value < 1000 else f"{value:,.0f} TB"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
