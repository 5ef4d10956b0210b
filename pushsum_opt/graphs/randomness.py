"""Choices that look random and are the same on every rank, machine and version of Python."""

from __future__ import annotations

__all__ = ["below", "distinct", "scramble", "stir"]

_MASK = (1 << 64) - 1


def stir(state: int, word: int) -> int:
    """Return 64 bits from 64 bits and an integer: a step of SplitMix64 (Steele, Lea, Flood 2014)."""
    state = (state ^ word) + 0x9E3779B97F4A7C15 & _MASK
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
    return state ^ state >> 31


def scramble(*words: int) -> int:
    """Return 64 bits from these integers, in their order, alone.

    >>> scramble(1, 2) == scramble(1, 2) != scramble(2, 1)
    True
    """
    state = 0
    for word in words:
        state = stir(state, word)
    return state


def below(bound: int, state: int, word: int) -> int:
    """Return an integer in [0, bound), uniform to within bound / 2^64."""
    return stir(state, word) * bound >> 64


def distinct(count: int, bound: int, state: int) -> tuple[int, ...]:
    """Return ``count`` different integers of [0, bound), ascending, every set as likely (Floyd 1987)."""
    chosen: set[int] = set()
    for last in range(bound - count, bound):
        draw = below(last + 1, state, last)
        chosen.add(last if draw in chosen else draw)
    return tuple(sorted(chosen))
