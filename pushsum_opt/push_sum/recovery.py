"""How survivors settle a loss: they meet, tell each other what they hold and what they opened, and open new channels.

Nothing is changed before all survivors have agreed that everybody has everybody's account. When another rank dies until
then, the attempt is void and the next one begins from the same values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from ..errors import RanksLost
from ..faults import Account, Given, Loss, Settlement, last_heard, settle, surely_sent
from ..job import world

if TYPE_CHECKING:
    from .continuing import Continue
    from .member import Member

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
    survival.crew = crew = survival.crew.survivors(survival.wait_for, survival.commits.count)
    world.succeed(before, crew.comm)
    agreed: list[list[Settlement]] | None = None
    try:
        channel = survival.open_channel()
        reports = channel.gather_objects(_report(survival), "the accounts of all survivors")
        # Some have perhaps not heard yet which ranks share a host; all must find the same here.
        survival.hosts = {rank: label for report in reports for rank, label in report["hosts"]}
        survival.lose_hosts({survival.host_of(rank) for rank in survival.hosts if rank not in crew.ranks})
        survival.commits.learn(max(report["committed"] for report in reports))
        members = _common(survival, reports)
        mine = [_account(survival, member, reports) for member in members]
        rows = channel.gather_objects(
            [_told_to_all(*one) for one in zip(members, mine, strict=True)], "what was taken back"
        )
        agreed = [_settle_lanes(survival, one, [row[k] for row in rows]) for k, one in enumerate(members)]
    except RanksLost:
        pass
    if not crew.agree(agreed is not None):
        raise RanksLost("another rank has died during the recovery")
    assert agreed is not None
    survival.give_up([one for one in survival.members if one not in members])
    survival.settle(channel, _loss(survival, agreed))
    lane = survival.lane_of(survival.me)
    place = [rank for rank in survival.ranks if survival.lane_of(rank) == lane].index(survival.me)
    for k, (member, settlements, account) in enumerate(zip(members, agreed, mine, strict=True)):
        lanes = len(settlements)
        member.settle(settlements[lane if lanes > 1 else 0], account, place if lanes > 1 else crew.comm.Get_rank())
        for number, follower in enumerate(member.followers):
            follower.settle([row[k]["followers"][number] for row in rows])
    for member in members:
        member.rejoin(crew.comm)
        for follower in member.followers:
            follower.rejoin()


def _settle_lanes(survival: Continue, member: Member, rows: Sequence[dict[str, Any]]) -> list[Settlement]:
    """Return what holds from now on for each lane of a host; there is one where each rank takes part by itself.

    The lanes carry different parts of the model, and each has its own mass.
    """
    accounts = [Account(*row["account"]) for row in rows]
    if member.place.host.lanes == 1:
        return [settle(accounts, member.place.participants)]
    ranks = survival.crew.ranks
    by_host: dict[Any, list[Account]] = {}
    for rank, account in zip(ranks, accounts, strict=True):
        by_host.setdefault(survival.host_of(rank), []).append(account)
    return [settle(lane, member.place.participants) for lane in zip(*by_host.values(), strict=True)]


def _told_to_all(member: Member, account: Account) -> dict[str, Any]:
    return {"account": astuple(account), "followers": [follower.report() for follower in member.followers]}


def _report(survival: Continue) -> dict[str, Any]:
    """Return what the others need of this rank to find out what of their messages was opened."""

    def by_rank(member: Member, counts: Mapping[int, int]) -> list[list[int]]:
        return [[_number(survival, member, peer), count] for peer, count in counts.items()]

    return {
        "rank": survival.crew.ranks[survival.crew.comm.Get_rank()],
        "committed": survival.commits.count,
        "hosts": list(survival.hosts.items()),
        "members": {
            member.name: {
                "opened": by_rank(member, member.place.ledger.opened),
                "heard": by_rank(member, member.place.ledger.heard),
            }
            for member in survival.members
        },
    }


def _common(survival: Continue, reports: Sequence[dict[str, Any]]) -> list[Member]:
    """Return what is open on all survivors: some may have begun to make more when ranks died."""
    return [one for one in survival.members if all(one.name in report["members"] for report in reports)]


def _account(survival: Continue, member: Member, reports: Sequence[dict[str, Any]]) -> Account:
    """Return what this rank holds with what it takes back."""
    me = _number(survival, member, member.place.participant)
    opened = {report["rank"]: dict(report["members"][member.name]["opened"]) for report in reports}
    heard = last_heard([dict(report["members"][member.name]["heard"]) for report in reports])
    places = {_number(survival, member, place): place for place in range(member.place.participants)}
    dead = [place for rank, place in places.items() if rank not in opened]
    sent = _surely_sent(member, {places[rank]: round for rank, round in heard.items() if rank in places}, dead)
    back = []
    for rank, place in places.items():
        if rank in opened:
            back += member.place.ledger.unopened(place, opened[rank].get(me, 0))
        else:
            back += _perhaps_unopened(member, place, sent.get(place, -1))
    mass = sum(mass for _, mass in back)
    return Account(member.push_weight + mass, member.data_weight, member.round, len(back), mass)


def _surely_sent(member: Member, heard: Mapping[int, int], dead: Collection[int]) -> Mapping[int, int]:
    """Return the latest round in which each rank that died has surely sent; where ranks are in step, by all signs.

    Args:
        heard: the latest round of which any survivor has opened a message, by its sender.
    """
    staleness = member.options.staleness
    if staleness == "unbounded":
        return heard

    def in_peers(rank: int, round: int) -> Sequence[int]:
        return member.place.graph.in_peers(rank, member.place.participants, round)

    return surely_sent(heard, dead, in_peers, int(staleness), member.place.ledger.oldest(dead))


def _perhaps_unopened(member: Member, peer: int, heard: int) -> list[Given]:
    """Return the messages to a rank that died that it has perhaps not opened.

    Args:
        heard: the latest round in which it has surely sent; -1: none.
    """
    return member.place.ledger.perhaps_unopened(peer, lambda sent_in: member.mode.surely_opened(peer, sent_in, heard))


def _number(survival: Continue, member: Member, participant: int) -> int:
    """Return a rank of the gossip by its number when the job was started; of a host, that with this rank's lane."""
    if member.place.host.lanes == 1:
        return survival.ranks[participant]
    return [rank for rank in survival.ranks if survival.lane_of(rank) == member.place.host.lane][participant]


def _loss(survival: Continue, lanes: Sequence[Sequence[Settlement]]) -> Loss:
    """Return what was lost; where the lanes of a host have different masses, their mean."""
    agreed = [one for settlements in lanes for one in settlements]
    count = len(agreed) / max(1, len(lanes))
    lost = tuple(rank for rank in survival.ranks if rank not in survival.crew.ranks)
    return Loss(
        ranks=lost,
        round=max((one.round for one in agreed), default=0),
        mass=sum(one.lost for one in agreed) / count if agreed else 0.0,
        taken_back=sum(one.taken_back for one in agreed),
        mass_taken_back=sum(one.mass_taken_back for one in agreed) / count if agreed else 0.0,
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
