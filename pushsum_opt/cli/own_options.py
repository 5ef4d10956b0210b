"""The options of ``pushsum run`` that are its own, and not mpirun's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import ConfigurationError

__all__ = ["Own", "take_own"]


@dataclass(frozen=True)
class Own:
    """What they say."""

    dry_run: bool = False
    """Print the command and start nothing."""

    restarts: int = 0
    """How often a job that dies is started again."""

    survive: bool = False
    """Let the other ranks go on when one dies, where the script asks for that with ``on_loss="continue"``."""

    spares: int = 0
    """How many more processes start, which take the places of ranks that die."""


def take_own(options: Sequence[str]) -> tuple[Own, list[str]]:
    """Take our own options from among mpirun's; return what they say, and the rest.

    Raises:
        ConfigurationError: one has a value that cannot be used.

    >>> take_own(["--restarts", "3", "-np", "4", "--dry-run"])
    (Own(dry_run=True, restarts=3, survive=False, spares=0), ['-np', '4'])
    """
    own = Own()
    rest: list[str] = []
    words = list(options)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if word == "--dry-run":
            own = replace(own, dry_run=True)
        elif word == "--survive":
            own = replace(own, survive=True)
        elif name == "--restarts":
            own = replace(own, restarts=_count(name, value if equals else words.pop(0) if words else ""))
        elif name == "--spares":
            spares = _count(name, value if equals else words.pop(0) if words else "")
            own = replace(own, spares=spares, survive=own.survive or spares > 0)
        else:
            rest.append(word)
    return own, rest


def _count(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigurationError(f"{name} {text}: expected a whole number, at least 0")
    return int(text)
