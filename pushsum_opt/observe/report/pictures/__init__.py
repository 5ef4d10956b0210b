"""Pictures of a run as SVG inside a page: bars, spreads, heat maps and lines, drawn with the colours of the page."""

from __future__ import annotations

from .bars import Bar, draw_bars
from .heat import draw_heat
from .lines import Line, Mark, draw_lines
from .spreads import Spread, draw_spreads

__all__ = ["Bar", "Line", "Mark", "Spread", "draw_bars", "draw_heat", "draw_lines", "draw_spreads"]
