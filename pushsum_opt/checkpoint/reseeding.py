"""A DataLoader that can begin anywhere in its epoch, with the same random draws for each batch.

Workers have their own generators, which go on from batch to batch (with ``persistent_workers`` from epoch to epoch). So
each batch brings a seed, and its worker's generators start from that. What is drawn for a batch then depends only on
the seed of the epoch and the number of the batch.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

__all__ = ["Positioned", "can_position"]

OPTIONS = (
    "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator",
    "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order",
)  # fmt: skip


def can_position(loader: Any) -> bool:
    """Tell whether batches of a loader can be left out without reading them: a plain DataLoader, not a stream."""
    return type(loader) is DataLoader and not isinstance(loader.dataset, torch.utils.data.IterableDataset)


class Positioned:
    """A DataLoader's twin.

    Args:
        loader: what it is like; workers that persist stay with the twin.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._indices: Any = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
        self._prepared = _Prepared()
        seeded = loader.num_workers > 0
        dataset: Any = _Reseeding(loader.dataset, single=loader.batch_sampler is None) if seeded else loader.dataset
        options: dict[str, Any] = {name: getattr(loader, name) for name in OPTIONS if hasattr(loader, name)}
        if loader.batch_sampler is not None:
            options["batch_sampler"] = self._prepared
        else:
            options |= {"sampler": self._prepared, "batch_size": None}
        self._prepared.seeded = seeded
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the loader itself has warned already
            self._twin: DataLoader[Any] = DataLoader(dataset, **options)

    def prepare(self, seed: int, skip: int) -> None:
        """Draw the order of an epoch, up to the first batch that is wanted."""
        indices = iter(self._indices)
        for _ in range(skip):
            next(indices, None)
        self._prepared.seed, self._prepared.number = seed, skip
        self._prepared.first = list(islice(indices, 1))  # samplers draw from the generators when they are first asked
        self._prepared.rest = indices

    def __iter__(self) -> Iterator[Any]:
        return iter(self._twin)


class _Prepared:
    """A sampler whose order was drawn before it is asked."""

    seeded = False
    seed = 0
    number = 0
    first: list[Any]
    rest: Iterator[Any]

    def __iter__(self) -> Iterator[Any]:
        for number, indices in enumerate(chain(self.first, self.rest), self.number):
            yield _Key(indices, self.seed, number) if self.seeded else indices


class _Key(NamedTuple):
    """What a worker is asked for."""

    indices: Any
    seed: int
    number: int


class _Reseeding:
    """A dataset that seeds the generators of its process for each batch; collate_fn draws from them afterwards."""

    def __init__(self, dataset: Any, *, single: bool) -> None:
        self._dataset = dataset
        if not single:
            self.__getitems__ = self._items

    def __getitem__(self, key: _Key) -> Any:
        _begin(key)
        return self._dataset[key.indices]

    def _items(self, key: _Key) -> Any:
        _begin(key)
        several = getattr(self._dataset, "__getitems__", None)
        return several(key.indices) if several else [self._dataset[index] for index in key.indices]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataset":
            raise AttributeError(name)
        return getattr(self._dataset, name)  # for a worker_init_fn that asks the worker's dataset


def _begin(key: _Key) -> None:
    words = np.random.SeedSequence([key.seed, key.number]).generate_state(6)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    random.seed(int(words[2]) << 32 | int(words[3]))
    np.random.seed(words[4:])  # noqa: NPY002  (what others draw from)
