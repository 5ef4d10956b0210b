"""How a spare takes the place of a rank that was lost: the ranks that train make a communicator with it in it.

A newcomer begins with w = 0, and with the first message that it merges: half of what the lowest of the others holds,
with that rank's z. As z <- z + (m / (0 + m)) (z_j - z), the newcomer has z_j exactly. So neither the mass nor the mean
changes. That rank also gives it all else that it needs to go on.

As in a recovery, nothing is changed before all have agreed that everybody has everybody's account.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..channel import Channel
from ..errors import RanksLost
from ..faults import Account, Loss, Settlement, settle, shared
from ..job import training_ranks, world
from ..log import log
from . import inviting

if TYPE_CHECKING:
    from .continuing import Continue
    from .member import Member

__all__ = ["be_taken_in", "take_in"]

Pack = Callable[[], bytes]
Load = Callable[[bytes], None]


def take_in(member: Member, pack: Pack) -> None:
    """Collective over the ranks that train, in the same round. Take in the spares that are ready, if any.

    Nothing is in flight.

    Args:
        pack: what a newcomer loads; called on the lowest rank.
    """
    survival: Any = member.survival
    survival.together(lambda: _take_in(survival, member, pack))


def be_taken_in(member: Member, load: Load, pack: Pack) -> None:
    """Wait until the ranks that train take in this spare.

    Args:
        load: takes over what another rank has packed.
        pack: as in :func:`take_in`, for spares that come after this one.

    Raises:
        SystemExit: this spare is not needed: the ranks that train have ended.
    """
    survival: Any = member.survival
    spare = training_ranks.spare()
    while survival.waits:
        invitation = spare.wait_until_invited()
        if not spare.accept():
            continue
        try:
            _join(survival, member, invitation.processes, invitation.ranks, invitation.name, load=load)
        except RanksLost:
            continue
    calls = itertools.count()

    def again() -> None:
        if next(calls):  # the first time all have just done it
            _take_in(survival, member, pack)

    survival.together(again)


# ---------------------------------------------------------------------- the ranks that train


def _take_in(survival: Continue, member: Member, pack: Pack) -> None:
    assert survival.channel is not None
    crew = survival.crew
    invited, name = inviting.invite(survival) if crew.comm.Get_rank() == 0 else ({}, "")
    plan = {"spares": [[place, process] for place, process in invited.items()], "name": name}
    plan = survival.channel.gather_objects(plan, "the spares that are taken in")[0]
    if not plan["spares"]:
        return
    if crew.comm.Get_rank() == 0:
        for process in invited.values():
            crew.bench.go(process, name)
    member.stand_still()
    processes, ranks = inviting.with_spares(crew, dict(plan["spares"]))
    _join(survival, member, processes, ranks, plan["name"], pack=pack)


# ---------------------------------------------------------------------- both sides


def _join(
    survival: Continue,
    member: Member,
    processes: Sequence[int],
    ranks: tuple[int, ...],
    name: str,
    *,
    pack: Pack | None = None,
    load: Load | None = None,
) -> None:
    """Collective over those that train and the newcomers. Make them one job again.

    Args:
        pack: given on those that train.
        load: given on newcomers.

    Raises:
        RanksLost: somebody has died meanwhile, or a newcomer could not load; nothing has changed for the others.
    """
    crew = survival.crew.grown(processes, ranks, name)
    talk = _Talk()
    with suppress(RanksLost):
        talk.hold(survival, crew, member, pack, load)
    if not crew.agree(talk.agreed is not None):
        _refuse(survival, processes, ranks, talk)
    assert talk.agreed is not None
    _settle(survival, member, crew, talk)
    member.followers[:] = [follower for follower in member.followers if follower.has_newcomers]
    for place, follower in enumerate(member.followers):
        follower.settle([row["follower"][place] for row in talk.rows])
    member.rejoin(crew.comm)
    for follower in member.followers:
        follower.rejoin()
    if pack is not None and crew.comm.Get_rank() == talk.giver:
        _say(survival, member, [ranks[place] for place in talk.new])
    for callback in tuple(survival.on_change):
        callback()


class _Talk:
    """What those that train and the newcomers tell each other before anything is changed."""

    channel: Channel
    """Over all of them."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        """What the giver knows of the job."""
        self.giver = -1
        """The lowest of those that train, by its place among all."""
        self.new: list[int] = []
        """The places of newcomers."""
        self.rows: list[dict[str, Any]] = []
        """What each has said at last."""
        self.accounts: list[Account] = []
        self.agreed: Settlement | None = None
        """What all settle; None where somebody has died, or has a problem."""
        self.trains = True
        self.problem: Exception | None = None
        """Of this rank: why it could not give or load."""

    def hold(self, survival: Continue, crew: Any, member: Member, pack: Pack | None, load: Load | None) -> None:
        """Collective.

        Args:
            crew: all of them.

        Raises:
            RanksLost: somebody has died.
        """
        self.channel = Channel.open(crew.comm, timeout=survival.timeout)
        self.trains = load is None
        known = self.channel.gather_objects(_known(survival, member, self.trains), "what newcomers must know")
        self.new = [place for place, one in enumerate(known) if one is None]
        self.giver = next(place for place, one in enumerate(known) if one is not None)
        self.known = known[self.giver]
        packed, self.problem = _send(self.channel, self.giver, pack)
        if load is not None and packed:  # otherwise the giver says why not
            self.problem = _attempt(lambda: load(packed))
        row = {
            "account": astuple(Account(member.push_weight, member.data_weight, member.round)),
            "follower": [follower.report() for follower in member.followers if follower.has_newcomers],
            "problem": None if self.problem is None else f"{type(self.problem).__name__}: {self.problem}",
        }
        self.rows = self.channel.gather_objects(row, "the accounts of all")
        if not any(one["problem"] for one in self.rows):
            self.accounts = shared([Account(*one["account"]) for one in self.rows], self.giver, self.new)
            self.agreed = settle(self.accounts, len(known) - len(self.new))


def _refuse(survival: Continue, processes: Sequence[int], ranks: Sequence[int], talk: _Talk) -> NoReturn:
    """Go on as before: raise RanksLost; on a newcomer that could not load, its own error."""
    if talk.problem is not None and not talk.trains:
        raise talk.problem
    failed = {process: one["problem"] for process, one in zip(processes, talk.rows, strict=False) if one["problem"]}
    if failed and talk.trains and survival.crew.comm.Get_rank() == 0:
        place = dict(zip(processes, ranks, strict=True))
        said = "; ".join(f"rank {place[process]}: {problem}" for process, problem in failed.items())
        log.warning("a spare could not take its place: %s", said)
        newcomers = set(processes) - set(survival.crew.processes)
        survival.crew.bench.leave_out((newcomers & set(failed)) or newcomers)
    raise RanksLost("a spare could not be taken in")


def _known(survival: Continue, member: Member, trains: bool) -> dict[str, Any] | None:
    """Return what a newcomer must know of one that trains; None on a newcomer."""
    if not trains:
        return None
    return {
        "committed": survival.commits.count,
        "epoch": survival.epoch,
        "losses": [asdict(loss) for loss in survival.losses],
        "vacant": survival.vacant,
        "run": member.run,
        "name": member.name,
    }


def _attempt(function: Callable[[], object]) -> Exception | None:
    """Call a function and return its error, if any. It talks to no other rank."""
    try:
        function()
    except Exception as error:
        return error
    return None


def _send(channel: Channel, giver: int, pack: Pack | None) -> tuple[bytes, Exception | None]:
    """Collective. Return what the giver has packed, and on the giver why it could not."""
    packed, problem = b"", None
    if pack is not None and channel.rank == giver:
        made: list[bytes] = []
        problem = _attempt(lambda: made.append(pack()))
        packed = made[0] if made else b""
    size = channel.gather_objects(len(packed), "the size of what newcomers get")[giver]
    data = np.frombuffer(packed, np.uint8).copy() if packed else np.empty(size, np.uint8)
    channel.broadcast(data, giver, "model, optimizer and position for newcomers")
    return data.tobytes(), problem


def _settle(
    survival: Continue,
    member: Member,
    crew: Any,
    talk: _Talk,
) -> None:
    """Take over what all have agreed on."""
    assert talk.agreed is not None
    known = talk.known
    before, taken = survival.crew, set(crew.ranks)
    if not before.waits:
        losses, taken = survival.losses, taken - set(survival.ranks)
    else:
        lists = ("ranks", "replaced")
        losses = [Loss(**{**one, **{name: tuple(one[name]) for name in lists}}) for one in known["losses"]]
        member.run, member.name = known["run"], known["name"]
        survival.commits.count = known["committed"]
        taken &= set(known["vacant"])
        training_ranks.spare().is_in()
        member.stand_still()
    survival.grow(crew, talk.channel, int(known["epoch"]) + 1, _replaced(losses, taken))
    survival.vacant = [place for place in known["vacant"] if place not in taken]
    world.succeed(before.comm, crew.comm)
    place = crew.comm.Get_rank()
    member.settle(talk.agreed, talk.accounts[place], place)


def _replaced(losses: Sequence[Loss], places: set[int]) -> list[Loss]:
    """Return the losses, with a note at the last one of each of these ranks that a spare has taken its place."""
    left, found = set(places), []
    for loss in reversed(losses):
        here = tuple(sorted(rank for rank in left if rank in loss.ranks))
        found.append(replace(loss, replaced=(*loss.replaced, *here)) if here else loss)
        left -= set(here)
    return found[::-1]


def _say(survival: Continue, member: Member, places: Sequence[int]) -> None:
    crew = survival.crew
    crew.bench.tell_crew(crew.processes)
    who = f"rank {places[0]}" if len(places) == 1 else f"ranks {', '.join(map(str, places))}"
    took = "a spare has taken the place of" if len(places) == 1 else "spares have taken the places of"
    log.info(
        "%s %s, from round %d: %d ranks train now (%s)",
        took,
        who,
        member.round,
        len(crew.ranks),
        ", ".join(map(str, crew.ranks)),
    )
