"""Means over ranks that cost no message: what ranks report rides in the headers of the messages of rounds.

Push-sum on numbers (Kempe, Dobra and Gehrke 2003). Each rank holds a part of two sums for each value: of what the ranks
have reported, and of how many have. It gives its out-peers the share of these that it gives them of its mass. The
quotient of the two parts tends to the mean. Once a value changes, a rank adds the change to its part, so the sums stay
what they should be (dynamic average consensus: Zhu and Martinez 2010).

Changes are added at the first round of a window only (:mod:`.windows`). Therefore all ranks read the same mean of
values of one moment, and own noise does not stand out in it.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigurationError, MismatchError
from ..memory import Sums
from .sketch import NUMBERS
from .windows import Window
from .wire import NO_NUMBERS, NUMBERS_BYTES

__all__ = ["CONSENSUS_DISTANCE", "MASS_HELD", "MASS_IN_FLIGHT", "MOST_NAMES", "Means"]

MOST_NAMES = 16
CONSENSUS_DISTANCE, MASS_HELD, MASS_IN_FLIGHT = "consensus_distance", "mass_held", "mass_in_flight"
OWN = (CONSENSUS_DISTANCE, MASS_HELD)
"""What the library itself reports, in the first places; then come the numbers of sketches, and the user's values."""
DISTANCE, MASS = range(len(OWN))
SKETCH = slice(len(OWN), len(OWN) + NUMBERS)
USERS = SKETCH.stop
PLACES = USERS + MOST_NAMES
SKETCH_OFTEN = 128
"""In so many first rounds there is a sketch for each window."""
SKETCH_ROUNDS = 16
"""Later, rounds from one sketch to the next, at least: of a model of many tensors one takes milliseconds."""
FIRST = 3
"""Sketches without a distance: the sums of a new sketch are far from their mean on a graph with uneven shares."""
SQUARES = 16
"""Sketches over which a rank averages the square of its distance."""
LOST_DIGITS = 1e9
"""A value that was so many times as large as the means are now has left a rounding error in the sums that matters."""

_HEAD = struct.Struct("<IBB2x8s")
assert _HEAD.size + 2 * PLACES * 8 == NUMBERS_BYTES
ASKED, MEASURES = 1, 2
HEAD_OF_SUM = 4
NOTHING = bytes(2 * PLACES * 8)


class Means:
    """One rank's part of the sums, and what it has read.

    Nothing is done, and the headers hold zeros, until some rank reports or asks; the others learn of it by a header.

    Args:
        window: gives the window; called when it is first needed, as it costs some milliseconds.
        name: gives the rank of a participant, or of this one (None), as the user knows it.
        sketch: begins to find numbers that stand for this rank's model; see :class:`.sketch.Sketch`.
    """

    def __init__(
        self, window: Callable[[], Window], name: Callable[[int | None], int], sketch: Callable[[], Sums]
    ) -> None:
        self._make_window = window
        self._window: Window | None = None
        self._name = name
        self._sketch = sketch
        self._sketches = 0
        self._squares: deque[float] = deque(maxlen=SQUARES)
        self._next_sketch: Sums | None = None  # of the model after the last round of a window
        self._part = np.zeros((2, PLACES))  # of the sums: values and counts
        self._given = np.zeros((2, PLACES))  # what this rank has added to them in all
        self._reported = np.zeros((2, PLACES))  # what it adds next
        self._largest = np.zeros(PLACES)  # of the values that this rank has added since it began again
        self._lanes: Any = 0.0  # the parts of the other ranks of the host, where they tell them
        self._read: Any = None
        self._names: list[str] = []
        self._values: dict[str, float | Callable[[], float]] = {}  # reported, and not looked at yet
        self._digests: dict[int, bytes] = {}  # of so many first names, here or on other ranks
        self._generation = 0
        self._flags = 0

    # ------------------------------------------------------------------ what is asked of it

    @property
    def active(self) -> bool:
        """Whether any rank reports or asks, as far as this one knows."""
        return bool(self._flags)

    def ask(self) -> None:
        """From now on all ranks measure what the library itself reports."""
        self._flags |= ASKED | MEASURES

    def report(self, values: Mapping[str, float | Callable[[], float]]) -> None:
        """Take values that the user reports; the last ones count.

        Args:
            values: by name. What has to be called for its number is called when that is added to the sums.

        Raises:
            ConfigurationError: too many names, or one that the library uses itself.
            MismatchError: another rank reports another name in that place.
        """
        self._add(sorted(values.keys() - set(self._names)))
        self._values |= values
        self._flags |= ASKED

    def _take_values(self) -> None:
        for name, value in self._values.items():
            self._reported[:, USERS + self._names.index(name)] = value() if callable(value) else value, 1.0
        self._values.clear()

    def read(self, size: int) -> dict[str, float]:
        """Return the means by name, as they were at the end of the last window.

        Args:
            size: n, the number of participants, and all the mass that there is.
        """
        if self._read is None:
            return {}
        values, counts = self._read
        places = {name: place for place, name in enumerate(OWN)}
        places |= {name: USERS + number for number, name in enumerate(self._names)}
        found = {name: float(values[place] / counts[place]) for name, place in places.items() if counts[place] > 0.0}
        if CONSENSUS_DISTANCE in found:
            found[CONSENSUS_DISTANCE] = math.sqrt(max(0.0, found[CONSENSUS_DISTANCE]))
        if MASS_HELD in found:
            found[MASS_HELD] *= size
            found[MASS_IN_FLIGHT] = max(0.0, size - found[MASS_HELD])
        return found

    def _add(self, new: Sequence[str]) -> None:
        here, names = self._name(None), [*self._names, *new]
        if taken := [name for name in new if name in (*OWN, MASS_IN_FLIGHT)]:
            raise ConfigurationError(
                f"rank {here}: report({taken[0]}=...): means() has this name already. Choose another"
            )
        if len(names) > MOST_NAMES:
            raise ConfigurationError(
                f"rank {here}: report() with {len(names)} names in all ({', '.join(names)}): a message has room for "
                f"{MOST_NAMES}. Use ps.average() for the others"
            )
        for count in range(len(self._names) + 1, len(names) + 1):
            digest = hashlib.blake2b("\0".join(names[:count]).encode(), digest_size=8).digest()
            if self._digests.setdefault(count, digest) != digest:
                raise MismatchError(self._differ(f"another rank reports other names than {', '.join(names)}"))
        self._names = names

    # ------------------------------------------------------------------ in a round

    def round_begins(self, round: int, push_weight: float) -> None:
        """Add what has changed, if that is due."""
        if not self._flags or not self._in_window().begins(round):
            return
        self._take_values()
        self._reported[:, MASS] = push_weight, 1.0
        if self._flags & MEASURES:
            self._report_distance(round)
        if self._digits_are_lost():
            self.restart()
        with np.errstate(invalid="ignore", over="ignore"):
            self._part += self._reported - self._given
        self._given[:] = self._reported
        np.maximum(self._largest, np.abs(self._given[0]), out=self._largest)

    def round_ends(self, round: int) -> None:
        """Read the means, if a window is over."""
        if self._flags and self._in_window().ends(round):
            self._read = self._part + self._lanes
            if self._flags & MEASURES and self._sketch_is_due(round + 1):
                self._next_sketch = self._sketch()

    def _sketch_is_due(self, round: int) -> bool:
        """Tell whether ranks report new sketches in the window that begins with this round."""
        rounds = self._in_window().rounds
        return round < SKETCH_OFTEN or round // rounds % -(-SKETCH_ROUNDS // rounds) == 0

    def _report_distance(self, round: int) -> None:
        """Report a new sketch if it is due; a window later the square of its distance from the mean of all.

        The sketch of a model on an accelerator was begun at the end of the round before, behind its merges, and is
        waited for here. It cannot come later: all ranks must report the model of the same moment, and a window may
        have one round only. The wait is short, as what it waits for stands before forward and backward of this step,
        which keep the accelerator busy meanwhile; and it ends, as no work of an accelerator waits for a message.
        """
        square = self._square_of_distance() if self._sketch_is_due(round - self._in_window().rounds) else None
        self._sketches += square is not None
        if square is not None and self._sketches > FIRST:
            self._squares.append(square)
            self._reported[:, DISTANCE] = sum(self._squares) / len(self._squares), 1.0
        if self._next_sketch is not None and self._sketch_is_due(round):
            numbers = self._next_sketch.result()
            if numbers is not None:
                self._reported[0, SKETCH], self._reported[1, SKETCH] = numbers, 1.0

    def _square_of_distance(self) -> float | None:
        """Return it of the window that is over; None where not all is known."""
        if self._read is None or not self._given[1, SKETCH].all() or not self._part[1, SKETCH].all():
            return None
        means = self._part[0, SKETCH] / self._part[1, SKETCH]  # of this lane: each part of a model has its own
        square = float(np.square(self._given[0, SKETCH] - means).sum())
        return square if math.isfinite(square) else None

    def give(self, fractions: Sequence[float], round: int) -> list[bytes]:
        """Return what messages carry; each takes a fraction of this rank's part with it.

        Args:
            fractions: of what this rank holds; their sum is at most 1.
        """
        if not self._flags:
            return [NO_NUMBERS] * len(fractions)
        head = self._head()
        if not self._in_window().gives(round):
            return [head + NOTHING] * len(fractions)
        given = [head + (fraction * self._part).tobytes() for fraction in fractions]
        self._part *= 1.0 - sum(fractions)
        return given

    def take(self, numbers: bytes, peer: int, round: int) -> None:
        """Take in what a message carried.

        Raises:
            MismatchError: its sender reports other names.
        """
        generation, known, flags, digest = _HEAD.unpack_from(numbers)
        if not flags:
            return
        self._hear(known, flags, digest, f"rank {self._name(peer)}", round)
        if generation > self._generation:
            self._begin_again(generation)
        if generation == self._generation:
            with np.errstate(invalid="ignore", over="ignore"):
                self._part += _values(numbers)

    # ------------------------------------------------------------------ ranks of one host, each in a lane of its own

    def told_to_lanes(self) -> bytes:
        """Return what the other ranks of this host are told when they meet after a round."""
        return self._head() + self._part.tobytes() if self._flags else NO_NUMBERS

    def hear_lanes(self, told: Sequence[bytes], round: int) -> None:
        """Take note of what they tell. The lanes mix apart, so what is read is the quotient of all their parts.

        Raises:
            MismatchError: one of them reports other names.
        """
        self._lanes = 0.0
        for numbers in told:
            _, known, flags, digest = _HEAD.unpack_from(numbers)
            if flags:
                self._hear(known, flags, digest, "another rank of this host", round)
                self._lanes = self._lanes + _values(numbers)

    # ------------------------------------------------------------------ names

    def _head(self) -> bytes:
        known = max(self._digests, default=0)
        return _HEAD.pack(self._generation, known, self._flags, self._digests.get(known, b""))

    def _hear(self, known: int, flags: int, digest: bytes, who: str, round: int) -> None:
        self._flags |= flags
        if known and self._digests.setdefault(known, digest) != digest:
            here = ", ".join(self._names) or "none"
            raise MismatchError(self._differ(f"{who} reports other names (round {round}) than this rank ({here})"))

    def _in_window(self) -> Window:
        if self._window is None:
            self._window = self._make_window()
        return self._window

    def _differ(self, how: str) -> str:
        return (
            f"rank {self._name(None)}: {how}. All ranks report the same names, and first use them in the same order: "
            "call report() with the same keywords on every rank"
        )

    # ------------------------------------------------------------------ beginning again

    def restart(self) -> None:
        """Begin again from what this rank has reported: the sums are not what they should be.

        That is so when parts of them are lost with a rank or a message, or have lost their digits to a value that was
        huge or not finite. Every rank that hears of the new generation begins again too; what older messages carry
        counts no more.
        """
        self._begin_again(self._generation + 1)

    def _begin_again(self, generation: int) -> None:
        self._generation = generation
        self._part[:] = self._given
        self._largest = np.abs(self._given[0])

    def _digits_are_lost(self) -> bool:
        if not np.isfinite(self._part).all():
            return bool(np.isfinite(self._reported).all())
        scale = np.abs(self._reported[0])
        if self._read is not None:
            values, counts = self._read
            scale = np.maximum(scale, np.abs(np.divide(values, counts, out=np.zeros(PLACES), where=counts > 0)))
        return bool((self._largest > LOST_DIGITS * scale).any())

    def move(self) -> None:
        """Go on among other ranks, as after a loss: on another graph, with nothing in flight."""
        self._window = None
        self.restart()

    # ------------------------------------------------------------------ when all ranks average exactly

    def to_sum(self) -> Any:
        """Return a flat array for :meth:`take_sum`; nothing of any rank is in flight."""
        self._take_values()
        generation = float(self._generation)
        head = (generation, generation**2, self._flags & ASKED, self._flags & MEASURES)
        return np.array([*head, *self._reported.reshape(-1)], np.float64)

    def take_sum(self, total: Any, on_all_lanes: Any, size: int) -> None:
        """Take over the sum over ranks of :meth:`to_sum`: the means are exact now.

        Args:
            total: over the ranks with which this one gossips, of which there are ``size``.
            on_all_lanes: over those of all lanes.
        """
        generations, squares, asked, measures = total[:HEAD_OF_SUM]
        self._flags |= ASKED * bool(asked) | MEASURES * bool(measures)
        if not self._flags or squares * size != generations**2:
            return  # nobody asks; or some begin again, and others have not heard of it
        self._given[:] = self._reported
        everywhere = on_all_lanes[HEAD_OF_SUM:].reshape(2, PLACES) / size
        self._part = (total[HEAD_OF_SUM:] / size).reshape(2, PLACES)
        self._lanes = everywhere - self._part
        self._read = everywhere


def _values(numbers: bytes) -> Any:
    return np.frombuffer(numbers, np.float64, offset=_HEAD.size).reshape(2, PLACES)
