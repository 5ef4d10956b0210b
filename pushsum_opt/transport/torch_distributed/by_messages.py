"""Collectives made of messages, for a network whose own ones cannot be asked whether they are done.

Each is a generator. It yields the transfers that it waits for, and goes on once all of them are done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

__all__ = ["Messages", "Steps", "broadcast", "gather", "sum_up"]

SMALL_SUM_BYTES = 1 << 14
"""Sums up to this size are gathered and added on every rank: few steps count for more than few bytes there."""

Steps = Iterator[Sequence[Any]]


class Messages(Protocol):
    """The messages of one collective: of one tag, in order."""

    rank: int
    size: int

    def post(self, data: Any, peer: int) -> Any: ...

    def expect(self, data: Any, peer: int) -> Any: ...


def gather(messages: Messages, everyone: Any) -> Steps:
    """Fill a uint8 array of shape (size, length), of which this rank has its own row.

    By Bruck's algorithm, in log2 n steps: with every step a rank has twice as many rows.
    """
    me, size = messages.rank, messages.size
    rows = np.empty_like(everyone)  # from this rank's own on
    rows[0] = everyone[me]
    have = 1
    while have < size:
        count = min(have, size - have)
        yield (
            messages.expect(rows[have : have + count].reshape(-1), (me + have) % size),
            messages.post(rows[:count].reshape(-1), (me - have) % size),
        )
        have += count
    for place in range(size):
        everyone[(me + place) % size] = rows[place]


def broadcast(messages: Messages, data: Any, root: int) -> Steps:
    """Copy a flat uint8 array of rank ``root`` into everyone's, along a binomial tree."""
    size = messages.size
    place = (messages.rank - root) % size
    step = 1
    while step < size and not place & step:
        step <<= 1
    if place:
        yield (messages.expect(data, (place - step + root) % size),)
    posted = []
    while (step := step >> 1) > 0:
        if place + step < size:
            posted.append(messages.post(data, (place + step + root) % size))
    yield posted


def sum_up(messages: Messages, values: Any) -> Steps:
    """Replace a flat numpy array by its sum over ranks, equal bits on each."""
    if messages.size == 1:
        return
    if values.nbytes <= SMALL_SUM_BYTES:
        everyone = np.empty((messages.size, values.size), values.dtype)
        everyone[messages.rank] = values
        yield from gather(messages, everyone.view(np.uint8))
        values[:] = everyone[0]
        for row in everyone[1:]:
            values += row
        return
    yield from _around_the_ring(messages, values)


def _around_the_ring(messages: Messages, values: Any) -> Steps:
    """Each part goes around and is added up, and then goes around once more: 2 (n - 1) / n of the bytes per rank."""
    me, size = messages.rank, messages.size
    bounds = [values.size * part // size for part in range(size + 1)]
    parts = [values[bounds[part] : bounds[part + 1]] for part in range(size)]
    right, left = (me + 1) % size, (me - 1) % size

    def exchange(given: int, taken: Any) -> Sequence[Any]:
        return messages.expect(_bytes(taken), left), messages.post(_bytes(parts[given % size]), right)

    for step in range(size - 1):
        mine = parts[(me - step - 1) % size]
        received = np.empty_like(mine)
        yield exchange(me - step, received)
        mine += received
    for step in range(size - 1):
        yield exchange(me + 1 - step, parts[(me - step) % size])


def _bytes(array: Any) -> Any:
    return array.view(np.uint8)
