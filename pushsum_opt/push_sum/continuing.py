"""What a rank does when others have died and it goes on: it settles the loss, and repeats the call that it was in."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from .. import progress, settings, transport
from ..arguments import OnLoss
from ..channel import Channel
from ..errors import ConfigurationError, PeerTimeout, RanksLost
from ..faults import Loss
from ..job import world
from ..log import log
from ..transport.calls import calling_only
from . import inviting, recovery
from .committing import Commits, nothing
from .survival import Survival

if TYPE_CHECKING:
    from .member import Member

__all__ = ["Continue", "survival_of"]

T = TypeVar("T")

COMMITTING = "every rank to end its call"


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
        self.commits = Commits()
        """Which calls of all ranks were committed."""
        self.channel: Channel | None = None
        """Over those that take part."""
        self._process = transport.process(comm)
        self.label = transport.host_label(comm, settings.read().ranks_per_host)
        if self.crew.waits:
            self.ranks = self.crew.ranks
        self.timeout = timeout
        self._busy = False
        self._said = 0
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
        commit: Callable[[T], None] = nothing,
        undo: Callable[[T], None] = nothing,
    ) -> T:
        if self._busy:
            result = work()
            commit(result)
            return result
        with self._outermost():
            while True:
                number, there = self.commits.count + 1, self.members
                try:
                    end = self.commits.attempt(work, commit, undo)
                    self._all_have_done_it()
                    self.commits.learn(number)
                except RanksLost:
                    self._recover()
                    if self.commits.count < number:
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
            self.commits.forget()

    def _all_have_done_it(self) -> None:
        assert self.channel is not None
        if self.channel.size > 1:
            self.channel.barrier(COMMITTING)

    def give_up(self, members: list[Member]) -> None:
        """Forget what an attempt has made that was not committed."""
        for one in members:
            one.give_up()

    def say_over(self) -> None:
        """Tell the other ranks if nothing is open on this one any more: then none of them needs to wait for it."""
        if not self.members and self.commits.count > self._said:
            self._said = self.commits.count
            self.crew.say_over(self._said)

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
                    self.commits.learn(over.committed)
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
