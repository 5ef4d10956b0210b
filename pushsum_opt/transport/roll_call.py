"""A rank that has waited for a while asks the ranks that it waits for, and learns why they do not come.

The questions are small messages, sent only by a rank that has waited for :data:`ASK_AFTER_S`. A rank that computes
answers where a thread moves its messages, and at the spans of its program; otherwise it does not, and nothing follows
from that. Three kinds of answers prove that a wait will never end:

* the other rank has ended its program;
* the other rank says that it has left, such as a test that has failed on it;
* the other rank waits too, and for this one.

What a rank waits for is always that others *reach* a number on a channel: the 3rd collective of a communicator, round 7
of an exchange. Each rank counts what it has reached, and an answer says how far the rank is that answers. So an answer
is conclusive only where the other rank has not begun what this one waits for: a message that is under way, or a rank
that is slow, raises no alarm.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from ..errors import MismatchError, PeerFailed, PeerFinished
from .chain import MOST_LINKS, Link, blocks, older, sentence, until_again
from .rate import Rate

__all__ = ["Need", "Progress", "Post", "RollCall", "Waiting", "group_name"]

LISTEN_AFTER_S = 0.1
"""Seconds of waiting after which a rank looks for questions, and answers them."""
ASK_AFTER_S = 0.5
"""Seconds of waiting after which a rank asks."""
ASK_AGAIN_S = 1.0
"""Seconds before it asks a rank again whose answer proved nothing."""
SHARE, LONGEST_PAUSE_S = 1e-3, 1.0
"""The part of its time for which a rank that computes listens; and the seconds after which it does so in any case. Over
MPI it takes about a microsecond; where words lie in a store, a message there and back."""
TELLS_PER_S, TELLS_AT_ONCE = 10, 20
"""How often a rank that moves from span to span tells where it is: so often in the long run, and at first."""
ASKS_PER_LOOK = 64
"""Ranks that are asked at a time: in a large job most of them answer before all have been asked."""

WHEREVER = ""
"""As the channel of a need: nothing is counted there, so an answer proves nothing. It says where the rank is."""
LOOKED_AT = 64
"""Ranks of a collective call that are looked at for a chain."""

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Need:
    """What is waited for: that some ranks reach a number on a channel."""

    channel: str
    number: int
    ranks: tuple[int, ...]
    """Ranks of the whole job."""


def group_name(ranks: Iterable[int]) -> str:
    """Return a name for some ranks of the job, by which set-ups of channels over them are counted."""
    return hashlib.blake2b(repr(tuple(ranks)).encode(), digest_size=6).hexdigest()


class Post(Protocol):
    """Carries the messages of a roll call. Neither method waits."""

    me: int
    """This rank, among all of the job."""

    def send(self, to: int, message: Message) -> None: ...

    def receive(self) -> list[Message]: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the ranks of one communicator have come: what the roll call of the job asks about."""

    roll: RollCall
    channel: str
    ranks: tuple[int, ...]
    """Its ranks, as ranks of the whole job."""

    def reach_collective(self, number: int) -> None:
        """This rank has begun so many collectives."""
        self.roll.reach(f"{self.channel} collectives", number)

    def reach_round(self, number: int) -> None:
        """This rank has begun to exchange messages of so many rounds."""
        self.roll.reach(f"{self.channel} rounds", number)

    def heard(self, rank: int, round: int) -> None:
        """A message of a round has come from a rank."""
        self.roll.sent[self.ranks[rank]] = round, time.monotonic()

    def anything(self, rank: int) -> Need:
        """The wait for a rank to do what is not counted."""
        return Need(WHEREVER, 0, (self.ranks[rank],))

    def collective(self, number: int, rank: int | None = None) -> Need:
        """The wait for a collective, or for one rank to begin it."""
        return Need(f"{self.channel} collectives", number, self.ranks if rank is None else (self.ranks[rank],))

    def round(self, number: int, rank: int) -> Need:
        """The wait for a rank to exchange messages of so many rounds."""
        return Need(f"{self.channel} rounds", number, (self.ranks[rank],))


class RollCall:
    """This rank in the roll call of the job: what it has reached, and what it answers."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self.me = post.me
        self.reached: dict[str, int] = {}
        """How far this rank has come, by channel."""
        self.waiting: Waiting | None = None
        """What it waits for now."""
        self.ending = False
        """Its program is over, and what is still open is being closed."""
        self.ended = False
        """Nothing will come from it any more."""
        self.left = ""
        """Why it begins nothing more until all ranks have met again; empty where it has not left."""
        self.whereabouts: Callable[[], tuple[str, float] | None] = lambda: None
        """Gives where this rank's program is while it does not wait, and for how many seconds."""
        self.sent: dict[int, tuple[int, float]] = {}
        """Of ranks that have sent messages here: the round of the last one, and when it came."""
        self._askers: dict[int, Message] = {}  # by rank, its question, while what it needs is not reached here
        self._look_at = 0.0  # when to listen again while this rank computes
        self._told = ""  # where this rank was when it told them last
        self._tells = Rate(TELLS_PER_S, TELLS_AT_ONCE)
        self.talking = threading.RLock()
        """Held by the thread that sends or receives its messages: one that moves other messages listens too."""

    def set_up(self, ranks: Sequence[int]) -> tuple[Progress, Progress]:
        """Begin to make a channel over some ranks of the job, which all do so in the same order.

        Returns:
            What counts its set-up (as a collective), and what counts the channel itself.
        """
        group = group_name(ranks)
        set_ups = Progress(self, group, tuple(ranks))
        number = self.reached.get(f"{group} collectives", 0) + 1
        set_ups.reach_collective(number)
        return set_ups, Progress(self, f"{group}.{number}", tuple(ranks))

    def listen(self) -> None:
        """Take in what has come, and answer what is asked."""
        with self.talking:
            self._listen()

    def listen_if_quiet(self, *, moved: bool = False) -> None:
        """Do so while this rank computes, unless another thread does it now, or it would take a noticeable time.

        It raises nothing: a rank that computes waits for nobody. What goes wrong shows in its next wait.

        Args:
            moved: this rank's program has come to another place: those who have asked for it and still wait are told.
        """
        if self.talking.acquire(blocking=False):
            try:
                begin = time.monotonic()
                if begin >= self._look_at:
                    self._listen()
                    end = time.monotonic()
                    self._look_at = end + min(LONGEST_PAUSE_S, (end - begin) / SHARE)
                if moved and self._askers:
                    self._tell_where()
            except Exception:
                self._look_at = math.inf
            finally:
                self.talking.release()

    def _tell_where(self) -> None:
        where, _ = self.whereabouts() or ("", 0.0)
        if where != self._told and self._tells.take(time.monotonic()):
            self._told = where
            for rank, question in self._askers.items():
                self._post.send(rank, self.answer(question))

    def reach(self, channel: str, number: int) -> None:
        """This rank has come to a number on a channel."""
        self.reached[channel] = number
        self._askers = {}  # who still waits asks again; another thread may go through the old ones

    def _listen(self) -> None:
        for message in self._post.receive():
            waiting = self.waiting  # looked at once: another thread may end its wait now
            if "answer" in message:
                if waiting is not None:
                    waiting.heard(message)
            else:
                answer = self.answer(message)
                self._post.send(message["from"], answer)
                if answer["reached"] < answer["number"]:
                    self._askers[message["from"]] = message
                if waiting is not None:
                    waiting.was_asked_by(message)

    def answer(self, question: Message) -> Message:
        """Say how far this rank is on the channel that is asked about, and what it needs of the rank that asks."""
        waiting = None if self.ended else self.waiting
        needs = () if waiting is None else [need for need in waiting.needs if question["from"] in need.ranks]
        return {
            "answer": question["id"],
            "from": self.me,
            "channel": question["channel"],
            "number": question["number"],
            "reached": self.reached.get(question["channel"], 0),
            "ended": self.ended,
            "ending": self.ending,
            "left": self.left,
            "call": "" if waiting is None else waiting.call,
            "chain": [] if waiting is None else waiting.chain()[:MOST_LINKS],
            "whereabouts": self.whereabouts() if waiting is None and not self.ended else None,
            "needs": [(need.channel, need.number) for need in needs],
        }

    def ask(self, rank: int, need: Need, wait: int) -> None:
        with self.talking:
            self._post.send(rank, {"id": wait, "from": self.me, "channel": need.channel, "number": need.number})


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
