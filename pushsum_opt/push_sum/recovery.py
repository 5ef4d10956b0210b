"""How survivors settle a loss: they meet, tell each other what they hold and what they opened, and open new channels.

Nothing is changed before all survivors have agreed that everybody has everybody's account. When another rank dies until
then, the attempt is void and the next one begins from the same values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from .. import world
from ..errors import RanksLost
from ..faults import Account, Loss, Settlement, last_heard, settle

if TYPE_CHECKING:
    from .member import Member
    from .survival import Continue

__all__ = ["LOOK_S", "attempt", "told"]

LOOK_S = 0.5e-3
"""Between two looks at who has come."""


def attempt(survival: Continue) -> None:
    """Collective over the survivors. Settle a loss, or raise RanksLost where another rank dies meanwhile.

    Raises:
        CallsAreOver: another rank knows that the call that was made was committed, and has nothing open any more.
    """
    survival.crew.revoke()
    for member in survival.members:
        member.stand_still()
    before = survival.crew.comm
    survival.crew = crew = survival.crew.survivors(survival.wait_for, survival.committed)
    world.succeed(before, crew.comm)
    agreed: list[Settlement] | None = None
    try:
        channel = survival.open_channel()
        reports = channel.gather_objects(_report(survival), "the accounts of all survivors")
        survival.learn(max(report["committed"] for report in reports))
        members = _common(survival, reports)
        mine = [_account(survival, member, reports) for member in members]
        rows = channel.gather_objects(
            [_told_to_all(*one) for one in zip(members, mine, strict=True)], "what was taken back"
        )
        agreed = [
            settle([Account(*row[k]["account"]) for row in rows], one.participants) for k, one in enumerate(members)
        ]
    except RanksLost:
        pass
    if not crew.agree(agreed is not None):
        raise RanksLost("another rank has died during the recovery")
    assert agreed is not None
    survival.give_up([one for one in survival.members if one not in members])
    survival.settle(channel, _loss(survival, agreed))
    for k, (member, settlement, account) in enumerate(zip(members, agreed, mine, strict=True)):
        member.settle(settlement, account, crew.comm.Get_rank())
        for place, follower in enumerate(member.followers):
            follower.settle([row[k]["followers"][place] for row in rows])
    for member in members:
        member.rejoin(crew.comm)
        for follower in member.followers:
            follower.rejoin()


def _told_to_all(member: Member, account: Account) -> dict[str, Any]:
    return {"account": astuple(account), "followers": [follower.report() for follower in member.followers]}


def _report(survival: Continue) -> dict[str, Any]:
    """Return what the others need of this rank to find out what of their messages was opened."""
    return {
        "rank": survival.crew.ranks[survival.crew.comm.Get_rank()],
        "committed": survival.committed,
        "members": {
            member.name: {
                "opened": [[survival.ranks[peer], count] for peer, count in member.ledger.opened.items()],
                "heard": [[survival.ranks[peer], round] for peer, round in member.ledger.heard.items()],
            }
            for member in survival.members
        },
    }


def _common(survival: Continue, reports: Sequence[dict[str, Any]]) -> list[Member]:
    """Return what is open on all survivors: some may have begun to make more when ranks died."""
    return [one for one in survival.members if all(one.name in report["members"] for report in reports)]


def _account(survival: Continue, member: Member, reports: Sequence[dict[str, Any]]) -> Account:
    """Return what this rank holds with what it takes back."""
    me = survival.ranks[member.participant]
    opened = {report["rank"]: dict(report["members"][member.name]["opened"]) for report in reports}
    heard = last_heard([dict(report["members"][member.name]["heard"]) for report in reports])
    places = {rank: place for place, rank in enumerate(survival.ranks)}
    dead = [place for rank, place in places.items() if rank not in opened]
    sent = member.surely_sent({places[rank]: round for rank, round in heard.items()}, dead)
    back = []
    for rank, place in places.items():
        if rank in opened:
            back += member.ledger.unopened(place, opened[rank].get(me, 0))
        else:
            back += member.perhaps_unopened(place, sent.get(place, -1))
    mass = sum(mass for _, mass in back)
    return Account(member.push_weight + mass, member.data_weight, member.round, len(back), mass)


def _loss(survival: Continue, agreed: Sequence[Settlement]) -> Loss:
    lost = tuple(rank for rank in survival.ranks if rank not in survival.crew.ranks)
    return Loss(
        ranks=lost,
        round=max((one.round for one in agreed), default=0),
        mass=sum(one.lost for one in agreed),
        taken_back=sum(one.taken_back for one in agreed),
        mass_taken_back=sum(one.mass_taken_back for one in agreed),
        seconds=0.0,
    )


def told(loss: Loss, ranks: Sequence[int]) -> str:
    """Return the line that one survivor logs."""
    n = len(ranks)
    who = f"rank {loss.ranks[0]} is" if len(loss.ranks) == 1 else f"ranks {', '.join(map(str, loss.ranks))} are"
    left = (
        f"the {n} ranks that are left are ranks 0 to {n - 1} now"
        if n > 1
        else "the one rank that is left is rank 0 now"
    )
    return (
        f"{who} lost, and the others go on from round {loss.round}: mass {loss.mass:.4g} is gone, {loss.taken_back} "
        f"messages of mass {loss.mass_taken_back:.4g} were taken back by their senders, after {loss.seconds:.2f} s; "
        f"{left} (started as {', '.join(map(str, ranks))})"
    )
