"""Base-(k+1) graphs: exact averages in finitely many rounds, for every number of ranks."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..errors import GraphError
from .base import Graph

__all__ = ["BaseK"]

Gives = tuple[tuple[int, float], ...]


class BaseK(Graph):
    """The Base-(k+1) graph: at most k peers per round, exact after O(log n / log(k + 1)) rounds at every n [1]_.

    With b = k + 1 it is made of three constructions:

    - *Hyper-hypercube*, where all prime factors of n are at most b. Write n as a product of as few factors f_1, ...,
      f_m <= b as possible. In round l the ranks whose mixed-radix digits differ only in digit l, f_l of them, average
      among themselves. Exact after m rounds. For b = 2 and n = 2^m, the hypercube.
    - *Simple base*, everywhere else. Write n in base b, n = a_1 b^(p_1) + ... + a_L b^(p_L) with falling powers, and
      cut the ranks into blocks V_1, ..., V_L of these sizes and V_l into a_l pieces of b^(p_l). First every block
      averages within itself (m_1 rounds, by hyper-hypercubes). Then V_1, then V_2, and so on, meets the blocks behind
      it: each of their ``S_(l+1) = |V_(l+1)| + ... + |V_L|`` ranks exchanges with one rank of each piece of V_l, with
      share ``|V_l| / (a_l S_l)``. Now the ranks behind hold the mean over V_l and behind, and so does each piece of V_l
      as a whole, so the pieces average within themselves (p_l rounds). In all m_1 + 1 + p_1 rounds. The ranks of V_l
      that meet nobody average in groups of b meanwhile.
    - *Base*: write n = p q, where q holds the prime factors above b. The p groups of q consecutive ranks run the simple
      base graph side by side, then each class of p ranks with the same place in its group runs the hyper-hypercube.
      Used where that is shorter.

    Doubly stochastic and symmetric, so w stays where it began and each rank hears from those that it sends to. Some
    ranks have fewer peers in some rounds. ``BaseK(1)``, Base-2, is the default where n is not a power of two.

    Args:
        k: the most peers per rank and round, at least 1.

    References:
        .. [1] Takezawa, Sato, Bao, Niwa, Yamada (2023). Beyond Exponential Graph: Communication-Efficient Topologies
           for Decentralized Learning via Finite-time Convergence. NeurIPS, arXiv 2305.11420, algorithms 1 to 3.

    >>> [BaseK(1).period(n) for n in (3, 5, 6, 7, 8, 9)]
    [3, 5, 4, 5, 3, 7]
    >>> [BaseK(1).gives(0, 3, k) for k in range(3)]
    [((1, 0.5),), ((2, 0.6666666666666666),), ((1, 0.5),)]
    >>> BaseK(4).period(25), BaseK(4).gives(7, 25, 0)
    (2, ((5, 0.2), (6, 0.2), (8, 0.2), (9, 0.2)))
    """

    promises_proven = True
    mixes_fast = True

    def __init__(self, k: int = 1) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise GraphError(f"BaseK({k!r}): expected a whole number of peers, at least 1")
        self.k = k

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return tuple([peer for peer, _ in _base(self.k + 1, rank, size, round)])

    def shares(self, rank: int, size: int, round: int) -> tuple[float, ...]:
        return tuple([share for _, share in _base(self.k + 1, rank, size, round)])

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return tuple(sorted(self.out_peers(rank, size, round)))  # symmetric

    def period(self, size: int) -> int:
        return max(1, _split(self.k + 1, size).rounds)

    def symmetry(self, size: int) -> tuple[int, ...] | None:
        # A hyper-hypercube is a grid of cliques along one axis per round; its last factor is the slowest digit.
        factors = _factors(self.k + 1, size)
        return None if factors is None else tuple(reversed(factors))

    def __repr__(self) -> str:
        return f"BaseK({self.k})"


# ---------------------------------------------------------------------- plans: O(log n) numbers per size, remembered


class Split(NamedTuple):
    """n = groups x size of a group, and the rounds of both parts."""

    groups: int
    group: int
    simple_rounds: int
    rounds: int


class Block(NamedTuple):
    """V_l: its first rank, its size |V_l|, and its a_l pieces of b^(p_l) ranks each; S_(l+1), the ranks behind it."""

    first: int
    size: int
    pieces: int
    piece: int
    behind: int


@lru_cache(maxsize=1024)
def _split(base: int, size: int) -> Split:
    rounds = _simple_rounds(base, size)
    groups, rest = 1, size
    for factor in range(2, base + 1):
        while rest % factor == 0:
            groups, rest = groups * factor, rest // factor
    if groups > 1 and rest > 1:
        simple_rounds = _simple_rounds(base, rest)
        factors = _factors(base, groups)
        assert factors is not None
        if simple_rounds + len(factors) <= rounds:
            return Split(groups, rest, simple_rounds, simple_rounds + len(factors))
    return Split(1, size, rounds, rounds)


def _simple_rounds(base: int, size: int) -> int:
    factors = _factors(base, size)
    if factors is not None:
        return len(factors)
    first = _blocks(base, size)[0]
    return _clique_rounds(base, first.size) + 1 + _clique_rounds(base, first.piece)


@lru_cache(maxsize=1024)
def _blocks(base: int, size: int) -> tuple[Block, ...]:
    blocks = []
    power = 1
    while power * base <= size:
        power *= base
    first = 0
    while first < size:
        pieces = (size - first) // power
        if pieces:
            blocks.append(Block(first, pieces * power, pieces, power, size - first - pieces * power))
            first += pieces * power
        power //= base
    return tuple(blocks)


@lru_cache(maxsize=1024)
def _factors(base: int, size: int) -> tuple[int, ...] | None:
    """Return the fewest factors <= base whose product is size, ascending; None where a prime factor is larger."""
    if size == 1:
        return ()
    best: tuple[int, ...] | None = None
    for factor in range(min(base, size), 1, -1):
        if size % factor == 0:
            rest = _factors(base, size // factor)
            if rest is not None and (best is None or 1 + len(rest) < len(best)):
                best = tuple(sorted((factor, *rest)))
    return best


def _clique_rounds(base: int, size: int) -> int:
    factors = _factors(base, size)
    assert factors is not None, "blocks and pieces are a power of b times at most k"
    return len(factors)


# ---------------------------------------------------------------------- one rank, one round


def _base(base: int, rank: int, size: int, round: int) -> Gives:
    split = _split(base, size)
    if split.rounds == 0:
        return ()
    round %= split.rounds
    if round < split.simple_rounds:
        group, place = divmod(rank, split.group)
        return _shifted(_simple(base, place, split.group, round), group * split.group)
    group, place = divmod(rank, split.group)
    gives = _hyper_hypercube(base, group, split.groups, round - split.simple_rounds)
    return tuple([(peer * split.group + place, share) for peer, share in gives])


def _simple(base: int, rank: int, size: int, round: int) -> Gives:
    if _factors(base, size) is not None:
        return _hyper_hypercube(base, rank, size, round)
    blocks = _blocks(base, size)
    own = next(index for index, block in enumerate(blocks) if rank < block.first + block.size)
    block = blocks[own]
    within = _clique_rounds(base, blocks[0].size)
    meeting = round - within  # the block that meets those behind it in this round
    if meeting < 0:
        return _shifted(_hyper_hypercube(base, rank - block.first, block.size, round), block.first)
    if meeting < own:
        return _meet_ahead(rank, blocks[meeting])
    if meeting == own and block.behind:
        return _meet_behind(base, rank, block)
    if block.piece == 1:  # the last block, fewer than b ranks
        return _shifted(_hyper_hypercube(base, rank - block.first, block.size, meeting), block.first)
    piece, place = divmod(rank - block.first, block.piece)
    since = meeting - own - (1 if block.behind else 0)
    return _shifted(_hyper_hypercube(base, place, block.piece, since), block.first + piece * block.piece)


def _meet_ahead(rank: int, ahead: Block) -> Gives:
    """Exchange with one rank of each piece of the block ahead: the one at my place among those behind it."""
    place = rank - (ahead.first + ahead.size)
    share = _meeting_share(ahead)
    return tuple([(ahead.first + piece * ahead.piece + place, share) for piece in range(ahead.pieces)])


def _meet_behind(base: int, rank: int, block: Block) -> Gives:
    """Exchange with the rank behind at my place in my piece; where there is none, average with others left over."""
    piece, place = divmod(rank - block.first, block.piece)
    if place < block.behind:
        return ((block.first + block.size + place, _meeting_share(block)),)
    left_over = (block.piece - block.behind) * block.pieces
    index = (place - block.behind) * block.pieces + piece
    group = range(index - index % base, min(index - index % base + base, left_over))
    places = [divmod(other, block.pieces) for other in group if other != index]
    return tuple(
        [(block.first + piece * block.piece + block.behind + place, 1.0 / len(group)) for place, piece in places]
    )


def _meeting_share(ahead: Block) -> float:
    return ahead.size / (ahead.size + ahead.behind) / ahead.pieces


def _hyper_hypercube(base: int, rank: int, size: int, round: int) -> Gives:
    factors = _factors(base, size)
    assert factors is not None
    if not factors:
        return ()
    digit = round % len(factors)
    stride = 1
    for factor in factors[:digit]:
        stride *= factor
    factor = factors[digit]
    lowest = rank - rank // stride % factor * stride
    return tuple([(peer, 1.0 / factor) for peer in range(lowest, lowest + factor * stride, stride) if peer != rank])


def _shifted(gives: Gives, first: int) -> Gives:
    return tuple([(first + peer, share) for peer, share in gives]) if first else gives
