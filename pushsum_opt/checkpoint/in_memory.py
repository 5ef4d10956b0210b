"""Each rank's part of the run in the memory of its own host, written every so many rounds, without waiting for others.

Why two files are enough: a rank writes over the older one only when it knows that all ranks have written the newer
one. It knows this from the votes of the :class:`~pushsum_opt.checkpoint.Saver`: when a vote has been counted, every
rank has cast it, and with it has done all saves that came before the vote. So one generation is always whole.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigurationError
from ..log import log
from ..push_sum import PushSum, saving
from .apart import pack_tree, take_apart
from .given import Given
from .memory_file import About, MemoryFile, read_about
from .memory_folder import MemoryFolder, Slot, forget_name, name_of_run, usable_memory
from .part import KEY, Companions, capture
from .together import try_together

__all__ = ["InMemory"]


class InMemory:
    """The checkpoints in memory of one run. Construction is collective.

    Args:
        directory: of the checkpoints on disk; which folder in memory belongs to it is written there.
        every: save after each round that this number divides, or as soon after as can be.
        memory: a directory of each host that is kept in memory.
        limit: how full its file system may be at most, as a fraction.

    Raises:
        ConfigurationError: an argument has a value that cannot be used.
        CheckpointError: a rank cannot use its folder in memory; the same on every rank.
    """

    def __init__(self, push_sum: PushSum, directory: Path, every: int, memory: str | os.PathLike[str], limit: float):
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit <= 1:
            raise ConfigurationError(f"memory_limit={limit!r}: expected a fraction above 0 and at most 1")
        self._push_sum = push_sum
        self._every = every
        self._limit = limit
        speaks = push_sum.member.place.speaks or push_sum.member.survival.waits  # for a spare the name is there already
        where = usable_memory(memory)
        name = try_together(push_sum, "saving", lambda: name_of_run(directory) if speaks else None)[0]
        self._directory = directory
        self._slot: Slot | None = None
        with contextlib.ExitStack() as undone:
            undone.callback(self._release)
            try_together(push_sum, "saving", lambda: self._open(where, name))
            undone.pop_all()
        self._given = Given(push_sum)
        self._generation = 0  # how many this run has written
        self._among_these = 0  # how many of them among the ranks that take part now
        self._first_under_way = False
        self._removed = False
        self._cast = self._complete = 0  # with the open vote; on all ranks
        self._used: tuple[str, int] | None = None  # what the run was resumed from
        self.saved_round = push_sum.round

    def _open(self, memory: Path, name: str) -> None:
        self.folder = MemoryFolder(memory, name, self._directory)
        self._slot = self.folder.take()
        self._files = [MemoryFile(path) for path in self._slot.files]
        self._turn: int | None = None

    # ------------------------------------------------------------------ when

    def vote_cast(self) -> None:
        """This rank has cast a vote."""
        self._cast = self._generation

    def vote_counted(self) -> None:
        """The vote that was cast last has been counted: every rank has cast it."""
        self._complete = self._cast

    @property
    def due(self) -> bool:
        """Whether it is time to save, and all ranks have what was saved last. The same on all ranks in step."""
        round = self._push_sum.round
        return self._complete == self._generation and round // self._every > self.saved_round // self._every

    def resumed(self, used: tuple[str, int] | None) -> None:
        """The run goes on from a state.

        Args:
            used: (run, generation) of it, where it was in memory: it is kept until all ranks have a newer one.
        """
        self._used = used
        self.saved_round = self._push_sum.round
        self._given.forget(self._push_sum.round)

    # ------------------------------------------------------------------ saving

    def save(self, optimizer: Any, companions: Companions, extra: Any) -> bool:
        """Write this rank's part. Only the first time it is collective, so that all learn where there is no room.

        Returns:
            Whether it was written: not where messages are in flight whose mass is not known here, shortly after a
            checkpoint with messages was loaded.

        Raises:
            CheckpointError: in the first save, a rank has no room; the same on every rank.
        """
        if self._given.in_flight() is None:
            return False
        self.saved_round = self._push_sum.round
        if self._generation == 0:
            self._first(optimizer, companions, extra)
        else:
            try:
                self._write(optimizer, companions, extra)
            except (OSError, CheckpointError) as error:  # the others do not wait, so they would not hear of it
                log.warning(
                    "rank %d, round %d: no checkpoint in memory was written: %s",
                    self._push_sum.rank,
                    self._push_sum.round,
                    error,
                )
            self._is_written()
        return True

    def _is_written(self) -> None:
        self._generation += 1
        self._among_these += 1
        if self._among_these == 2:  # the first generation of these ranks is whole
            self.folder.remove_others(self._run)

    @property
    def _run(self) -> str:
        """Parts belong together if they are of the same ranks."""
        epoch = self._push_sum.member.survival.epoch
        return f"{self._push_sum.member.name}.{epoch}" if epoch else self._push_sum.member.name

    def _first(self, optimizer: Any, companions: Companions, extra: Any) -> None:
        turn: int | None = None

        def write() -> None:
            nonlocal turn
            if self._removed:
                raise CheckpointError(
                    f"{self.folder.path}: this folder was removed when the first save in memory failed. Make room "
                    "there and start again, or leave memory_every out"
                )
            # Where ranks die, this is done again, over the same file: the other may be what the run was resumed from.
            turn = self._turn = self._next if turn is None else turn
            nbytes = self._write(optimizer, companions, extra)
            self._files[self._next].reserve(nbytes)
            self._refuse_too_full(nbytes)

        survival = self._push_sum.member.survival
        self._first_under_way = True
        try:
            survival.together(
                lambda: try_together(self._push_sum, "saving", write), commit=lambda _: self._is_written()
            )
        except CheckpointError:
            self._turn = turn  # whoever goes on and saves again writes over the same file again
            if self._used is None:  # otherwise the next start goes on from it
                self.remove()
            raise
        finally:
            self._first_under_way = False

    def _write(self, optimizer: Any, companions: Companions, extra: Any) -> int:
        member = self._push_sum.member
        taken_back = self._given.in_flight() or 0.0
        with saving.without_messages(member):
            part = capture(optimizer, companions, extra)
        part["optimizer"][KEY]["push_weight"] += taken_back
        about = About(
            run=self._run,
            generation=self._generation + 1,
            rank=part["rank"],
            size=part["size"],
            round=part["round"],
            place=tuple(part["place"]),
            weight=part["optimizer"][KEY]["push_weight"],
            taken_back=taken_back,
            initial=self._push_sum.initial_weight,
            in_step=self._push_sum.staleness != "unbounded",
        )
        apart, file = take_apart(part), self._files[self._next]
        known = self._generation >= 2
        if known:  # what the model and the optimizer hold was read back before; what the user passes may be another
            pack_tree({name: apart.tree[name] for name in ("extra", "companions")})
        nbytes = file.write(apart, about, check=not known)
        self._turn = 1 - self._next
        return nbytes

    @property
    def _next(self) -> int:
        """Which of the two files is to be written."""
        if self._turn is None:
            held = [read_about(file.path) for file in self._files]
            kept = [about is not None and (about.run, about.generation) == self._used for about in held]
            age = [(keep, -1 if about is None else about.round) for keep, about in zip(kept, held, strict=True)]
            self._turn = age.index(min(age))
        return self._turn

    def _refuse_too_full(self, nbytes: int) -> None:
        found = os.statvfs(self.folder.path)
        used = 1.0 - found.f_bavail / max(1, found.f_blocks)
        if used > self._limit:
            total = found.f_blocks * found.f_frsize
            raise CheckpointError(
                f"{self.folder.path}: expected a file system of {total / 1e6:.0f} MB to be at most {self._limit:.0%} "
                f"full (memory_limit), got {used:.0%} with two files of {nbytes / 1e6:.1f} MB for each rank of the "
                "host. Make it larger (mount -o remount,size=..., docker run --shm-size), remove what else is in it, "
                "raise memory_limit, or leave memory_every out"
            )

    # ------------------------------------------------------------------ when ranks have died

    def report(self) -> Any:
        """Return what other survivors need: how many this rank has written, and whether it is in the first save."""
        return {"generation": self._generation, "first": self._first_under_way and self._generation == 0}

    def settle(self, reports: Sequence[Any]) -> bool:
        """Make all survivors go on from the same generation: one that not all have written is written again.

        Returns:
            Whether survivors are in the first save, which all do together.
        """
        first = any(report["first"] for report in reports)
        all_have = min(report["generation"] for report in reports)
        if self._generation > all_have and self._turn is not None:
            self._turn = 1 - self._turn
        self._generation = all_have
        self._cast, self._complete = min(self._cast, all_have), min(self._complete, all_have)
        self._among_these = 0
        member = self._push_sum.member
        self._given.forget(member.round)
        if not first and self._push_sum.staleness != "unbounded":  # those that are behind wait for the others
            self.saved_round = max(self.saved_round, member.place.resumes_at)
        return first

    # ------------------------------------------------------------------ the end

    def remove(self) -> None:
        """Remove this rank's files, and the folder after the last of them."""
        if self._slot is not None:
            self._slot.remove()
        self.close()
        self._removed = True
        self.remove_what_the_lost_left()
        if self._push_sum.member.place.speaks:
            forget_name(self._directory)

    def remove_what_the_lost_left(self) -> None:
        """Remove what ranks that have died had written, once this rank has removed its own."""
        if self._removed:
            if self._push_sum.losses:
                self.folder.remove_unheld()
            self.folder.remove_if_empty()

    def close(self) -> None:
        """Leave the files for the next start. Idempotent."""
        self._push_sum.unsubscribe(self._given)
        for file in self._files:
            file.close()
        self._release()

    def _release(self) -> None:
        if self._slot is not None:
            self._slot.release()
            self._slot = None
