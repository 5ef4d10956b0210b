"""Tests that every rank runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pushsum_opt as ps

__all__ = ["on_ranks"]


def on_ranks(size: int, **options: Any) -> Callable[[Callable[..., object]], Callable[..., None]]:
    """Have a test run on each of ``size`` ranks of one process; its first argument is the rank's communicator.

    The others, parameters and fixtures, are the same objects on all ranks.

    Args:
        options: those of :func:`pushsum_opt.testing.run`.

    >>> @on_ranks(3)
    ... def test_ranks_are_counted_from_0(comm, most=2):
    ...     assert 0 <= comm.rank <= most
    >>> test_ranks_are_counted_from_0()
    """

    def decorate(test: Callable[..., object]) -> Callable[..., None]:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def on_every_rank(*args: Any, **more: Any) -> None:
            ps.testing.run(size, lambda comm: test(comm, *args, **more), **options)

        on_every_rank.__signature__ = signature.replace(parameters=[*signature.parameters.values()][1:])
        return on_every_rank

    return decorate
