"""Algorithms 1 and 2 of the paper on ranks of which some die: numerators and weights in plain numpy.

Written from the rule of loss alone, as the page "When a rank dies" has it, sharing no code with the library. The
library stores z and w and settles by accounts; this stores x and w, and every message that was ever given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Matrices = Callable[[int, int], npt.NDArray[np.float64]]
"""(size, round) -> P, (size, size); column i says where the mass of rank i goes."""


@dataclass
class Given:
    """A message of this epoch."""

    sender: int
    receiver: int
    round: int
    z: Vector
    mass: float
    opened: bool = False
    known: bool = False
    """Whether its sender knows, from a call of all ranks, that it was opened."""


@dataclass
class Lost:
    """What a loss cost."""

    mass: float
    taken_back: int
    mass_taken_back: float
    round: int


class MortalRanks:
    """n ranks, each at a point of its own; a rank keeps its number when others die.

    Args:
        z0: (n, d), where each rank starts.
        data_weights: (n,), v_i.
        matrices: the rule of the graph, for every size.
        staleness: tau >= 0; a message of round k is due in round k + tau.
    """

    def __init__(self, z0: Vector, data_weights: Vector, matrices: Matrices, staleness: int) -> None:
        n = len(z0)
        self.there = list(range(n))
        self.v = data_weights
        self.matrices = matrices
        self.tau = staleness
        self.a = n * data_weights / data_weights.sum()
        self.w = self.a.copy()
        self.x = z0 * self.w[:, None]
        self.round = [0] * n
        self.gossips_from = 0
        self._gossiped = [0] * n  # rounds since nothing was in flight
        self._before = self.w.copy()  # w at the start of the round
        self._opened: dict[int, list[Given]] = {i: [] for i in range(n)}  # whose parts are not merged yet
        self._messages: list[Given] = []

    def z(self, i: int) -> Vector:
        return self.x[i] / self.w[i]

    def out_peers(self, i: int, k: int) -> list[int]:
        column = self._column(i, k)
        return [self.there[j] for j in np.flatnonzero(column) if self.there[j] != i]

    def gossips(self, i: int) -> bool:
        """Tell whether rank i exchanges messages in its next round, or only catches up with the others."""
        return self.round[i] >= self.gossips_from

    def step(self, i: int, dz: Vector) -> None:
        """Rank i begins a round with a local step: x moves by a dz."""
        self.x[i] += self.a[i] * dz
        self._before[i] = self.w[i]
        self._gossiped[i] += self.gossips(i)
        self.round[i] += 1

    def give(self, i: int, j: int) -> None:
        """Rank i sends its message of the round that it is in to rank j."""
        k = self.round[i] - 1
        column = self._column(i, k)
        shares = {peer: column[self.there.index(peer)] for peer in self.out_peers(i, k)}
        rounds_in_flight = min(self._gossiped[i] - 1, self.tau)
        if rounds_in_flight == self.tau:
            mass = self._before[i] * shares[j]
        else:  # w falls to its steady value, and not below
            degree = len(shares)
            budget = self.a[i] * degree / (1 + degree + self.tau * degree)
            budget = min(budget, self._before[i] / (1 + self.tau - rounds_in_flight))
            mass = budget * shares[j] / sum(shares.values())
        z = self.z(i)
        self._messages.append(Given(i, j, k, z, mass))
        self.w[i] -= mass
        self.x[i] = z * self.w[i]

    def find(self, i: int, j: int, k: int) -> Given | None:
        """Return the message that rank j has given to rank i in round k, and rank i has not opened."""
        for one in self._messages:
            if (one.sender, one.receiver, one.round, one.opened) == (j, i, k, False):
                return one
        return None

    def open(self, i: int, j: int, k: int) -> None:
        """Rank i begins to merge the message that rank j has given it in round k: the mass is its own from now on."""
        message = self.find(i, j, k)
        assert message is not None
        message.opened = True
        self._opened[i].append(message)

    def merge(self, i: int, j: int, k: int) -> None:
        """All parts of that message are here and merged."""
        (message,) = [one for one in self._opened[i] if (one.sender, one.round) == (j, k)]
        self._opened[i].remove(message)
        self.x[i] += message.mass * message.z
        self.w[i] += message.mass

    def nothing_is_in_flight(self, i: int) -> None:
        """Rank i knows that all that was given has been merged."""
        for one in self._messages:
            one.known |= one.sender == i
        self._gossiped[i] = 0

    def lose(self, dead: Collection[int]) -> Lost:
        """Ranks die, and the others settle it."""
        left = [i for i in self.there if i not in dead]
        for i in left:  # of what was opened and has not come, the mass counts, and z stays
            for message in self._opened[i]:
                self._add_mass(i, message.mass)
        sent = self._surely_sent(left, dead)
        back = [one for one in self._messages if one.sender in left and not self._surely_opened(one, sent)]
        for one in back:
            self._add_mass(one.sender, one.mass)
        held = sum(self.w[i] for i in left)
        lost = Lost(len(self.there) - held, len(back), sum(one.mass for one in back), max(self.round[i] for i in left))
        total = sum(self.v[i] for i in left)
        for i in left:
            z = self.z(i)
            self.w[i] *= len(left) / held
            self.x[i] = z * self.w[i]
            self.a[i] = len(left) * self.v[i] / total
            self._gossiped[i] = 0
        self.there, self.gossips_from = left, lost.round
        self._messages, self._opened = [], {i: [] for i in left}
        return lost

    def _surely_sent(self, left: Collection[int], dead: Collection[int]) -> dict[int, int]:
        """Return the latest round in which each of the dead has sent, as far as it follows from what was opened."""
        proofs = [one for one in self._messages if one.sender in dead and one.opened and one.receiver in left]
        sent = dict.fromkeys(dead, -1)
        while proofs:
            proof = proofs.pop()
            if proof.round > sent[proof.sender]:
                sent[proof.sender] = proof.round
                # Before, it had merged what was due in the rounds before: so that had been sent to it.
                proofs += [
                    one for one in self._messages
                    if one.receiver == proof.sender and one.sender in dead and one.round + self.tau < proof.round
                ]  # fmt: skip
        return sent

    def _surely_opened(self, one: Given, sent: Mapping[int, int]) -> bool:
        if one.known or one.receiver not in sent:
            return one.known or one.opened
        return one.round + self.tau < sent[one.receiver]

    def _add_mass(self, i: int, mass: float) -> None:
        z = self.z(i)
        self.w[i] += mass
        self.x[i] = z * self.w[i]

    def _column(self, i: int, k: int) -> Vector:
        return self.matrices(len(self.there), k)[:, self.there.index(i)]
