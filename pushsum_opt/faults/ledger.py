"""What a rank has given and accepted, message by message: numbers only, no slabs.

The ledger of an *epoch* (the time between two changes of who takes part) answers two questions when ranks have died:
which mass does this rank hold now, in the middle of a round; and which of the messages that it has sent were never
opened. A receiver *opens* a message when it begins to merge it: from then on the mass is the receiver's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

__all__ = ["Given", "Ledger"]

Given = tuple[int, float]
"""A message that was given: the round in which it was sent, and its mass."""


class Ledger:
    """The account of one rank in one epoch.

    Args:
        kept: how many messages to one peer are kept. Older ones must be known to be opened.

    >>> ledger = Ledger(kept=8)
    >>> ledger.begin(1.0)
    >>> ledger.give(peer=1, round=0, mass=0.5)
    >>> ledger.accept(peer=2, round=0, mass=0.25)
    >>> ledger.weight
    0.75
    >>> ledger.unopened(peer=1, opened=0), ledger.unopened(peer=1, opened=1)
    ([(0, 0.5)], [])
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self.weight = 0.0
        """w now: what :meth:`begin` was told, less what was given, plus what was accepted since."""
        self.opened: dict[int, int] = {}
        """How many messages of each in-peer this rank has opened."""
        self.heard: dict[int, int] = {}
        """The round of the latest message of each in-peer that this rank has opened."""
        self._given: dict[int, deque[Given]] = {}
        self._count: dict[int, int] = {}

    def begin(self, weight: float) -> None:
        """From now on w is counted from this value."""
        self.weight = weight

    def give(self, peer: int, round: int, mass: float) -> None:
        """Note a message that is about to be sent."""
        self.weight -= mass
        self._given.setdefault(peer, deque(maxlen=self._kept)).append((round, mass))
        self._count[peer] = self._count.get(peer, 0) + 1

    def accept(self, peer: int, round: int, mass: float) -> None:
        """Note a message whose merging begins."""
        self.weight += mass
        self.opened[peer] = self.opened.get(peer, 0) + 1
        self.heard[peer] = round

    def accept_restored(self, mass: float) -> None:
        """Note a message that was loaded from a checkpoint: no ledger of this epoch holds its sending."""
        self.weight += mass

    def all_opened(self) -> None:
        """Note that every message given so far was opened: all ranks have merged what was in flight, and all know."""
        for given in self._given.values():
            given.clear()
        self.heard.clear()  # a checkpoint that was loaded may count its rounds from an earlier one

    def unopened(self, peer: int, opened: int) -> list[Given]:
        """Return the messages to a peer that it has not opened; ``opened`` is how many it has. They come in order."""
        count = self._count.get(peer, 0)
        unopened = count - opened
        kept = list(self._given.get(peer, ()))
        assert 0 <= unopened <= len(kept), f"{count} messages to peer {peer}, {opened} opened, {len(kept)} kept"
        return kept[len(kept) - unopened :]

    def oldest(self, peers: Collection[int]) -> int:
        """Return the round of the oldest message to any of these peers that is kept; 0 where there is none."""
        return min((given[0][0] for peer in peers if (given := self._given.get(peer))), default=0)

    def perhaps_unopened(self, peer: int, surely_opened: Callable[[int], bool]) -> list[Given]:
        """Return the messages to a peer that died, but for those that it surely opened.

        Args:
            surely_opened: tells it of a message by the round in which that was sent.
        """
        return [given for given in self._given.get(peer, ()) if not surely_opened(given[0])]
