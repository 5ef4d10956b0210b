"""Saves a run regularly, stops it when a signal asks for that, and resumes it when it is started again."""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import progress
from ..errors import CheckpointError, ConfigurationError
from ..exit_codes import REQUEUE
from ..log import log
from ..push_sum import push_sum_of, rounds
from ..push_sum.welcoming import be_taken_in, take_in
from ..tensor_kinds import lasting
from ..transport import calling
from .batches import Batches, Places
from .in_memory import InMemory
from .part import Companions
from .position import Position, load_position, pack_position
from .resuming import begin_again
from .saving import save
from .signals import Signals, refuse_unusable
from .surviving import Surviving
from .votes import Tally, Votes
from .wishes import Wishes

__all__ = ["REQUEUE", "Saver"]

PLACES = "places of batches()"  # under this name beside what after_step() is given

ENDING_SIGNALS: tuple[int, ...] = (*([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []), signal.SIGTERM)
"""SIGUSR1 and SIGTERM; Windows knows only the second."""


class Saver:
    """Saves every so many rounds; when a signal asks for an end, all ranks save in the same round and exit with 75.

    Slurm sends a signal before it takes the nodes away (``#SBATCH --signal=USR1@120 --requeue``); mpirun and
    ``pushsum run`` pass SIGUSR1 on to every rank. It is enough that one rank gets it. Construction is collective, as is
    every :meth:`after_step` that saves.

    Ranks agree by an all-reduce of 40 bytes that is begun every ``check_every`` steps and read at the next check: so
    they stop at most ``2 * check_every`` steps after the signal, and no step waits for it unless one rank is
    ``check_every`` steps ahead of another. Asynchronous ranks never wait for it: they save at the check at which they
    learn that a rank wants to.

    Args:
        directory: where the checkpoints are; all ranks must see the same one.
        optimizer: a :class:`~pushsum_opt.PushSumOptimizer`.
        every: save after each round that this number divides, or as soon after as can be. None: only when asked to
            stop.
        scaler, scheduler, also, keep: see :func:`~pushsum_opt.checkpoint.save`.
        memory_every: beside that, after each round that this number (at least 2) divides, each rank writes its part to
            the memory of its own host, without waiting for others; :meth:`resume` finds it if the job is started again.
            Two files for each rank, written in turn; removed when the run has ended well. None: not at all.
        memory_directory: a directory of each host that is kept in memory.
        memory_limit: how full the file system of that directory may be, as a fraction, with all these files.
        check_every: steps between looks at what the other ranks want; at most half of ``memory_every``.
        signals: which signals ask for an end; taken on the main thread, and given back by :meth:`close`.

    Raises:
        ConfigurationError: an argument has a value that cannot be used.
        CheckpointError: a rank cannot use its directory in memory; the same on every rank.

    >>> import tempfile, torch, pushsum_opt as ps
    >>> def train(comm, directory):
    ...     model = torch.nn.Linear(2, 1)
    ...     optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm)
    ...     with ps.checkpoint.Saver(directory, optimizer, every=2) as saver:
    ...         begin = (saver.resume() or {"step": 0})["step"]
    ...         for step in range(begin, begin + 3):
    ...             optimizer.step()
    ...             saver.after_step(step=step + 1)
    ...     optimizer.close()
    ...     return begin
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     [ps.testing.run(2, lambda comm: train(comm, directory)) for _ in range(3)]
    [[0, 0], [2, 2], [4, 4]]
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        optimizer: Any,
        *,
        every: int | None = None,
        scaler: Any = None,
        scheduler: Any = None,
        also: Mapping[str, Any] | None = None,
        keep: int | None = 3,
        memory_every: int | None = None,
        memory_directory: str | os.PathLike[str] = "/dev/shm",
        memory_limit: float = 0.5,
        check_every: int = 10,
        signals: Sequence[int] = ENDING_SIGNALS,
    ) -> None:
        self._push_sum = push_sum_of(optimizer)
        numbers = {"every": every, "keep": keep, "check_every": check_every, "memory_every": memory_every}
        for name, value in numbers.items():
            none, least = value is None and name != "check_every", 2 if name == "memory_every" else 1
            if not none and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ConfigurationError(f"{name}={value!r}: expected an int of at least {least}")
        refuse_unusable(signals)
        self._directory = Path(directory)
        self._optimizer = optimizer
        self._beside: dict[str, Any] = {"scaler": scaler, "scheduler": scheduler, "also": also}
        self._keep = keep

        def begin() -> Surviving:
            with calling("Saver(...)"):
                made = Surviving(self._push_sum, Votes(self._push_sum), None)
                if memory_every is not None:
                    try:
                        made.memory = InMemory(
                            self._push_sum, self._directory, memory_every, memory_directory, memory_limit
                        )
                    except BaseException:
                        made.votes.close()
                        raise
                return made

        member = self._push_sum.member
        made = member.survival.together(begin, commit=member.followers.append, undo=Surviving.close)
        self._votes, self._memory = made.votes, made.memory
        if not member.survival.waits:
            progress.begins(member.started_as)
        self._signals = Signals(signals)
        often = check_every if memory_every is None else min(check_every, memory_every // 2)
        self._wishes = Wishes(self._push_sum, made.votes, made.memory, every, often, self._signals)
        self._extra: Mapping[str, Any] = {}
        self._places = Places()
        self._closed = False
        # The push-sum lives longer than an optimizer that is dropped, so it must not refer to the optimizer or to this.
        closing = partial(_close, weakref.ref(self), self._votes, self._signals, self._memory)
        self._push_sum.member.before_close.append(closing)
        if optimizer is not self._push_sum:
            optimizer.companions.append(self)

    # ------------------------------------------------------------------ the loop

    def resume(self, *, enough: float = 0.5) -> dict[str, Any] | None:
        """Collective. Load the newest round of which enough is left, on disk or in memory, if there is one.

        What is on disk is whole. In memory (``memory_every``) a round may lack the parts of ranks whose hosts are lost.
        Then every rank starts from the exact weighted average of the parts that are there, and a line says which are
        missing, and how much of the mass.

        The random generators are put back here; whatever draws from them between this and the first new step, such as
        making an iterator of a DataLoader or reading batches to skip them, then moves them on. :meth:`batches` does
        not: a loop over it is exact, and one that skips by ``continue`` is not.

        Args:
            enough: the fraction of all data weight for which the parts in memory must stand. With less of it, the run
                goes on from the disk, and a line says so; if nothing is there, that is an error.

        Returns:
            What :meth:`after_step` was last called with before it was saved; None at the very beginning.

        Raises:
            CheckpointError: see :func:`~pushsum_opt.checkpoint.load`; or too little is left.
        """
        companions = Companions(**self._beside)
        if self._push_sum.member.survival.waits:
            return self._be_taken_in(companions)
        with self._push_sum.member.lifetime.failing_together(only_interrupts=True), lasting():
            found = self._push_sum.member.survival.together(
                lambda: begin_again(self._push_sum, self._directory, self._optimizer, companions, self._memory, enough),
                commit=lambda _: self._push_sum.member.place.ledger.all_opened(),
            )
        if found is None:
            return None
        self._wishes.saved_round = self._push_sum.round
        if self._memory is not None:
            self._memory.resumed(found.used)
        extra = dict(found.extra or {})
        if found.exact and PLACES not in extra and self._push_sum.member.place.speaks:
            log.info(
                "it was saved without a loop over saver.batches(loader). If the script passes over the batches of a "
                "DataLoader that it has seen, random draws differ from those of a run that was never stopped"
            )
        ratio = found.size / self._push_sum.size
        self._places.resume(extra.pop(PLACES, ()), exact=found.exact, ratio=ratio)
        return extra

    # ------------------------------------------------------------------ spares

    def _be_taken_in(self, companions: Companions) -> dict[str, Any]:
        """Take part from now on, with the state and the position of another rank."""
        taken = Position()

        def load(packed: bytes) -> None:
            nonlocal taken
            with lasting():
                taken = load_position(packed, self._optimizer, companions)

        member = self._push_sum.member
        be_taken_in(member, load, self._position)
        progress.begins(member.started_as)
        self._wishes.steps, self._wishes.saved_round = taken.steps, taken.saved_round
        extra = dict(taken.extra)
        self._places.resume(extra.pop(PLACES, ()), exact=False, ratio=1.0)
        self._extra = extra
        return dict(extra)

    def _position(self) -> bytes:
        """Return what a spare needs to go on where this rank is."""
        here = Position(self._wishes.steps, self._wishes.saved_round, self._with_places(self._extra))
        return pack_position(self._optimizer, Companions(**self._beside), here)

    def _take_in(self) -> None:
        """Collective. Take in the spares that are ready."""
        member = self._push_sum.member
        rounds.drain(member, "Saver.after_step()")
        take_in(member, self._position)

    def batches(self, loader: Iterable[Any]) -> Batches:
        """Return the batches of one epoch; after :meth:`resume`, those behind the last one before the checkpoint.

        ``for inputs, targets in saver.batches(loader)`` stands in the place of ``for inputs, targets in loader``. A
        resumed run then has the bits of one that was never stopped: the order of the epoch is drawn from what it was
        drawn from, what was seen is left out without being read, and the random generators are put back where the first
        new batch begins. Workers draw from a seed of each batch, so that what they draw does not depend on where the
        run began, on their number, or on ``persistent_workers``.

        Args:
            loader: a DataLoader; or anything to iterate over (a DataLoader of an IterableDataset or of another class
                too), of which what was seen is read again and dropped.

        Where the checkpoint is of another number of ranks, each rank leaves out as many batches as make the same number
        of samples, rounded down.
        """
        return self._places.batches(loader)

    def after_step(self, **extra: Any) -> None:
        """Save if it is time to, and end the program if a rank was asked to stop.

        Inside ``optimizer.join()``, where ranks take different numbers of steps, it does nothing.

        Args:
            extra: what :meth:`resume` shall return, such as ``epoch=3, batch=120``: plain values.

        Raises:
            SystemExit: with code 75, on every rank, after the state was saved and the optimizer closed.
            CheckpointError: the state could not be saved; the same on every rank.
        """
        self._extra = extra
        if self._push_sum.member.lifetime.out_of_step is not None:
            return
        due = self._wishes.save_is_due
        tally = self._wishes.after_step(due)
        if tally is not None and tally.stop:
            self._stop(tally)
        if (due and self._votes.in_step) or (tally is not None and tally.save):
            self.save(**extra)
        elif self._wishes.keep_is_due if self._votes.in_step else tally is not None and tally.keep:
            self._keep_in_memory()
        if tally is not None and tally.takes_in:
            self._take_in()

    def save(self, **extra: Any) -> Path:
        """Collective. Save now."""
        path = save(self._directory, self._optimizer, extra=self._with_places(extra), keep=self._keep, **self._beside)
        self._wishes.saved_round = self._push_sum.round
        progress.note(self._push_sum.member.started_as, self._wishes.saved_round)
        return path

    def _with_places(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        places = self._places.state()
        return {**extra, **({PLACES: places} if places else {})}

    def _keep_in_memory(self) -> None:
        if self._memory is not None:
            saved = self._memory.save(self._optimizer, Companions(**self._beside), self._with_places(self._extra))
            if saved:
                progress.note(self._push_sum.member.started_as, self._push_sum.round)

    def request_stop(self) -> None:
        """Act as if this rank had got a signal: all ranks will save in the same round and exit with code 75."""
        self._wishes.request_stop()

    def _stop(self, tally: Tally) -> None:
        path = self.save(**self._extra)
        if self._push_sum.member.place.speaks:
            why = self._signals.received or f"the wish of {tally.stop} rank{'s' * (tally.stop > 1)}"
            log.info("stopped by %s in round %d: saved %s; exit code %d", why, self._push_sum.round, path, REQUEUE)
        self._end(well=True)
        self._optimizer.close()  # all together: to the others, a rank that simply left would look as if it had failed
        raise SystemExit(REQUEUE)

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Collective. Give the signals back. Idempotent; closing the optimizer does it too.

        Asynchronous ranks end at different times: a rank that has finished takes part in what the others want to save
        until all have.
        """
        if self._closed:
            return
        if self._votes.in_step:
            self._votes.finish(together=self._memory is not None)  # too late to act on the signal
        while not self._votes.in_step and not self._closed:
            tally = self._wishes.after_the_last_step()
            if tally.stop:
                self._stop(tally)
            if tally.save:
                self.save(**self._extra)
            elif tally.keep:
                self._keep_in_memory()
            if tally.takes_in:
                self._take_in()
            if tally.all_finished:
                break
        self._end(well=True)

    def _end(self, *, well: bool) -> None:
        self._signals.close()
        self._closed = True
        self._votes.close()
        if self._memory is not None:
            self._memory.remove() if well else self._memory.close()
        if well:
            progress.ends(self._push_sum.member.started_as)

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif not self._closed:
            self._end(well=False)  # the push-sum tells the others of the error


def _close(saver: weakref.ref[Saver], votes: Votes, signals: Signals, memory: InMemory | None) -> None:
    """Close a saver before its push-sum, also one that was dropped with its optimizer: then there is nothing to save.

    Raises:
        CheckpointError: another rank wants to save, or to give a spare, what this rank has dropped.
    """
    alive = saver()
    if alive is not None:
        alive.close()
    if votes.closed:
        return
    try:
        if votes.in_step:
            votes.finish(together=memory is not None)
        while not votes.in_step:
            if not votes.open:
                votes.cast(stop=False, finished=True)
            tally = votes.wait(patient=True)
            if tally.stop or tally.save or tally.keep or tally.takes_in:
                raise CheckpointError(
                    "another rank wants to save or to take in a spare, and this rank's optimizer and Saver were "
                    "dropped without close(): keep them until the end of the program, or call close() on every rank"
                )
            if tally.all_finished:
                break
        if memory is not None:
            memory.remove()
        progress.ends(votes.started_as)
    finally:
        signals.close()
        votes.close()
