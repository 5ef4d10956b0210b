"""Numbers as people read them: with a unit, and with three figures."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["bytes_text", "figures_text", "percent", "ranks_text", "seconds_text", "since_text"]


def figures_text(value: float) -> str:
    """Return a number with three figures.

    >>> figures_text(0.012345), figures_text(1.8), figures_text(1234.5), figures_text(0.0), figures_text(2e-7)
    ('0.0123', '1.80', '1234', '0', '2.0e-07')
    """
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 100:
        return f"{value:.0f}" if size < 1e6 else f"{value:.1e}"
    if size < 1e-3:
        return f"{value:.1e}"
    decimals = 2 if size >= 1 else 3 if size >= 0.1 else 4
    return f"{value:.{decimals if size < 10 else 1}f}"


def seconds_text(seconds: float) -> str:
    """Return a time with its unit.

    >>> seconds_text(0.0), seconds_text(25e-6), seconds_text(0.0534), seconds_text(2.5), seconds_text(432.0)
    ('0 ms', '0.025 ms', '53.4 ms', '2.50 s', '432 s')
    """
    if seconds == 0:
        return "0 ms"
    milliseconds = 1e3 * seconds
    if milliseconds < 0.1:
        return f"{milliseconds:.3f} ms"
    return f"{figures_text(milliseconds)} ms" if milliseconds < 1000 else f"{figures_text(seconds)} s"


def bytes_text(number: float) -> str:
    """Return bytes with their unit, by powers of 1000 as network rates have them.

    >>> bytes_text(812), bytes_text(1.5e6), bytes_text(2.34e9)
    ('812 B', '1.50 MB', '2.34 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 999.5:
            return f"{number:.0f} B" if unit == "B" else f"{figures_text(number)} {unit}"
        number /= 1000
    return f"{figures_text(number)} TB"


def since_text(seconds: float) -> str:
    """Return how long ago something was.

    >>> since_text(0.4), since_text(75), since_text(7300), since_text(200000)
    ('0 s', '75 s', '2 h', '2 d')
    """
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{max(0, seconds) / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def percent(part: float) -> str:
    """Return a part of 1 in percent.

    >>> percent(0.314), percent(0.004), percent(0.0)
    ('31 %', '0.4 %', '0 %')
    """
    return f"{100 * part:.1f} %" if 0 < part < 0.095 and round(100 * part, 1) % 1 else f"{100 * part:.0f} %"


def ranks_text(ranks: Collection[int], most: int = 8) -> str:
    """Return ranks with their noun, runs of them put together.

    >>> ranks_text([3]), ranks_text([0, 1, 2, 7]), ranks_text(range(0, 40, 2))
    ('rank 3', 'ranks 0-2, 7', 'ranks 0, 2, 4, 6, 8, 10, 12, 14 and 12 more')
    """
    ordered = sorted(ranks)
    spans: list[list[int]] = []
    for rank in ordered:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    shown = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans[:most])
    left = sum(b - a + 1 for a, b in spans[most:])
    return f"rank{'s' if len(ordered) > 1 else ''} {shown}" + (f" and {left} more" if left else "")
