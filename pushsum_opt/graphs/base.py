"""What a graph is: a pure rule that gives the peers of every round."""

from __future__ import annotations

import hashlib
import struct
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from ..errors import GraphError

__all__ = ["Graph"]

FULL_CHECK = 1 << 16  # (rank, round) pairs up to which every one is looked at; beyond, evenly spread samples
ROUNDS_KEPT = 64  # inverted rounds that are remembered


class Graph(ABC):
    """Who sends to whom in every round.

    A member of the family writes :meth:`out_peers`, a pure function: every rank asks it about every other and must get
    the same answer. The rest is derived here. Shares, and with them the mixing matrix, belong to the edges of one
    round; :meth:`gives` returns both from one call, so they can never belong to different rounds.

    A graph must be strongly connected over a period: then the ranks' estimates tend to the weighted mean (Nedic and
    Olshevsky 2015; Assran et al. 2019, assumption 3).
    """

    @abstractmethod
    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        """Return the ranks to which ``rank`` sends in a round: each in [0, size), none twice, never itself."""

    def period(self, size: int) -> int | None:
        """Return the number of rounds after which the graph repeats; None if it never does."""
        return 1

    def window(self, size: int) -> int:
        """Return the number of rounds over which the graph is strongly connected: the period, where there is one."""
        return self.period(size) or min(2 * size + 16, 256)

    def shares(self, rank: int, size: int, round: int) -> tuple[float, ...]:
        """Return the fraction of its mass that ``rank`` gives each out-peer, in the same order; the rest it keeps.

        1 / (1 + out-degree) for each, unless overridden. All are > 0, and so is the rest.
        """
        degree = len(self.out_peers(rank, size, round))
        return (1.0 / (1.0 + degree),) * degree

    def gives(self, rank: int, size: int, round: int) -> tuple[tuple[int, float], ...]:
        """Return (out-peer, share) pairs of one rank and round."""
        peers = self.out_peers(rank, size, round)
        return tuple(zip(peers, self.shares(rank, size, round), strict=True))

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        """Return the ranks that send to ``rank`` in a round, ascending.

        Derived by asking every rank for its out-peers, once per round and remembered; families with a closed form
        override it.
        """
        return self._inverse(size, round)[rank]

    def _inverse(self, size: int, round: int) -> tuple[tuple[int, ...], ...]:
        period = self.period(size)
        key = (size, round if period is None else round % period)
        remembered: OrderedDict[tuple[int, int], tuple[tuple[int, ...], ...]]
        remembered = self.__dict__.setdefault("_inverses", OrderedDict())
        inverse = remembered.get(key)
        if inverse is None:
            senders: list[list[int]] = [[] for _ in range(size)]
            for sender in range(size):
                for peer in self.out_peers(sender, size, round):
                    senders[peer].append(sender)
            inverse = remembered[key] = tuple(map(tuple, senders))
            while len(remembered) > ROUNDS_KEPT:
                remembered.popitem(last=False)
        return inverse

    # ------------------------------------------------------------------ what ranks compare, and what is checked

    def fingerprint(self, size: int) -> str:
        """Return a hexadecimal digest of the peers and shares of a window; equal graphs have equal ones.

        Beyond 65536 (rank, round) pairs it looks at evenly spread ranks.
        """
        digest = hashlib.blake2b(digest_size=16)
        for round in range(self.window(size)):
            for rank in _spread(size, self.window(size)):
                for peer, share in self.gives(rank, size, round):
                    digest.update(struct.pack("<iiid", round, rank, peer, share))
        return digest.hexdigest()

    def check(self, size: int) -> None:
        """Check every promise of a graph over its window.

        Raises:
            GraphError: a peer out of range, a self-edge, a peer named twice, shares that do not leave mass in the
                column, in-peers that are not the inverse of out-peers, or ranks that are never reached.
        """
        if size < 1:
            raise GraphError(f"{self!r}: size={size}: expected at least 1 rank")
        window = self.window(size)
        reached: list[set[int]] = [set() for _ in range(size)]
        for round in range(window):
            for rank in range(size):
                self._check_rank(rank, size, round)
                reached[rank].update(self.out_peers(rank, size, round))
            self._check_inverse(size, round)
        self._check_connected(reached, size, window)

    def _check_rank(self, rank: int, size: int, round: int) -> None:
        where = f"{self!r}: round {round}, rank {rank} of {size}"
        peers = self.out_peers(rank, size, round)
        for peer in peers:
            if isinstance(peer, bool) or not isinstance(peer, int):
                raise GraphError(f"{where}: out-peer {peer!r} is a {type(peer).__name__}: expected an int")
            if not 0 <= peer < size:
                raise GraphError(f"{where}: out-peer {peer} is out of range: expected 0 to {size - 1}")
            if peer == rank:
                raise GraphError(f"{where}: it names itself as out-peer; what it keeps is not an edge: leave it out")
        if len(set(peers)) != len(peers):
            raise GraphError(f"{where}: out-peers {peers} name a rank twice; use shares() to give one peer more")
        shares = self.shares(rank, size, round)
        if len(shares) != len(peers):
            raise GraphError(f"{where}: {len(shares)} shares for {len(peers)} out-peers: expected one each")
        if any(not 0.0 < share < 1.0 for share in shares) or not sum(shares) < 1.0:
            raise GraphError(
                f"{where}: shares {shares} sum to {sum(shares):g}: each must be above 0 and their sum below 1, so that "
                "the rank keeps some mass and its column of the mixing matrix sums to 1"
            )

    def _check_inverse(self, size: int, round: int) -> None:
        if type(self).in_peers is Graph.in_peers:
            return
        for rank, expected in enumerate(self._inverse(size, round)):
            found = self.in_peers(rank, size, round)
            if found != expected:
                raise GraphError(
                    f"{self!r}: round {round}, rank {rank} of {size}: in_peers says {found}, but by out_peers "
                    f"the ranks {expected} send to it"
                )

    def _check_connected(self, reached: Sequence[Iterable[int]], size: int, window: int) -> None:
        backward: list[set[int]] = [set() for _ in range(size)]
        for rank, peers in enumerate(reached):
            for peer in peers:
                backward[peer].add(rank)
        for edges, verb in ((reached, "never reaches"), (backward, "is never reached by")):
            missing = sorted(set(range(size)) - _component(edges))
            if missing:
                raise GraphError(
                    f"{self!r}: over {window} rounds of {size} ranks, rank 0 {verb} "
                    f"{'rank' if len(missing) == 1 else 'ranks'} {', '.join(map(str, missing[:8]))}"
                    f"{' ...' if len(missing) > 8 else ''}: the graph must be strongly connected over a period, or the "
                    "ranks never agree"
                )

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _component(edges: Sequence[Iterable[int]]) -> set[int]:
    found, frontier = {0}, [0]
    while frontier:
        rank = frontier.pop()
        for peer in edges[rank]:
            if peer not in found:
                found.add(peer)
                frontier.append(peer)
    return found


def _spread(size: int, window: int) -> range:
    """Return evenly spread ranks, so that ranks x window stays within FULL_CHECK."""
    return range(0, size, max(1, -(-size * window // FULL_CHECK)))
