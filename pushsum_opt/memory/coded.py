"""Chunks that travel in eight bits (``wire_dtype="int8"``), or whole as long as eight bits would not do.

What stands in such a chunk::

    16 bytes   whole (0 or 1) and for how many rounds messages are to be whole from now on: two int32; 8 are unused
    whole      every element in float32 (float64 for float64)
    otherwise  theta, one float32 per block; two check sums, float32, per block; a byte per element

Eight bits do where the receiver is near the sender. How near it is, a rank learns from what comes: the bound of a block
is the largest difference seen in merges, here or on a rank of which this one has heard; it falls by 6 % in every
window of the graph. So messages are whole in the first rounds. They are whole again, on all ranks, after a rank has
seen that many blocks came out wrong, or one again before its senders can know of it, or has met inf or nan. They are
so for as long as news needs to reach everybody: the number of these rounds travels along, and counts down. So a rank
that was reloaded, or has diverged, is mended as it would be with float32.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import modulo
from .coded_passes import Decoded
from .compiled_passes import CompiledPasses
from .modulo import BLOCK
from .plan import HEAD_BYTES, Chunk, blocks_of, coded_bytes
from .primitives import Array
from .verdict import Outcome

__all__ = ["Coded"]

DECAY = 0.94
"""What is left of a bound after one window of the graph in which nothing larger was seen."""

WHOLE_DECAY = 0.5
"""The same after one whole message: where ranks began far apart, what they learn at last counts."""

FIRST_ROUNDS = 16
"""Messages of at least so many first rounds are whole: with momentum, ranks move apart faster in each of these."""

MISSED_SHARE = 1 / 8
"""If more of a chunk's blocks come out wrong, bounds that double are too slow."""


class Coded(CompiledPasses):
    """Chunks as flat arrays, some of which travel in eight bits."""

    _whole = True
    _whole_left = 1
    _reach = 1
    _late = 0
    _decay = DECAY

    def _rebuild(self) -> None:
        super()._rebuild()
        coded = [chunk for chunk in self.exchanged if chunk.wire.coded]
        if {chunk.index: blocks_of(chunk.numel) for chunk in coded} != {i: len(b) for i, b in self._bounds.items()}:
            self._bounds = {chunk.index: self._zeros(blocks_of(chunk.numel), chunk) for chunk in coded}
            self._begin_whole()

    # ------------------------------------------------------------------ which form a message has

    @property
    def codes(self) -> bool:
        """Whether any chunk travels in eight bits."""
        return bool(self._bounds)

    @property
    def blocks(self) -> int:
        """How many blocks of a message travel in eight bits."""
        return sum(len(bounds) for bounds in self._bounds.values())

    def follow_graph(self, reach: int, window: int, late: int) -> None:
        """Take note of how fast news travels: messages are whole now, and until all have heard from all.

        Args:
            reach: the number of rounds after which something of every rank has come to every other.
            window: the rounds over which the graph is connected.
            late: the rounds after which a message is merged.
        """
        self._reach, self._decay, self._late = (1 + late) * reach, DECAY ** (1 / window), late
        self._begin_whole()

    def _begin_whole(self) -> None:
        """Nothing is known of the others: begin as at the start."""
        self._whole_left = max(self._reach, FIRST_ROUNDS)

    def begin_round(self) -> None:
        """Decide the form of the messages of this round."""
        self._whole = self._whole_left > 0
        self._whole_left = max(0, self._whole_left - 1)
        decay = WHOLE_DECAY if self._whole else self._decay
        for bounds in self._bounds.values():
            bounds *= decay

    @property
    def message_bytes(self) -> int:
        """Bytes of a message of this round, its header left out."""
        return sum(self._packed_bytes(chunk) for chunk in self.exchanged)

    def _packed_bytes(self, chunk: Chunk) -> int:
        if not chunk.wire.coded:
            return chunk.nbytes
        return HEAD_BYTES + chunk.numel * chunk.wire.itemsize if self._whole else coded_bytes(chunk.numel)

    def ask_for_whole(self, rounds: int | None = None) -> None:
        """Let messages be whole: this rank's own, and through them those of others.

        Args:
            rounds: how many more; None: until everybody has heard of it.
        """
        self._whole_left = max(self._whole_left, self._reach if rounds is None else rounds)

    @property
    def coding_bytes(self) -> int:
        """Bytes that eight bits take beside slabs: bounds, and what chunks are worked on in."""
        return sum(int(array.nbytes) for array in (*self._bounds.values(), *self._flats.values()))

    # ------------------------------------------------------------------ to the wire

    @np.errstate(all="ignore")
    def _encode(self, chunk: Chunk, data: Array, left: float, given: float) -> None:
        """Write a chunk to its bytes, in the form of the message; z, or its residual, keeps what rounding takes away.

        Args:
            data: ``chunk.nbytes`` bytes.
            left, given: w after giving, and M; see :meth:`Memory.keep_rounding`.
        """
        head = self._view_as(data[:HEAD_BYTES], "int32")
        head[0], head[1] = int(self._whole), self._whole_left
        if self._whole:
            self._gather_into(self._whole_values(chunk, data), chunk)
            return
        self._encode_places(chunk, data, left, given)

    # ------------------------------------------------------------------ from the wire

    @np.errstate(all="ignore")
    def _merge_decoded(self, chunk: Chunk, slab: Array, weight: float, mass: float, heal: bool) -> Outcome:
        """Fold in a chunk that has come, unless it holds inf or nan; let the form of messages follow from it."""
        data = self._slab_bytes(chunk, slab)
        whole, rounds = self._head(data)
        self.ask_for_whole(rounds - self._late)
        if whole:
            decoded = self._decode_whole(chunk, data, True)
            # Nothing is healed in eight bits: blocks that are not finite here come out wrong; whole messages follow.
            healed = decoded.finite and heal and self._heal_from(chunk, decoded.values)
            if decoded.finite:
                self._fold(chunk, decoded.values, weight, mass)
            outcome = Outcome(decoded.finite, healed)
        else:
            outcome = self._merge_places(chunk, data, weight, mass)
        self._heed(chunk, finite=outcome.finite, missed=outcome.missed, far=outcome.far)
        return outcome

    @abstractmethod
    def _heal_from(self, chunk: Chunk, theirs: Array) -> bool:
        """Copy finite values over the elements of ours that are not; tell whether there were any."""

    def _head(self, data: Array) -> tuple[bool, int]:
        """Return whether a chunk that has come is whole, and for how many rounds its sender wants that; this once."""
        head = self._view_as(data[:HEAD_BYTES], "int32")
        rounds, head[1] = int(head[1]), 0
        return bool(head[0]), rounds

    def _heed(self, chunk: Chunk, *, finite: bool, missed: int = 0, far: bool = False) -> None:
        """Ask for whole messages where bounds are too slow: inf or nan, many missed blocks, or far ones."""
        if not finite or far or missed > MISSED_SHARE * blocks_of(chunk.numel):
            self.ask_for_whole()

    def _decode_whole(self, chunk: Chunk, data: Array, learn: bool) -> Decoded:
        values = self._whole_values(chunk, data)
        finite = self._all_finite(values)
        if learn and finite:
            xp, scratch, bounds = self._xp, self._scratch(chunk), self._bounds[chunk.index]
            tiles, all_seen = self._own_tiles(chunk), []
            for tile, mine in zip(tiles, self._rows(tiles, scratch), strict=True):
                theirs, places = values[tile.elements], scratch.places[: tile.rows]
                flat = places.reshape(-1)
                flat[len(theirs) :] = 0
                self._cast(flat[: len(theirs)], theirs)
                all_seen.append(modulo.largest_difference(xp, places, mine, scratch))
            seen = self._joined(all_seen)
            known = xp.isfinite(seen)
            bounds[:] = modulo.bounds_after(xp, bounds, known, seen)
            self._heed(chunk, finite=bool(known.all()))  # inf or nan among our own
        return Decoded(values, finite)

    def _on_wire(self, chunk: Chunk, slab: Array) -> Array:
        if not chunk.wire.coded:
            return super()._on_wire(chunk, slab)
        # What its sender asks for is heeded when it is merged: a run has the same bits whether it is saved or not.
        data = self._slab_bytes(chunk, slab)
        decode = self._decode_whole if self._view_as(data[:HEAD_BYTES], "int32")[0] else self._decode_places
        return self._copy_of(decode(chunk, data, False).values)

    def _to_fill(self, chunk: Chunk, data: Array) -> Array:
        """Return the values in the bytes of a slab that is filled from a file; a coded chunk is whole at first."""
        if not chunk.wire.coded:
            return self._view_as(data, chunk.wire.dtype)
        head = self._view_as(data[:HEAD_BYTES], "int32")
        head[0], head[1] = 1, 0
        return self._whole_values(chunk, data)

    def _asides(self, slabs: Mapping[int, Array]) -> dict[str, Array]:
        """Return what a message says beside values: thetas, where it came in eight bits, and for how many rounds its
        sender wants whole messages."""
        found = {}
        for chunk in (chunk for chunk in self.exchanged if chunk.wire.coded):
            data = self._slab_bytes(chunk, slabs[chunk.index])
            head = self._view_as(data[:HEAD_BYTES], "int32")
            if not int(head[0]):
                found[self._name_of_thetas(chunk)] = self._copy_of(self._parts_of_bytes(chunk, data).theta)
            if int(head[1]):
                found[self._name_of_rounds(chunk)] = self._copy_of(head[1:2])
        return found

    def _code_again(self, chunk: Chunk, data: Array, state: Mapping[str, Array]) -> None:
        """Give a chunk that was filled whole its head and its eight bits again, where it is cut as it was."""
        rounds = state.get(self._name_of_rounds(chunk)) if chunk.wire.coded else None
        if rounds is not None:
            self._view_as(data[:HEAD_BYTES], "int32")[1] = int(rounds[0])
        came = state.get(self._name_of_thetas(chunk)) if chunk.wire.coded else None
        if came is None or not self._all_finite(self._whole_values(chunk, data)):
            return
        xp, scratch, values = self._xp, self._scratch(chunk), self._working(chunk, "theirs")
        values[: chunk.numel] = self._whole_values(chunk, data)
        values[chunk.numel :] = 0
        self._view_as(data[:HEAD_BYTES], "int32")[0] = 0
        parts, rows, sums = self._parts_of_bytes(chunk, data), values.reshape(-1, BLOCK), []
        self._cast(parts.theta, came)
        step, inverse = modulo.steps_of(self._widen(parts.theta, self._work_dtype(chunk)))
        for tile in self._own_tiles(chunk):
            places, _, found = modulo.encode(xp, rows[tile.blocks], step[tile.blocks], inverse[tile.blocks], scratch)
            sums.append(found)
            integers = scratch.integers[: tile.rows]
            self._cast(integers, places)
            self._cast(parts.places[tile.blocks], integers)
        self._cast(parts.sums, self._joined(sums, 1))

    def _name_of_thetas(self, chunk: Chunk) -> str:
        return f"thetas of chunk {chunk.index} of layout {self.layout_digest.hex()}"

    def _name_of_rounds(self, chunk: Chunk) -> str:
        return f"rounds of chunk {chunk.index} of layout {self.layout_digest.hex()}"

    def _message_dtype(self, chunk: Chunk) -> str:
        return self._work_dtype(chunk) if chunk.wire.coded else chunk.wire.dtype

    # ------------------------------------------------------------------ views and scratch

    def _whole_values(self, chunk: Chunk, data: Array) -> Array:
        nbytes = chunk.numel * chunk.wire.itemsize
        return self._view_as(data[HEAD_BYTES : HEAD_BYTES + nbytes], self._work_dtype(chunk))

    def _zeros(self, count: int, chunk: Chunk) -> Array:
        array = self._allocate(count, self._work_dtype(chunk), chunk.device)
        array[:] = 0
        return array

    # ------------------------------------------------------------------ for files

    def wire_state(self) -> dict[str, Any]:
        """Return what later messages depend on, beside z: empty unless some travel in eight bits."""
        if not self._bounds:
            return {}
        bounds = {index: self._copy_of(bounds) for index, bounds in self._bounds.items()}
        return {"layout": self.layout_digest.hex(), "whole_left": self._whole_left, "bounds": bounds}

    def load_wire_state(self, state: Mapping[str, Any]) -> None:
        """Continue with what :meth:`wire_state` returned; of another layout, or empty: begin with whole messages."""
        if state.get("layout") != self.layout_digest.hex():
            self._begin_whole()
            return
        self._whole_left = int(state["whole_left"])
        for index, bounds in state["bounds"].items():
            self._cast(self._bounds[index], bounds)
