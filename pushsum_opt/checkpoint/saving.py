"""Saving: every rank writes its part, and rank 0 completes the checkpoint when all are there."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError, ConfigurationError, RanksLost
from ..push_sum import PushSum, push_sum_of, rounds
from . import directory as directories
from .directory import Manifest, file_of
from .files import save_tensors
from .part import Companions, capture
from .together import try_together
from .trying import try_loading

__all__ = ["save"]

CALL = "checkpoint.save()"


def save(
    directory: str | os.PathLike[str],
    optimizer: Any,
    *,
    extra: Any = None,
    scaler: Any = None,
    scheduler: Any = None,
    also: Mapping[str, Any] | None = None,
    keep: int | None = 3,
) -> Path:
    """Collective. Write the state of the whole run; call it on all ranks after the same step.

    Saved are, of every rank: the model, the optimizer with its push weight, the messages in flight, and the random
    generators. Nothing in flight is merged: a synchronous or overlapped run has the same bits whether it saves or not.
    An asynchronous run merges what is on its way first, as any of its rounds may do.

    Args:
        directory: where all checkpoints of the run are; made if needed. All ranks must see the same one.
        optimizer: a :class:`~pushsum_opt.PushSumOptimizer`.
        extra: plain values and tensors to get back, such as ``{"epoch": 3}``; each rank its own.
        scaler: a GradScaler.
        scheduler: a learning-rate scheduler, or several in a list.
        also: other objects with state_dict() and load_state_dict(), by name.
        keep: how many of the newest checkpoints stay; None: all.

    Returns:
        The directory of this checkpoint, inside ``directory``.

    Raises:
        CheckpointError: it could not be written; the same on every rank. Earlier checkpoints are whole, and training
            may go on.
        ConfigurationError: ``keep`` is not an int of at least 1 or None, or ``optimizer`` is not wrapped.
        MismatchError: the ranks call it in different rounds, or some call something else.
        CallOrderError: inside ``averaged()`` or ``join()``.
    """
    push_sum = push_sum_of(optimizer)
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
        raise ConfigurationError(f"keep={keep!r}: expected an int of at least 1, or None for all")
    root = Path(directory)
    companions = Companions(scaler, scheduler, also)
    push_sum.member.lifetime.refuse_if_on_loan(CALL)

    def write() -> Path:
        # The others wait for a rank that is interrupted while it writes, so they are told.
        with push_sum.member.lifetime.failing_together(only_interrupts=True), push_sum.member.calls.during(CALL):
            rounds.await_in_flight(push_sum.member, CALL)
            return _save(push_sum, root, optimizer, companions, extra, keep)

    return push_sum.member.survival.together(write)


def _save(push_sum: PushSum, root: Path, optimizer: Any, companions: Companions, extra: Any, keep: int | None) -> Path:
    first = push_sum.member.place.speaks

    def begin() -> list[str] | None:
        return [str(directories.begin(root, push_sum.round)), push_sum.member.run] if first else None

    begun, run = try_together(push_sum, "saving", begin)[0]  # every lane has its own name for the run
    path = Path(begun)
    try:
        entries = try_together(
            push_sum,
            "saving",
            lambda: _write_part(path, {"run": run, **capture(optimizer, companions, extra)}, optimizer),
        )
        manifest = _manifest(run, push_sum.size, entries)
        try_together(push_sum, "saving", lambda: _complete(root, path, manifest, keep) if first else None)
    except (CheckpointError, RanksLost):
        if first:
            directories.discard(path)
        raise
    return path


def _write_part(path: Path, part: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: rank 0 made this directory, but host {socket.gethostname()} does not see it. All ranks must see "
            "the same file system"
        )
    file = path / file_of(part["rank"])
    written = save_tensors(file, part)
    try_loading(optimizer, file)
    return {"round": part["round"], "place": part["place"], **written}


def _manifest(run: str, size: int, entries: list[dict[str, Any]]) -> Manifest:
    rounds = [entry.pop("round") for entry in entries]
    places = [entry.pop("place") for entry in entries]
    files = {file_of(rank): entry for rank, entry in enumerate(entries)}
    versions = {"torch": str(torch.__version__), "numpy": np.__version__}
    return Manifest(run, size, rounds, places, files, versions)


def _complete(root: Path, path: Path, manifest: Manifest, keep: int | None) -> None:
    directories.commit(path, manifest)
    directories.prune(root, keep, path)
