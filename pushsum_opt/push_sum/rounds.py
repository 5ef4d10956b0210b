"""Rounds, and other calls that all ranks make together between them: what they do to the tensors and the mass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NonFiniteError, RanksLost
from ..interrupts import held_back
from ..memory import Chunk
from ..transport.calls import calling
from .averaging import exact_average
from .lifetime import MERGING, WHOLE

if TYPE_CHECKING:
    from .member import Member

__all__ = [
    "await_in_flight",
    "drain",
    "drain_within",
    "exact_round",
    "meet",
    "merge_in_flight",
    "mix",
    "reassemble",
    "reassemble_between",
]


def mix(member: Member) -> None:
    """Gossip once. See :meth:`PushSum.mix`."""
    if member.round < member.place.resumes_at:
        _round_alone(member)
    else:
        member.survival.once(partial(_mix, member))


def _mix(member: Member) -> None:
    _before_round(member, "mix()")
    with member.lifetime.failing_together(MERGING), calling("mix()"):
        # Listeners too fail together: a rank that left a round half-way would be out of step.
        member.place.events.round_begins(member.round)
        with _ending_by_a_loss(member):
            member.place.channel.begin_round(member.round)
            member.means.round_begins(member.round, member.push_weight)
            with _counting(member):
                weight = member.mode.exchange(member.round, member.push_weight)
            reassemble(member)
        _end_round(member, weight)


@contextmanager
def _ending_by_a_loss(member: Member) -> Iterator[None]:
    """When ranks have died in a round, it is over: the survivors settle what was given in it, and do not repeat it."""
    try:
        yield
    except RanksLost:
        if member.survival.continues:
            _end_round(member, member.push_weight)
        raise


def _round_alone(member: Member) -> None:
    """A round without messages, on a rank that was behind others when ranks were lost."""
    _before_round(member, "mix()")
    with member.lifetime.failing_together(), calling("mix()"):
        member.place.events.round_begins(member.round)
        _end_round(member, member.push_weight)


@contextmanager
def _counting(member: Member) -> Iterator[None]:
    """Inside, the ledger counts w; where a loss ends that half-way, what it says is w."""
    member.place.ledger.begin(member.push_weight)
    try:
        yield
    except RanksLost:
        member.mass = member.mass.with_weight(member.place.ledger.weight)
        raise


def exact_round(member: Member, *, narrow: bool = False) -> None:
    """Collective. Average exactly in place of a round. See :meth:`PushSum.average`."""
    member.survival.together(
        partial(_exact_round, member, narrow), commit=partial(_end_exact_round, member), undo=_Kept.put_back
    )


def _exact_round(member: Member, narrow: bool) -> _Kept:
    call = "an exact average"
    _before_round(member, call)
    with member.calls.collective(call), _all_or_nothing(member) as kept:
        member.place.events.round_begins(member.round)
        with _counting(member):
            weight = member.mode.drain(member.round, member.push_weight, call)
        if member.survival.continues:  # what was merged stays merged
            member.mass = member.mass.with_weight(weight)
            kept.keep_drained()
        kept.reported = member.means.to_sum()
        average = exact_average(
            member.place.channel, member.memory, weight, (), call, member.round, narrow=narrow, beside=kept.reported
        )
        for chunk, mean in average:
            _take_average(member, chunk, mean)
        kept.on_all_lanes = kept.reported.copy()
        member.place.host.sum(kept.on_all_lanes, member.round, call)
        reassemble(member)
        # Only now: nothing was posted for those who wait for its messages.
        member.place.channel.begin_round(member.round)
        if not member.survival.continues:
            _end_with_average(member, kept)
    return kept


def _end_exact_round(member: Member, kept: _Kept) -> None:
    """End the round once it is known that all survivors have its average; without survivors it has ended before."""
    if member.survival.continues:
        member.place.ledger.all_opened()
        with member.lifetime.failing_together():
            _end_with_average(member, kept)


def _end_with_average(member: Member, kept: _Kept) -> None:
    member.means.take_sum(kept.reported, kept.on_all_lanes, member.place.participants)
    _end_round(member, member.mass.initial)


def drain(member: Member, call: str) -> None:
    """Collective. Wait for and merge every message in flight."""
    member.survival.together(partial(drain_within, member, call), commit=lambda _: member.place.ledger.all_opened())


def drain_within(member: Member, call: str) -> None:
    """Collective. What :func:`drain` does, in the work of another call that all ranks make and commit."""
    member.survival.refuse_while_waiting(call)
    member.lifetime.refuse_if_on_loan(call)
    member.lifetime.refuse_out_of_step(call)
    with member.calls.collective(call, MERGING):
        merge_in_flight(member, call)


def merge_in_flight(member: Member, call: str) -> None:
    """Collective. What :func:`drain` does, inside another call that all ranks make."""
    with _counting(member):
        weight = member.mode.drain(member.round, member.push_weight, call)
    member.mass = member.mass.with_weight(weight)
    reassemble(member)


def await_in_flight(member: Member, call: str) -> None:
    """Collective. Wait until every message in flight has come, so that it can be counted without merging it."""
    member.survival.refuse_while_waiting(call)
    member.lifetime.refuse_out_of_step(call)
    with member.calls.collective(call, MERGING if member.options.staleness == "unbounded" else WHOLE):
        with _counting(member):
            weight = member.mode.await_in_flight(member.round, member.push_weight, call)
        member.mass = member.mass.with_weight(weight)


def meet(member: Member, call: str) -> None:
    """Collective. Make sure that every rank makes this call now, and no other."""
    member.survival.refuse_while_waiting(call)
    member.lifetime.refuse_out_of_step(call)
    with member.calls.collective(call):
        member.mode.meet(member.round, call)


def reassemble(member: Member) -> None:
    """Collective over a host. Give its ranks the same parameters again; nothing to do for a rank alone."""
    told = member.place.host.reassemble(member.memory, member.round, member.means.told_to_lanes())
    member.means.hear_lanes(told, member.round)
    member.place.events.release()


def reassemble_between(member: Member) -> None:
    """Collective over a host. Do so in a step that ends without a round."""
    member.host_calls.run(partial(reassemble, member), lambda: None)


def _before_round(member: Member, call: str) -> None:
    member.survival.refuse_while_waiting(call)
    member.lifetime.refuse_if_on_loan(call)
    member.first_step.taken()


def _end_round(member: Member, weight: float) -> None:
    member.means.round_ends(member.round)
    member.place.events.round_ends(member.round, weight)
    member.mass = member.mass.after_round(weight)


class _Kept:
    """A copy of the tensors as they are now."""

    def __init__(self, member: Member) -> None:
        self._member, self._memory = member, member.memory
        self.after_drain = False
        """Whether nothing is in flight any more."""
        self.reported: Any = None
        """Summed over ranks with the tensors; see :meth:`Means.to_sum`."""
        self.on_all_lanes: Any = None
        """The same, over the ranks of all lanes."""
        self._keep()

    def keep_drained(self) -> None:
        """Copy them again: what was in flight is merged now."""
        self.after_drain = True
        self._keep()

    def _keep(self) -> None:
        self.mass = self._member.mass
        self._memory.refresh()
        self._values = [(chunk, self._memory.raw(chunk)) for chunk in self._memory.chunks]
        self._residuals = self._memory.residual_state()

    def put_back(self) -> None:
        """Give the tensors the copied values."""
        with held_back():
            for chunk, flat in self._values:
                self._memory.put_raw(chunk, flat)
            self._memory.load_residual_state(self._residuals)


@contextmanager
def _all_or_nothing(member: Member) -> Iterator[_Kept]:
    """Put the tensors back where what is done to them inside ends early, by an error or an interrupt."""
    kept = _Kept(member)
    try:
        yield kept
    except BaseException as error:
        # A loss that ends a drain half-way has changed w: what was merged is counted, and stays.
        by_loss = isinstance(error, RanksLost) and member.survival.continues and not kept.after_drain
        if member.mass is kept.mass and not by_loss:
            kept.put_back()
        raise


def _take_average(member: Member, chunk: Chunk, values: Any) -> None:
    if chunk.by_element or np.isfinite(values).all():
        member.memory.set_mean(chunk, values, member.mass.initial)
    elif member.options.nonfinite == "skip":
        member.place.events.chunk_skipped(member.round, member.place.participant, member.memory.describe(chunk))
    else:
        raise NonFiniteError(
            f"rank {member.place.rank}: the exact average of round {member.round} holds inf or nan in "
            f"{member.memory.name_nonfinite(chunk, values)}: some rank's parameters have diverged. Look at losses "
            "and gradients (learning rate, loss scaling). nonfinite='skip' leaves such parts as they are on each "
            "rank"
        )
