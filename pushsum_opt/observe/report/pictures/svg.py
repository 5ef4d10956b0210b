"""A picture as text of SVG. Colours come from the page, by the names of classes."""

from __future__ import annotations

from html import escape

__all__ = ["LETTER", "Picture", "number"]

LETTER = 7.0
"""How wide a letter is on average, in px: 12 px high, as the page has them in pictures, in a wide font."""


def number(value: float) -> str:
    """Return a coordinate, to a tenth of a px."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


class Picture:
    """Shapes and texts, in px from the upper left corner.

    Args:
        name: said in place of the picture to those who cannot see it.
    """

    def __init__(self, width: float, height: float, name: str) -> None:
        self.width, self.height, self.name = width, height, name
        self._parts: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, kind: str, about: str = "") -> None:
        """Draw a filled rectangle; ``about`` is shown where the mouse rests on it."""
        shape = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
        self._add("rect", f'{shape} class="{kind}"', about)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """Draw a straight line."""
        self._add("line", f'x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}" class="{kind}"')

    def path(self, commands: str, kind: str, about: str = "", opacity: float | None = None) -> None:
        """Draw a path of SVG's commands."""
        faint = "" if opacity is None else f' fill-opacity="{opacity:.2f}"'
        self._add("path", f'd="{commands}" class="{kind}"{faint}', about)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start", turned: bool = False) -> None:
        """Write a text; ``y`` is the line on which the letters stand. Turned: upwards."""
        named = f' class="{kind}"' if kind else ""
        turn = f' transform="rotate(-90 {number(x)} {number(y)})"' if turned else ""
        at = f'x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"'
        self._parts.append(f"<text {at}{named}{turn}>{escape(text)}</text>")

    def _add(self, tag: str, attributes: str, about: str = "") -> None:
        if about:
            self._parts.append(f"<{tag} {attributes}><title>{escape(about)}</title></{tag}>")
        else:
            self._parts.append(f"<{tag} {attributes}/>")

    def __str__(self) -> str:
        size = f'width="{number(self.width)}" height="{number(self.height)}"'
        box = f'viewBox="0 0 {number(self.width)} {number(self.height)}"'
        inside = "\n".join(self._parts)
        return f'<svg {size} {box} role="img" aria-label="{escape(self.name)}">\n{inside}\n</svg>'
