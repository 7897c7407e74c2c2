"""Numbers as a page shows them. An unknown number is a dash."""

from __future__ import annotations

ABSENT = "–"


def share(value: float | None) -> str:
    """Return a share in percent: `95.2%`."""
    return ABSENT if value is None else f"{value:.1%}"


def points(value: float | None) -> str:
    """Return a difference of shares in percentage points: `+3.1`."""
    return ABSENT if value is None else signed(100 * value, 1)


def signed(value: float, digits: int) -> str:
    """Return a number with its sign, and a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def seconds(value: float | None) -> str:
    """Return a duration with three digits: `4.21 ms`, `1.30 s`, `2 min 05 s`."""
    if value is None:
        return ABSENT
    if value >= 120:
        minutes, rest = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
    return f"{digits(value)} s" if value >= 1 else f"{digits(1e3 * value)} ms"


def short_seconds(value: float) -> str:
    """Return a duration for the tick of an axis: `0`, `50 ms`, `10 s`."""
    if not value:
        return "0"
    return f"{value:.4g} s" if value >= 1 else f"{1e3 * value:.4g} ms"


def whole_share(value: float) -> str:
    """Return a share for the tick of an axis: `50%`."""
    return f"{100 * value:.4g}%"


def digits(value: float | None) -> str:
    """Return a number with three digits: `1,240`, `98.2`, `0.0141`."""
    if value is None:
        return ABSENT
    if abs(value) < 1e-3:
        return f"{value:.1e}" if value else "0"
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def three_digits(value: float) -> str:
    """Return a number as short as three digits allow: `0.00327`, `9.17e-06`."""
    return f"{value:.3g}"


def signed_digits(value: float) -> str:
    """Return a number with its sign and three digits, or whole: `+1,799`, `-0.000516`."""
    return f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}"


def count(value: float | None) -> str:
    """Return a whole number: `1,794`."""
    return ABSENT if value is None else f"{value:,.0f}"


def nats(value: float | None) -> str:
    """Return a difference of log-probabilities: `4.1e-06`, `0.05`."""
    if not value:
        return ABSENT if value is None else "0"
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.2g}"


def size(num_bytes: float | None) -> str:
    """Return a size: `11.2 MiB`."""
    if num_bytes is None:
        return ABSENT
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:,.0f} B" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} TiB"
