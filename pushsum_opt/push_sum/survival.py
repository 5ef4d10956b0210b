"""What a rank does when others have died: it stops with an error, or the survivors go on without them.

A call that all ranks make together is *committed* once all of them have passed a barrier at its end. When ranks die in
such a call, some survivors may have passed that barrier and others not. Then all have done the call's work, and none
repeats it. Otherwise nobody has passed it, and all repeat the call. They find out which by telling each other how many
calls they have committed. An error that all ranks raise in the call, and after which they may go on, is a result too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .. import progress, settings, transport
from ..arguments import OnLoss
from ..channel import Channel
from ..errors import CallOrderError, ConfigurationError, PeerTimeout, PushSumError, RanksLost
from ..faults import Loss
from ..job import world
from ..log import log
from ..transport.calls import calling_only
from . import inviting, recovery

if TYPE_CHECKING:
    from .member import Member

__all__ = ["Continue", "Survival", "survival_of"]

T = TypeVar("T")


def _nothing(result: Any) -> None: ...


def _attempt(
    work: Callable[[], T], commit: Callable[[T], None], undo: Callable[[T], None]
) -> tuple[Callable[[], T], Callable[[], None], Callable[[], None]]:
    """Do the work. Return what ends the call, by its result or by the error of all ranks; what commits; what undoes."""
    try:
        result = work()
    except PushSumError as error:
        if not error.on_all_ranks:
            raise
        return partial(_fail, error), partial(_nothing, error), partial(_nothing, error)
    return lambda: result, partial(commit, result), partial(undo, result)


def _fail(error: Exception) -> Any:
    raise error


COMMITTING = "every rank to end its call"


class Survival:
    """``on_loss="stop"``: when ranks have died, what waits for them fails with RanksLost.

    Args:
        size: the number of ranks of the job.
    """

    continues = False
    epoch = 0
    """How often ranks were lost."""

    def __init__(self, size: int) -> None:
        self.ranks: tuple[int, ...] = tuple(range(size))
        """Those that take part, by their numbers when the job was started."""
        self.losses: list[Loss] = []
        self.hosts: dict[int, int] = {}
        """The host of each rank, where a host is one participant, and lost as a whole; empty: each rank for itself."""
        self.label: int | None = None
        """What this rank has in common with others of its host; None: not found out."""
        self.vacant: list[int] = []
        """Ranks that were lost and whose places no spare has taken, in the order in which they were lost."""
        self.on_change: list[Callable[[], None]] = []
        """Called once this rank can go on after a loss, or after spares were taken in."""

    @property
    def waits(self) -> bool:
        """Whether this is a spare that the other ranks have not taken in."""
        return False

    def refuse_while_waiting(self, call: str) -> None:
        """Raise CallOrderError for a call of all ranks, on a spare that the others have not taken in."""
        if self.waits:
            raise CallOrderError(world.told_to_wait(call))

    @property
    def me(self) -> int:
        """This rank, by its number when the job was started; -1 where a loss ends the job."""
        return -1

    def host_of(self, rank: int) -> tuple[str, int]:
        """Return what ranks of one host have in common, and no others."""
        return ("host", self.hosts[rank]) if rank in self.hosts else ("rank", rank)

    def lane_of(self, rank: int) -> int:
        """Return the place of a rank among those of its host, of those that take part."""
        return [one for one in self.ranks if self.host_of(one) == self.host_of(rank)].index(rank)

    def learn_hosts(self, labels: Sequence[int]) -> None:
        """Take note of which ranks share a host.

        Args:
            labels: one for each rank that takes part, equal on one host.

        Raises:
            RanksLost: hosts had lost ranks before; their other ranks end in this call, and are lost then.
        """

    @property
    def members_of_the_job(self) -> tuple[int, ...]:
        """Those that take part. A spare that waits does not know them: there, all ranks of the job."""
        return self.ranks

    def once(self, work: Callable[[], None]) -> None:
        """Do something that a loss ends, and that is not repeated afterwards: a round of gossip."""
        work()

    def say_over(self) -> None:
        """Tell the other ranks if nothing is open on this one any more."""

    def together(
        self,
        work: Callable[[], T],
        *,
        commit: Callable[[T], None] = _nothing,
        undo: Callable[[T], None] = _nothing,
    ) -> T:
        """Do something that all ranks do together; after a loss the survivors do it again, from its beginning.

        Args:
            work: what is done.
            commit: what is done on this rank once every rank has done its work; it is given the result.
            undo: what is done instead where ranks died and no rank knows that.
        """
        result = work()
        commit(result)
        return result


class Continue(Survival):
    """``on_loss="continue"``: the survivors of a loss go on. One for each process; construction is collective.

    Args:
        comm: all ranks of the job.
        timeout: seconds that survivors have to notice a loss.

    Raises:
        ConfigurationError: the MPI library, or how it was started, cannot survive the death of a rank.
    """

    continues = True

    def __init__(self, comm: Any, timeout: float) -> None:
        super().__init__(comm.Get_size())
        self.crew = transport.open_crew(comm)
        """Those that take part; in a recovery, those that are found to be left."""
        self.committed = 0
        """How many calls of all ranks were committed."""
        self.channel: Channel | None = None
        """Over those that take part."""
        self._process = transport.process(comm)
        self.label = transport.host_label(comm, settings.read().ranks_per_host)
        if self.crew.waits:
            self.ranks = self.crew.ranks
        self.timeout = timeout
        self._busy = False
        self._said = 0
        self._undecided: tuple[Callable[[], None], Callable[[], None]] | None = None
        try:
            self.channel = Channel.open(comm, timeout=timeout)
        except RanksLost:
            self._recover()

    @property
    def waits(self) -> bool:
        return self.crew.waits

    @property
    def me(self) -> int:
        place: int = self.crew.comm.Get_rank()
        return self.crew.ranks[place]

    @property
    def members_of_the_job(self) -> tuple[int, ...]:
        return tuple(range(world.size())) if self.waits else self.ranks

    @property
    def members(self) -> list[Member]:
        """What is open on this rank, oldest first."""
        return [one for one in self._process.members if one.survival is self]

    # ------------------------------------------------------------------ what ranks do

    def once(self, work: Callable[[], None]) -> None:
        if self._busy:
            work()
            return
        with self._outermost():
            try:
                work()
            except RanksLost:
                self._recover()

    def together(
        self,
        work: Callable[[], T],
        *,
        commit: Callable[[T], None] = _nothing,
        undo: Callable[[T], None] = _nothing,
    ) -> T:
        if self._busy:
            result = work()
            commit(result)
            return result
        with self._outermost():
            while True:
                number, there = self.committed + 1, self.members
                try:
                    end, done, undone = _attempt(work, commit, undo)
                    self._undecided = done, undone
                    self._all_have_done_it()
                    self.learn(number)
                except RanksLost:
                    self._recover()
                    if self.committed < number:
                        self.give_up([one for one in self.members if one not in there])
                        continue
                return end()

    @contextmanager
    def _outermost(self) -> Iterator[None]:
        """Of calls that are made inside each other, the outermost is repeated."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            self._undecided = None

    def _all_have_done_it(self) -> None:
        assert self.channel is not None
        if self.channel.size > 1:
            self.channel.barrier(COMMITTING)

    def learn(self, committed: int) -> None:
        """Take note of how many calls were committed, and end accordingly a call of which this was not known."""
        if committed > self.committed:
            assert self._undecided is not None, "another rank has committed a call that this one has not done"
        if self._undecided is not None:
            commit, undo = self._undecided
            self._undecided = None
            if committed > self.committed:
                commit()
            else:
                undo()
        self.committed = committed

    def give_up(self, members: list[Member]) -> None:
        """Forget what an attempt has made that was not committed."""
        for one in members:
            one.give_up()

    def say_over(self) -> None:
        """Tell the other ranks if nothing is open on this one any more: then none of them needs to wait for it."""
        if not self.members and self.committed > self._said:
            self._said = self.committed
            self.crew.say_over(self.committed)

    def learn_hosts(self, labels: Sequence[int]) -> None:
        self.hosts = dict(zip(self.ranks, labels, strict=True))
        if not self.losses:
            return
        most = max(labels.count(label) for label in labels)
        self.lose_hosts({self.host_of(rank) for rank in self.ranks if labels.count(self.hosts[rank]) < most})

    def lose_hosts(self, hosts: Collection[tuple[str, int]]) -> None:
        """End here where this rank belongs to one of these hosts; raise RanksLost where others do."""
        leaving = [rank for rank in self.crew.ranks if self.host_of(rank) in hosts]
        if self.me in leaving:
            # `pushsum run` on this host hears it from no other: the survivors are on others.
            for rank in self.hosts:
                if self.host_of(rank) in hosts:
                    progress.is_lost(rank)
            self.crew.leave(
                f"rank {self.me} ends, as its host has lost a rank: with within_host a host is lost as a whole. The "
                "other hosts go on"
            )
        if leaving:
            raise RanksLost("the other ranks of hosts that have lost a rank are about to end")

    # ------------------------------------------------------------------ recovery

    def _recover(self) -> None:
        """Collective over the survivors. Find out who is lost, settle the mass, and go on without them."""
        begin, known, before = time.monotonic(), len(self.losses), self.ranks
        with calling_only("the recovery after a loss"):
            while True:
                try:
                    recovery.attempt(self)
                    break
                except RanksLost:  # another one has died meanwhile
                    continue
                except transport.CallsAreOver as over:
                    self.learn(over.committed)
                    return
        seconds = time.monotonic() - begin
        self.losses[known:] = [replace(loss, seconds=seconds) for loss in self.losses[known:]]
        if self.crew.comm.Get_rank() == 0:
            for loss in self.losses[known:]:
                log.warning("%s", recovery.told(loss, self.ranks))
            self._say_that_no_spare_can_come(known)
        for callback in tuple(self.on_change) if self.ranks != before else ():
            callback()

    def _say_that_no_spare_can_come(self, known: int) -> None:
        bench = self.crew.bench
        if bench is None or len(self.losses) == known:
            return
        left = len(bench.left(self.crew.processes))
        if left == 0:
            log.warning("no spare is left to take the place")
        elif left < len(self.vacant):
            log.warning("%d ranks are lost, and spares for %d of them are left", len(self.vacant), left)
        elif not inviting.is_possible(self):
            log.warning(
                "no spare can take the place: that needs exactly one optimizer that is open, with one "
                "checkpoint.Saver, and no hosts of several ranks (within_host)"
            )

    def wait_for(self, left: Callable[[], list[int]]) -> None:
        """Wait until no survivor is awaited any more.

        Raises:
            PeerTimeout: one did not come in time.
        """
        begin = time.monotonic()
        while awaited := left():
            waited = time.monotonic() - begin
            if waited >= self.timeout:
                raise PeerTimeout(
                    f"rank {self.crew.comm.Get_rank()}: ranks have died, and rank {', '.join(map(str, awaited))} (of "
                    f"those that live) did not come within {waited:.1f} s to settle it. That rank computes for longer "
                    "than that, or was stopped. Give more time with timeout="
                )
            time.sleep(recovery.LOOK_S)

    def settle(self, channel: Channel, loss: Loss) -> None:
        """Take note of a loss that all survivors have agreed on; of nobody, where only a spare was lost."""
        self.channel = channel
        self.epoch += 1
        self.ranks = self.crew.ranks
        self.vacant += loss.ranks
        if loss.ranks:
            self.losses.append(loss)

    def grow(self, crew: transport.Crew, channel: Channel, epoch: int, losses: list[Loss]) -> None:
        """Take note of newcomers that all have agreed on."""
        self.crew, self.channel, self.epoch = crew, channel, epoch
        self.ranks = crew.ranks
        self.losses[:] = losses

    def open_channel(self) -> Channel:
        """Collective over the survivors. Open a channel over them."""
        return Channel.open(self.crew.comm, timeout=self.timeout)


def survival_of(comm: Any, on_loss: OnLoss, timeout: float) -> Survival:
    """Return what is done on a loss; collective at the first ``"continue"`` of a process.

    Raises:
        ConfigurationError: an unknown value; a communicator of some of the ranks; or what :class:`Continue` raises.
    """
    process = transport.process(comm)
    survival: Survival | None = process.survival
    if on_loss not in ("stop", "continue"):
        raise ConfigurationError(f"on_loss={on_loss!r}: expected 'stop' or 'continue'")
    if on_loss == "stop":
        return Survival(comm.Get_size())
    if survival is None:
        if comm.Get_size() != world.communicator().Get_size():
            raise ConfigurationError(
                f"rank {comm.Get_rank()}: on_loss='continue' needs all ranks of the job, because all of them find out "
                f"together who is lost; comm= has {comm.Get_size()} of {world.size()}. Leave comm= out"
            )
        survival = process.survival = Continue(comm, timeout)
    return survival
