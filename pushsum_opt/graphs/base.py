"""What a graph is: a pure rule that gives the peers of every round."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

from . import checks

__all__ = ["Graph"]

REMEMBERED = 1 << 18  # in-peers, over all inverted rounds, that one graph remembers


class Graph(ABC):
    """Who sends to whom in every round.

    A family writes :meth:`out_peers`, a pure function: every rank asks it about every other and must get the same
    answer. The rest is derived here. Shares, and with them the mixing matrix, belong to the edges of one round;
    :meth:`gives` returns both from one call, so that they never belong to different rounds.

    A graph must be strongly connected over a period: then every rank's estimate tends to the weighted mean [1]_ [2]_.
    With one rank there are no peers, and every graph is valid.

    References:
        .. [1] Nedic, Olshevsky (2015). Distributed Optimization over Time-Varying Directed Graphs. IEEE Transactions
           on Automatic Control 60(3).
        .. [2] Assran, Loizou, Ballas, Rabbat (2019). Stochastic Gradient Push for Distributed Deep Learning. ICML,
           assumption 3.

    >>> class Backwards(Graph):
    ...     def out_peers(self, rank, size, round):
    ...         return ((rank - 1) % size,)
    >>> Backwards().in_peers(0, 5, 0)
    (1,)
    >>> Backwards().gives(0, 5, 0)
    ((4, 0.5),)
    """

    # Both are read from the class's own body, not inherited: a subclass that overrides a rule must declare them again.
    promises_proven: ClassVar[bool] = False
    """Tests hold every promise at every size: :meth:`check` looks at a small sample."""
    mixes_fast: ClassVar[bool] = False
    """Tests hold that O(log size) rounds mix: nothing is simulated to warn of slow mixing."""

    # ------------------------------------------------------------------ what a family says

    @abstractmethod
    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        """Return the ranks to which ``rank`` sends in a round: each in [0, size), none twice, never itself."""

    def shares(self, rank: int, size: int, round: int) -> tuple[float, ...]:
        """Return the fraction of its mass that ``rank`` gives each out-peer, in the same order; the rest it keeps.

        1 / (1 + out-degree) for each, unless overridden. All are > 0, and so is the rest.
        """
        degree = len(self.out_peers(rank, size, round))
        return (1.0 / (1.0 + degree),) * degree

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        """Return the ranks that send to ``rank`` in a round, ascending.

        Derived by asking every rank for its out-peers, once per round and remembered; families with a closed form
        override it.
        """
        return () if size == 1 else self._inverse(size, round)[rank]

    def period(self, size: int) -> int | None:
        """Return the number of rounds after which the graph repeats; None if it never does."""
        return 1

    def window(self, size: int) -> int:
        """Return the number of rounds over which the graph is strongly connected: the period, where there is one."""
        return self.period(size) or min(2 * size + 16, 256)

    def symmetry(self, size: int) -> tuple[int, ...] | None:
        """Return the shape of the grid of ranks whose cyclic shifts leave every round as it is; None without one.

        ``(size,)`` where every rank does the same relative to itself. The analysis then needs one rank, not all.
        """
        return None

    def parts(self, size: int) -> Sequence[tuple[Graph, int]]:
        """Return (graph, its size) for each graph that this one is put together from; nothing for a plain family.

        Whatever the rounds, a composed graph keeps its promises where each of its parts does, and mixes as the slowest.
        """
        return ()

    # ------------------------------------------------------------------ what follows

    def gives(self, rank: int, size: int, round: int) -> tuple[tuple[int, float], ...]:
        """Return (out-peer, share) pairs of one rank and round. Not to be overridden."""
        if size == 1:
            return ()
        peers = self.out_peers(rank, size, round)
        if type(self).shares is Graph.shares:  # one call instead of two
            share = 1.0 / (1.0 + len(peers))
            return tuple([(peer, share) for peer in peers])
        return tuple(zip(peers, self.shares(rank, size, round), strict=True))

    def partners(self, rank: int, size: int) -> frozenset[int]:
        """Return every rank with which ``rank`` exchanges in some round; all others, where the graph never repeats."""
        period = self.period(size)
        if period is None:
            return frozenset(range(size)) - {rank}
        partners: set[int] = set()
        for round in range(period if size > 1 else 0):
            partners.update(self.out_peers(rank, size, round), self.in_peers(rank, size, round))
        return frozenset(partners)

    def check(self, size: int) -> None:
        """Check the promises of the graph at this size.

        Peers are in range, distinct and never the rank itself; asked twice, the answer is the same; shares are above 0
        and leave some mass, so that every column of the mixing matrix sums to 1; in-peers are those that name the rank
        as out-peer; and over :meth:`window` rounds everybody reaches everybody.

        Up to 4096 pairs of (rank, round) all are looked at, beyond that as many, evenly spread; of a pair with more
        than 16 peers, 16 are asked in return. Connectivity is decided on all ranks, over as many rounds as it takes,
        and left open when 2^21 edges do not decide it. Families that declare ``promises_proven`` are looked at in full
        up to 1024 pairs, and by a sample of 256 beyond. Of a composed graph the parts are looked at, each by itself.

        Raises:
            GraphError: a promise is broken; the message shows the round, the rank and the peers.
        """
        checks.check(self, size)

    def fingerprint(self, size: int) -> str:
        """Return a hexadecimal digest of the peers and shares of a window; equal graphs have equal ones.

        Up to 4096 pairs of (rank, round) are all in it, beyond that as many, evenly spread, and at most 2^17 edges.
        """
        return checks.fingerprint(self, size)

    def check_size(self, size: int) -> None:
        """Raise GraphError, naming the sizes that do, where the family is not defined at this size."""
        for graph, its_size in self.parts(size):
            graph.check_size(its_size)

    # ------------------------------------------------------------------ inversion

    @property
    def derives_in_peers(self) -> bool:
        """Whether in-peers follow from out-peers; otherwise the family has a formula of its own for them."""
        return type(self).in_peers is Graph.in_peers

    def _inverse(self, size: int, round: int) -> tuple[tuple[int, ...], ...]:
        period = self.period(size)
        key = (size, round if period is None else round % period)
        remembered: OrderedDict[tuple[int, int], tuple[tuple[int, ...], ...]]
        remembered = self.__dict__.setdefault("_inverses", OrderedDict())
        inverse = remembered.get(key)
        if inverse is None:
            senders: list[list[int]] = [[] for _ in range(size)]
            for sender in range(size):
                peers = self.out_peers(sender, size, round)
                checks.check_peers(self, sender, size, round, peers)
                for peer in peers:
                    senders[peer].append(sender)
            inverse = tuple(map(tuple, senders))
            with _REMEMBERING:  # the ranks of a loopback world are threads that share a graph
                remembered[key] = inverse
                while len(remembered) > max(2, REMEMBERED // size):
                    remembered.popitem(last=False)
        return inverse

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


_REMEMBERING = threading.Lock()
