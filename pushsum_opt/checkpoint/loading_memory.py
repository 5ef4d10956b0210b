"""Resuming from memory: exactly where all parts are there, else from the exact weighted average of what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..channel import Channel
from ..errors import CheckpointError
from ..interrupts import held_back
from ..log import log
from ..push_sum import PushSum
from ..push_sum.saving import refuse_newer_format
from .apart import pack_tree, unpack_tree
from .loading import CLOSE, average
from .memory_file import About, read_part
from .memory_folder import MemoryFolder
from .part import KEY, Companions, check_fits, restore, seat
from .survey import Generation, best, generations
from .together import raise_alike, try_together

__all__ = ["Left", "load_left", "look", "refuse_too_little"]


class Left:
    """What is left in memory of the run, as seen by all ranks together.

    Args:
        chosen: the same on all ranks.
        files: the parts of it that this rank can read.
    """

    def __init__(self, chosen: Generation, files: Mapping[int, tuple[Path, About]]) -> None:
        self.chosen = chosen
        self.files = files

    def read(self, rank: int) -> dict[str, Any]:
        """Read the part of a rank."""
        path, about = self.files[rank]
        part = read_part(path, about)
        refuse_newer_format(str(path), part["optimizer"].get(KEY), otherwise="")
        return part


def look(push_sum: PushSum, folder: MemoryFolder) -> Left | None:
    """Collective. Return the checkpoint in memory of which most is left, the newest of these; None: there is none."""
    mine: list[tuple[Path, About]] = []

    def list_parts() -> list[dict[str, Any]]:
        mine.extend(folder.parts())
        return [asdict(about) for _, about in mine]

    chosen = best(generations(try_together(push_sum, "loading", list_parts)))
    if chosen is None:
        return None
    files = {
        about.rank: (path, about)
        for path, about in mine
        if (about.run, about.generation, about.size) == (*chosen.name, chosen.size)
    }
    return Left(chosen, files)


def load_left(push_sum: PushSum, left: Left, optimizer: Any, companions: Companions) -> tuple[bool, Any]:
    """Collective. Load it; return whether the run goes on as it was, rank by rank, and this rank's ``extra``."""
    chosen, usable = left.chosen, left.chosen.usable()
    seats = try_together(push_sum, "loading", lambda: seat(push_sum))
    exact = (
        not chosen.missing()
        and chosen.size == push_sum.size
        and all(list(usable[rank].place) == seats[rank] for rank in usable)
        and all(rank in chosen.seen_by[rank] for rank in usable)
    )
    _check_mass(push_sum, chosen)
    part = _like(push_sum, left, usable)

    def check() -> None:
        check_fits(part, optimizer, companions, exact=exact)

    try_together(push_sum, "loading", check)
    if exact:
        state = part["optimizer"][KEY]
        if not chosen.in_step:  # what was in flight is left out, so that w is scaled to sum to n again
            state["push_weight"] *= chosen.participants / chosen.mass
    else:
        readers = {rank: chosen.seen_by[rank][rank % len(chosen.seen_by[rank])] for rank in usable}

        def mine() -> Iterator[Mapping[str, Any]]:
            for rank, reader in readers.items():
                if reader == push_sum.rank:
                    yield part if rank == part["rank"] else left.read(rank)

        part, _ = average(push_sum, part, mine, chosen.round)

    def put_back() -> None:
        with held_back():  # every part is of the same round
            restore(part, optimizer, companions, random=exact)

    try_together(push_sum, "loading", put_back)
    if push_sum.member.place.speaks:
        log.info("resumed from %s", _told(chosen, exact, push_sum.size))
    return exact, part["extra"]


def _check_mass(push_sum: PushSum, chosen: Generation) -> None:
    """Collective. In step, the mass of all parts is n, and that of some of them is less."""
    n, mass = chosen.participants, chosen.mass
    if chosen.in_step and (mass > n * (1 + CLOSE) or (not chosen.missing() and mass < n * (1 - CLOSE))):
        text = (
            f"the parts of round {chosen.round} in memory hold a mass of {mass:.12g}; expected {n}: the run had lost "
            "mass before they were saved. Remove them to go on from the checkpoint on disk"
        )
        raise_alike(push_sum, "loading", {0: text})


def _like(push_sum: PushSum, left: Left, usable: Mapping[int, About]) -> dict[str, Any]:
    """Collective. Return this rank's own part, or another of this host, or, where there is none, that of a first rank.

    It is what cannot be averaged: the optimizer's state, scheduler, scaler, extra, integer buffers.
    """
    chosen = left.chosen
    here = [rank for rank in usable if rank in left.files]
    part: dict[str, Any] = {}

    def read() -> bool:
        if here:
            own = push_sum.rank if push_sum.rank in here else here[push_sum.rank % len(here)]
            part.update(left.read(own))
        return bool(here)

    have = try_together(push_sum, "loading", read)
    if all(have):
        return part
    root = have.index(True)
    packed = pack_tree(part) if push_sum.rank == root else b""
    sizes = try_together(push_sum, "loading", lambda: len(packed))
    data = np.frombuffer(packed, np.uint8).copy() if packed else np.empty(sizes[root], np.uint8)
    with push_sum.member.lifetime.failing_together():
        channel = Channel.open(push_sum.comm, timeout=push_sum.member.options.timeout)
        try:
            channel.broadcast(data, root, f"a part of round {chosen.round} in memory for hosts that have none")
            channel.barrier("all hosts to have a part")
        finally:
            channel.close()

    def unpack() -> None:
        if not here:
            part.update(unpack_tree(data.tobytes()))

    try_together(push_sum, "loading", unpack)
    return part


def _told(chosen: Generation, exact: bool, size: int) -> str:
    n = chosen.participants
    told = chosen.described()
    if chosen.taken_back:
        told += f"; messages in flight, {chosen.taken_back / n:.3g} of the mass, count as their senders' own"
    elif not chosen.in_step:
        told += (
            f"; the parts hold {chosen.mass / n:.4g} of the mass, the rest was in flight or is lost, and w is scaled"
        )
    if exact:
        return told
    return f"{told}. Each of {size} ranks starts from the exact weighted average of these parts"


def refuse_too_little(chosen: Generation, enough: float) -> CheckpointError:
    """Return the error for a run of which less than ``enough`` is left, and that has nothing on disk."""
    return CheckpointError(
        f"there is no checkpoint on disk, and of {chosen.described()}: {chosen.share:.4g} of the data weight is left, "
        f"expected at least {enough:g} (resume(enough=...)). Pass a smaller number to go on from it, or remove the "
        "directory of the checkpoints to begin anew"
    )
