"""How something public goes away: it works, with a warning, for two minor releases."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["deprecated", "warn_deprecated"]

P = ParamSpec("P")
R = TypeVar("R")


def warn_deprecated(name: str, *, since: str, instead: str, stacklevel: int = 2) -> None:
    """Warn that a name, an argument or a value goes away.

    Args:
        name: what goes, as users write it, such as ``PushSum(hosts=...)``.
        since: the minor release, "MAJOR.MINOR", in which it is first deprecated; two later it is removed.
        instead: what to write in its place.
        stacklevel: whose line is shown; 2: that of the caller of the function that calls this one.
    """
    warnings.warn(
        f"{name} is deprecated since {since} and will be removed in {_removed_in(since)}: use {instead}",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )


def deprecated(name: str, *, since: str, instead: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for a function or method that goes away; see :func:`warn_deprecated` for the arguments."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def warning(*args: P.args, **kwargs: P.kwargs) -> R:
            warn_deprecated(name, since=since, instead=instead)
            return function(*args, **kwargs)

        return warning

    return decorate


def _removed_in(since: str) -> str:
    """Return the release that no longer has what is deprecated since this one.

    >>> _removed_in("1.3")
    '1.5'
    """
    major, minor = (int(part) for part in since.split("."))
    return f"{major}.{minor + 2}"
