"""Who takes the messages that come to a process: each transport has a context of its own, sent with its messages."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Arrival", "Contexts", "Listener"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that has come, or whose sender waits for a buffer for it."""

    source: int
    context: bytes
    tag: int
    length: int
    data: bytes | None
    """The message, where it was inside its frame."""
    number: int
    by_nccl: bool = False
    """It is in GPU memory, and is received there."""


class Listener(Protocol):
    """What takes the messages of one context."""

    def arrived(self, arrival: Arrival) -> None: ...

    def stopped(self, source: int, reason: str) -> None: ...


class Contexts:
    """The contexts of one mesh of connections. Messages may come before their context is open here."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Held while messages and expectations find each other."""
        self.stopped: dict[int, str] = {}
        """Why processes have stopped, as far as they have said so."""
        self._listeners: dict[bytes, Listener] = {}
        self._early: dict[bytes, list[Arrival]] = {}
        self._closed: set[bytes] = set()

    def open(self, context: bytes, listener: Listener) -> None:
        """From now on a listener takes the messages of a context, those first that have come before."""
        with self.lock:
            self._listeners[context] = listener
            for arrival in self._early.pop(context, ()):
                listener.arrived(arrival)
            for source, reason in self.stopped.items():
                listener.stopped(source, reason)

    def close(self, context: bytes) -> None:
        """What still comes for a context is thrown away."""
        with self.lock:
            self._listeners.pop(context, None)
            self._closed.add(context)

    def deliver(self, arrival: Arrival) -> None:
        """Give a message to its context, or keep it until that is open."""
        with self.lock:
            listener = self._listeners.get(arrival.context)
            if listener is not None:
                listener.arrived(arrival)
            elif arrival.context not in self._closed:
                self._early.setdefault(arrival.context, []).append(arrival)

    def note_stopped(self, source: int, reason: str) -> None:
        """Tell every context that a process has stopped, and why; the first reason counts."""
        with self.lock:
            self.stopped.setdefault(source, reason)
            for listener in tuple(self._listeners.values()):
                listener.stopped(source, self.stopped[source])
