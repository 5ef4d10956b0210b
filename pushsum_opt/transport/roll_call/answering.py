"""What a rank has reached, and what it answers to those who ask."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .chain import MOST_LINKS
from .needs import Need, Progress, group_name
from .rate import Rate

if TYPE_CHECKING:
    from .asking import Waiting

__all__ = ["LISTEN_AFTER_S", "Message", "Post", "RollCall"]

LISTEN_AFTER_S = 0.1
"""Seconds of waiting after which a rank looks for questions, and answers them."""
SHARE, LONGEST_PAUSE_S = 1e-3, 1.0
"""The part of its time for which a rank that computes listens; and the seconds after which it does so in any case. Over
MPI it takes about a microsecond; where words lie in a store, a message there and back."""
TELLS_PER_S, TELLS_AT_ONCE = 10, 20
"""How often a rank that moves from span to span tells where it is: so often in the long run, and at first."""

Message = dict[str, Any]


class Post(Protocol):
    """Carries the messages of a roll call. Neither method waits."""

    me: int
    """This rank, among all of the job."""

    def send(self, to: int, message: Message) -> None: ...

    def receive(self) -> list[Message]: ...


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
