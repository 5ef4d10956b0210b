"""Rounds, and other calls that all ranks make together between them: what they do to the tensors and the mass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NonFiniteError
from ..interrupts import held_back
from ..memory import Chunk
from ..transport.calls import calling
from .averaging import exact_average
from .lifetime import MERGING, WHOLE

if TYPE_CHECKING:
    from .member import Member

__all__ = ["await_in_flight", "drain", "exact_round", "meet", "merge_in_flight", "mix", "reassemble"]


def mix(member: Member) -> None:
    """Gossip once. See :meth:`PushSum.mix`."""
    _before_round(member, "mix()")
    with member.failing_together(MERGING), calling("mix()"):
        # Listeners too fail together: a rank that left a round half-way would be out of step.
        member.events.round_begins(member.round)
        member.channel.begin_round(member.round)
        weight = member.mode.exchange(member.round, member.push_weight)
        reassemble(member)
        _end_round(member, weight)


def exact_round(member: Member) -> None:
    """Collective. Average exactly in place of a round. See :meth:`PushSum.average`."""
    call = "an exact average"
    _before_round(member, call)
    with member.collective(call), _all_or_nothing(member):
        member.events.round_begins(member.round)
        weight = member.mode.drain(member.round, member.push_weight, call)
        for chunk, mean in exact_average(member.channel, member.memory, weight, (), call, member.round):
            _take_average(member, chunk, mean)
        reassemble(member)
        member.channel.begin_round(member.round)  # only now: nothing was posted for those who wait for its messages
        _end_round(member, member.mass.initial)


def drain(member: Member, call: str) -> None:
    """Collective. Wait for and merge every message in flight."""
    member.lifetime.refuse_if_on_loan(call)
    member.lifetime.refuse_out_of_step(call)
    with member.collective(call, MERGING):
        merge_in_flight(member, call)


def merge_in_flight(member: Member, call: str) -> None:
    """Collective. What :func:`drain` does, inside another call that all ranks make."""
    member.mass = member.mass.with_weight(member.mode.drain(member.round, member.push_weight, call))
    reassemble(member)


def await_in_flight(member: Member, call: str) -> None:
    """Collective. Wait until every message in flight has come, so that it can be counted without merging it."""
    member.lifetime.refuse_out_of_step(call)
    with member.collective(call, MERGING if member.options.staleness == "unbounded" else WHOLE):
        weight = member.mode.await_in_flight(member.round, member.push_weight, call)
        member.mass = member.mass.with_weight(weight)


def meet(member: Member, call: str) -> None:
    """Collective. Make sure that every rank makes this call now, and no other."""
    member.lifetime.refuse_out_of_step(call)
    with member.collective(call):
        member.mode.meet(member.round, call)


def reassemble(member: Member) -> None:
    """Collective over a host. Give its ranks the same parameters again; nothing to do for a rank alone."""
    member.host.reassemble(member.memory, member.round)
    member.events.release()


def _before_round(member: Member, call: str) -> None:
    member.lifetime.refuse_if_on_loan(call)
    member.first_step_is_over()


def _end_round(member: Member, weight: float) -> None:
    member.events.round_ends(member.round, weight)
    member.mass = member.mass.after_round(weight)


@contextmanager
def _all_or_nothing(member: Member) -> Iterator[None]:
    """Put the tensors back where what is done to them inside ends early, by an error or an interrupt."""
    memory, mass = member.memory, member.mass
    memory.refresh()
    kept = [(chunk, memory.raw(chunk)) for chunk in memory.chunks]
    residuals = memory.residual_state()
    try:
        yield
    except BaseException:
        if member.mass is mass:
            with held_back():
                for chunk, flat in kept:
                    memory.put_raw(chunk, flat)
                memory.load_residual_state(residuals)
        raise


def _take_average(member: Member, chunk: Chunk, values: Any) -> None:
    if chunk.by_element or np.isfinite(values).all():
        member.memory.set_mean(chunk, values, member.mass.initial)
    elif member.options.nonfinite == "skip":
        member.events.chunk_skipped(member.round, member.participant, member.memory.describe(chunk))
    else:
        raise NonFiniteError(
            f"rank {member.rank}: the exact average of round {member.round} holds inf or nan in "
            f"{member.memory.name_nonfinite(chunk, values)}: some rank's parameters have diverged. Look at losses "
            "and gradients (learning rate, loss scaling). nonfinite='skip' leaves such parts as they are on each "
            "rank"
        )
