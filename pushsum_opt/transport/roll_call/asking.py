"""One wait of a rank: whom it asks, what it hears, and what it concludes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from ...errors import MismatchError, PeerFailed, PeerFinished
from .answering import Message, RollCall
from .chain import Link, blocks, older, sentence, until_again
from .needs import WHEREVER, Need

__all__ = ["Waiting"]

ASK_AFTER_S = 0.5
"""Seconds of waiting after which a rank asks."""
ASK_AGAIN_S = 1.0
"""Seconds before it asks a rank again whose answer proved nothing."""
ASKS_PER_LOOK = 64
"""Ranks that are asked at a time: in a large job most of them answer before all have been asked."""
LOOKED_AT = 64
"""Ranks of a collective call that are looked at for a chain."""


class Waiting:
    """One wait of this rank.

    Args:
        roll: the roll call of the job.
        rank: this rank, as its user knows it.
        name: gives the name of a rank of the job, as its user knows it.
        call: the call that it waits in.
    """

    _made = 0

    def __init__(self, roll: RollCall, rank: int, name: Callable[[int], int], call: str) -> None:
        Waiting._made += 1
        self._id = Waiting._made
        self._roll = roll
        self._rank = rank
        self._name = name
        self.call = call
        self.needs: Sequence[Need] = ()
        self._asked: dict[tuple[int, str, int], float] = {}
        self._answers: dict[tuple[int, str, int], Message] = {}
        self._here: set[tuple[int, str, int]] = set()
        self._said: dict[int, tuple[float, Message]] = {}  # the last answer of each rank, and when it came
        self._what = ""
        self._before: Waiting | None = None

    def __enter__(self) -> Waiting:
        self._before, self._roll.waiting = self._roll.waiting, self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._roll.waiting = self._before

    def look(self, needs: Iterable[Need], seconds: float, what: str) -> None:
        """Ask and answer, ``seconds`` after anything has moved.

        Args:
            what: is waited for, in words.

        Raises:
            PeerFinished: a rank that is needed has ended its program.
            PeerFailed: a rank that is needed says that it has left.
            MismatchError: a rank that is needed waits for this one, somewhere else.
        """
        self.needs, self._what = tuple(needs), what
        with self._roll.talking:
            if seconds >= ASK_AFTER_S:
                self._ask()
            self._roll.listen()
        for need in self.needs:
            for rank in need.ranks:
                answer = self._answers.get((rank, need.channel, need.number))
                if answer is not None:
                    self._conclude(answer)

    def missing(self, need: Need) -> list[int]:
        """Return the ranks that have not said that they have come, by their numbers in the job."""
        ranks = [rank for rank in need.ranks if rank != self._roll.me]
        return sorted(self._name(rank) for rank in ranks if (rank, need.channel, need.number) not in self._here)

    def chain(self) -> list[Link]:
        """Return for whom this rank waits, for whom that one waits, and so on: see :mod:`.chain`.

        Of several ranks that have not come, one that does not wait itself.
        """
        found: list[Link] = []
        for need in self.needs:
            for rank in need.ranks[:LOOKED_AT]:
                come = rank == self._roll.me or self._has_come((rank, need.channel, need.number))
                if not come and not blocks(found):
                    further = self._links(rank)
                    found = further if blocks(further) or not found else found
        return found

    def _has_come(self, key: tuple[int, str, int]) -> bool:
        return key in self._here and key[1] != WHEREVER

    def sentence(self) -> str:
        """Return the chain in words; empty where it says nothing new."""
        return sentence(self.chain(), self._name_of)

    def _links(self, rank: int) -> list[Link]:
        now = time.monotonic()
        link: Link = {"rank": rank, "what": self._what, "waits": False, "doing": None, "since": 0.0, "ago": None}
        link["sent"], came = self._roll.sent.get(rank, (None, now))
        link["sent_ago"] = now - came
        when, answer = self._said.get(rank, (now, None))
        if answer is None:
            return [link]
        link["ago"] = now - when
        if answer["call"]:
            link |= {"waits": True, "doing": f"waiting in {answer['call']}", "since": None}
            return [link, *until_again(older(answer["chain"], now - when), (rank, self._roll.me))]
        if answer["whereabouts"] is not None:
            link["doing"], link["since"] = answer["whereabouts"]
        return [link]

    def _name_of(self, rank: int) -> int:
        """Return the name of any rank of the job; one that is not on this channel has only that number."""
        try:
            return self._name(rank)
        except ValueError:
            return rank

    # ------------------------------------------------------------------ questions and answers

    def _ask(self) -> None:
        now, asked = time.monotonic(), 0
        for need in self.needs:
            for rank in need.ranks:
                key = rank, need.channel, need.number
                if rank == self._roll.me or self._has_come(key) or asked == ASKS_PER_LOOK:
                    continue
                before = self._asked.get(key)
                if before is None or (key in self._answers and now - before >= ASK_AGAIN_S):
                    self._asked[key] = now
                    self._answers.pop(key, None)
                    self._roll.ask(rank, need, self._id)
                    asked += 1

    def heard(self, answer: Message) -> None:
        """Take note of an answer."""
        self._said[answer["from"]] = time.monotonic(), answer
        if answer["answer"] == self._id:
            key = answer["from"], answer["channel"], answer["number"]
            self._answers[key] = answer
            if answer["reached"] >= answer["number"]:
                self._here.add(key)

    def was_asked_by(self, question: Message) -> None:
        """Take note of a rank that waits: if this rank waits for the same, the other one has come there."""
        key = question["from"], question["channel"], question["number"]
        if any(question["channel"] == need.channel and question["number"] >= need.number for need in self.needs):
            self._here.add(key)
        for need in self.needs:  # it waits for this rank: ask at once whether it is waited for here
            known = self._asked.get((question["from"], need.channel, need.number), 0.0)
            if question["from"] in need.ranks and time.monotonic() - known >= ASK_AGAIN_S:
                key = question["from"], need.channel, need.number
                if key not in self._here:
                    self._asked[key] = time.monotonic()
                    self._roll.ask(question["from"], need, self._id)

    def _conclude(self, answer: Message) -> None:
        if answer["reached"] >= answer["number"]:
            return
        other = self._name(answer["from"])
        if answer["ended"]:
            raise PeerFinished(self._has_ended(other))
        if answer["left"]:
            raise PeerFailed(
                f"rank {self._rank}: rank {other} does not come to {self.call}, in which this rank waits for it: "
                f"{answer['left']}"
            )
        blocked = any(self._roll.reached.get(channel, 0) < number for channel, number in answer["needs"])
        if not blocked or (self._roll.ending and not answer["ending"]):
            return  # a rank that is ending raises nothing here: the other rank will
        if answer["ending"]:
            raise PeerFinished(self._has_ended(other))
        raise MismatchError(
            f"rank {self._rank} calls {self.call} while rank {other} calls {answer['call']}, and each waits for the "
            "other. All ranks must make the same collective calls in the same order, after the same number of rounds. "
            "The commonest cause is a collective call on some ranks only, such as `if ps.rank() == 0: "
            "print(ps.average(loss))`: make the call on every rank, and print on one"
        )

    def _has_ended(self, other: int) -> str:
        return (
            f"rank {self._rank}: rank {other} has ended its program, while this rank waits for it in {self.call}. "
            f"Every rank must make this call: was it made on some ranks only, as in `if ps.rank() == 0: ...`, or did "
            f"rank {other} leave its loop early?"
        )
