"""Resuming: exactly, on as many ranks as before; from the exact average, on another number of ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..interrupts import held_back
from ..log import log
from ..push_sum import PushSum, push_sum_of, rounds
from ..tensor_kinds import lasting
from . import directory as directories
from .directory import Manifest, read_part
from .part import KEY, Companions, check_fits, restore, seat
from .together import raise_alike, sum_over_job, try_together
from .weighted import WeightedSum, mass_of

__all__ = ["CLOSE", "Resumed", "average", "find", "load", "load_from"]

CLOSE = 1e-9  # the mass of a checkpoint may differ from n by this, relative to n


@dataclass(frozen=True)
class Resumed:
    """What was loaded."""

    path: Path
    """The directory of the checkpoint."""

    round: int
    """k, from which this rank goes on."""

    exact: bool
    """Whether the run continues as if it had never stopped: True on the same number of ranks."""

    extra: Any
    """What was passed to save: this rank's, or that of rank ``rank % old size``."""


def load(
    directory: str | os.PathLike[str],
    optimizer: Any,
    *,
    scaler: Any = None,
    scheduler: Any = None,
    also: Mapping[str, Any] | None = None,
) -> Resumed:
    """Collective. Continue from the newest checkpoint in a directory; call it on all ranks.

    On as many ranks as before, everything is as it was: a synchronous or overlapped run goes on with the same bits as
    if it had never stopped. On another number of ranks, every rank starts from the exact weighted average of the model,
    mass in flight included, with w = a_i; floating buffers are averaged with the data weights (unless "local");
    optimizer state, scheduler, scaler, ``extra`` and all that cannot be averaged are those of rank ``rank % old size``;
    random generators stay as they are.

    Nothing is changed unless every rank could read and check its part. The files are read without running code from
    them (``torch.load(weights_only=True)``).

    Args:
        directory: what was passed to save, or the directory of one checkpoint in it.
        optimizer: a :class:`~pushsum_opt.PushSumOptimizer` around the same kind of optimizer and model.
        scaler, scheduler, also: as passed to save.

    Raises:
        CheckpointError: there is none; or a file is missing, cut off, changed, of another run, or does not fit the
            model. The same on every rank, naming the file.
    """
    push_sum = push_sum_of(optimizer)
    member, root = push_sum.member, Path(directory)

    def read() -> Resumed:
        interrupts = member.lifetime.failing_together(only_interrupts=True)
        with interrupts, member.calls.during("checkpoint.load()"), lasting():
            found = find(push_sum, root)
            if found is None:
                raise_alike(push_sum, "loading", {0: str(directories.missing(root))})
            return load_from(found, optimizer, Companions(scaler, scheduler, also))

    return member.survival.together(read, commit=lambda _: member.place.ledger.all_opened())


def find(push_sum: PushSum, root: Path) -> tuple[Path, Manifest] | None:
    """Collective. Return rank 0's answer to which checkpoint is the newest; messages in flight are merged first."""
    rounds.drain_within(push_sum.member, "checkpoint.load()")

    def look() -> list[str] | None:
        found = directories.locate(root) if push_sum.member.place.speaks else None
        return None if found is None else [str(found[0]), found[1].to_json()]

    answer = try_together(push_sum, "loading", look)[0]
    return None if answer is None else (Path(answer[0]), Manifest.from_json(answer[1], Path(answer[0])))


def load_from(found: tuple[Path, Manifest], optimizer: Any, companions: Companions) -> Resumed:
    """Collective. Load the checkpoint that all ranks have found."""
    path, manifest = found
    push_sum: PushSum = optimizer.push_sum
    exact = try_together(push_sum, "loading", lambda: seat(push_sum)) == manifest.places
    parts: dict[int, dict[str, Any]] = {}
    own = push_sum.rank % manifest.size

    def read() -> float:
        parts[own] = read_part(path, manifest, own)
        check_fits(parts[own], optimizer, companions, exact=exact)
        return mass_of(parts[own])

    masses = try_together(push_sum, "loading", read)
    part = parts[own]
    if exact:
        _check_mass(push_sum, path, manifest, sum(masses))
    else:
        part = _average(push_sum, path, manifest, part)

    def put_back() -> None:
        with held_back():  # every part is of the same round
            restore(part, optimizer, companions, random=exact)

    try_together(push_sum, "loading", put_back)
    if push_sum.member.place.speaks:
        ranks = "one rank" if push_sum.size == 1 else f"{push_sum.size} ranks, each"
        how = "exactly" if exact else f"on {ranks} from the average of {manifest.size}"
        log.info("resumed %s from %s in round %d", how, path, push_sum.round)
    return Resumed(path, push_sum.round, exact, part["extra"])


def _check_mass(push_sum: PushSum, path: Path, manifest: Manifest, mass: float) -> None:
    expected = sum(lane == 0 for _, lane, _ in manifest.places)
    if not abs(mass - expected) <= CLOSE * expected:
        text = (
            f"{path}: expected a mass of {expected} in all, got {mass:.12g}: its files do not belong together, or "
            "the run had lost mass before it was saved"
        )
        raise_alike(push_sum, "loading", {0: text})


def _average(push_sum: PushSum, path: Path, manifest: Manifest, like: dict[str, Any]) -> dict[str, Any]:
    """Collective. Return a part for this rank that holds the average over all parts. Each file is read once."""

    def mine() -> Iterator[Mapping[str, Any]]:
        for rank in range(push_sum.rank, manifest.size, push_sum.size):
            yield like if rank == like["rank"] else read_part(path, manifest, rank)

    part, mass = average(push_sum, like, mine, max(manifest.rounds))
    _check_mass(push_sum, path, manifest, mass)
    return part


def average(
    push_sum: PushSum, like: dict[str, Any], mine: Callable[[], Iterable[Mapping[str, Any]]], round: int
) -> tuple[dict[str, Any], float]:
    """Collective. Return a part for this rank that holds the weighted average of parts, and the mass of these.

    Args:
        like: any part: for what cannot be averaged.
        mine: gives the parts that this rank adds; each part is given by one rank.
        round: k, from which the run goes on.
    """
    total = WeightedSum(like)

    def add() -> None:
        for part in mine():
            total.add(part)

    try_together(push_sum, "loading", add)

    def sum_in_place(flat: Tensor) -> None:
        sum_over_job(push_sum, flat.numpy(), "checkpoint.load()")

    total.over_ranks(sum_in_place)
    mass = {
        **like["optimizer"][KEY],  # with what others keep there
        **push_sum.state(),
        "round": round,
        "push_weight": push_sum.initial_weight,
        "residuals": total.residuals(like, push_sum.initial_weight),
        "in_flight": [],
    }
    optimizer = {**like["optimizer"], KEY: mass}
    part = {**like, "model": total.model(like), "parameters": total.parameters(like), "optimizer": optimizer}
    return part, float(total.weights[0])
