"""The batches of an epoch that follow those before a checkpoint: the same ones, with the same random draws."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch

from . import randomness
from .reseeding import Positioned, can_position

__all__ = ["Batches", "Places"]

NEW: Mapping[str, Any] = {"number": 0, "start": None, "own": None}


class Places:
    """Where each loop over batches is; several may run side by side, as in ``zip(batches(a), batches(b))``."""

    def __init__(self) -> None:
        self._open: dict[int, Batches] = {}
        self._last: dict[int, Batches] = {}
        self._resumed: dict[int, Mapping[str, Any]] = {}
        self._generators: dict[str, Any] | None = None
        self._twins: weakref.WeakKeyDictionary[Any, Positioned] = weakref.WeakKeyDictionary()

    def batches(self, loader: Iterable[Any]) -> Batches:
        """Return the batches of the next epoch of a loader."""
        return Batches(self, loader)

    def state(self) -> list[dict[str, Any]]:
        """Return where the loops are, for a checkpoint."""
        known = {**self._last, **self._open}
        return [known[slot].state(open=slot in self._open) for slot in sorted(known)]

    def resume(self, state: Iterable[Mapping[str, Any]], *, exact: bool, ratio: float) -> None:
        """Let the next loops begin where :meth:`state` found them; the generators have been put back already.

        Args:
            exact: put the generators back once more when the first new batch begins.
            ratio: the number of ranks that saved, over the number that goes on. Each rank then leaves out so many times
                the batches that were seen.
        """
        self._resumed = dict(enumerate(state))
        self._generators = randomness.state() if exact else None
        if not exact:
            seen = {slot: int(place["number"] * ratio) for slot, place in self._resumed.items()}
            self._resumed = {slot: {**NEW, "number": number} for slot, number in seen.items()}

    def enter(self, batches: Batches) -> tuple[int, Mapping[str, Any], dict[str, Any] | None]:
        """Register a loop; return its slot, where it begins, and the generators' states there, if it is resumed."""
        slot = min(set(range(len(self._open) + 1)) - set(self._open))
        self._open[slot] = batches
        place = self._resumed.pop(slot, NEW)
        generators = self._generators if place["number"] else None
        return slot, place, generators

    def leave(self, slot: int) -> None:
        self._last[slot] = self._open.pop(slot)

    def peek(self) -> int:
        """Return how many batches the next loop leaves out."""
        slot = min(set(range(len(self._open) + 1)) - set(self._open))
        return int(self._resumed.get(slot, NEW)["number"])

    def twin(self, loader: Any) -> Positioned:
        if loader not in self._twins:
            self._twins[loader] = Positioned(loader)
        return self._twins[loader]


class Batches:
    """One epoch of a loader. ``len()`` is the number of batches that are left."""

    def __init__(self, places: Places, loader: Iterable[Any]) -> None:
        self._places = places
        self._loader = loader
        self._own = _generators_of(loader)
        self._number = 0
        self._start: dict[str, Any] | None = None

    def __len__(self) -> int:
        total: Any = self._loader
        return max(0, len(total) - self._places.peek())

    def state(self, *, open: bool) -> dict[str, Any]:
        now = [generator.get_state() for generator in self._own]
        return {"number": self._number if open else 0, "start": self._start if open else None, "own": now}

    def __iter__(self) -> Iterator[Any]:
        slot, place, generators = self._places.enter(self)
        try:
            yield from self._epoch(place, generators)
        finally:
            self._places.leave(slot)

    def _epoch(self, place: Mapping[str, Any], resumed: dict[str, Any] | None) -> Iterator[Any]:
        self._number = place["number"]
        exactly = resumed is not None and place["start"] is not None
        if exactly:  # draw the order of the epoch from the generators as they were when it was drawn
            _restore(place["start"], self._own)
        elif place["own"] is not None:
            _put(self._own, place["own"])
        self._start = place["start"] if exactly else _save(self._own)
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
        iterator = self._begin(seed)
        if exactly and resumed is not None:
            randomness.restore(resumed)  # drawing the order has moved the loader's own generators
        for batch in iterator:
            self._number += 1
            yield batch

    def _begin(self, seed: int) -> Iterator[Any]:
        """Return an iterator behind what was seen, and leave the generators as if no iterator had drawn from them."""
        if can_position(self._loader):
            twin = self._places.twin(self._loader)
            twin.prepare(seed, self._number)
            drawn = _save(self._own)
            iterator = iter(twin)
        else:
            drawn = _save(self._own)
            iterator = iter(self._loader)
            for _ in islice(iterator, self._number):
                pass  # a stream: batches that were seen must be read again
        _restore(drawn, self._own)
        return iterator


def _generators_of(loader: Any) -> list[torch.Generator]:
    """List the generators that a loader and its samplers draw from beside the global ones."""
    found: list[torch.Generator] = []
    for holder in ("", "sampler", "batch_sampler", "batch_sampler.sampler"):
        one = loader
        for name in holder.split(".") if holder else ():
            one = getattr(one, name, None)
        generator = getattr(one, "generator", None)
        if isinstance(generator, torch.Generator) and not any(generator is other for other in found):
            found.append(generator)
    return found


def _save(own: list[torch.Generator]) -> dict[str, Any]:
    return {"global": randomness.state(), "own": [generator.get_state() for generator in own]}


def _restore(saved: Mapping[str, Any], own: list[torch.Generator]) -> None:
    randomness.restore(saved["global"])
    _put(own, saved["own"])


def _put(own: list[torch.Generator], states: Iterable[torch.Tensor]) -> None:
    for generator, state in zip(own, states, strict=False):
        generator.set_state(state)
