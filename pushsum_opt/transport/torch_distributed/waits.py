"""Threads that wait for gloo.

A transfer of gloo cannot be asked whether it is done: ``Work.is_completed()`` is False until somebody has waited, and a
wait that ends by a time limit closes all connections. So somebody has to wait for each without a limit. Such a wait
takes no processor time and does not hold the interpreter lock.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from datetime import timedelta
from typing import Any

__all__ = ["FOREVER", "Done", "Waits"]

FOREVER = timedelta(days=365)
"""Longer than any job. gloo takes a limit of 0 for its default one, after which it closes connections."""

Done = Callable[[Exception | None], None]


class Waits:
    """Waits for many transfers at a time. Those with the same key end in the order in which they were begun.

    There are as many threads as keys that are waited for at a time. A thread that has nothing to do is used again.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._pending: dict[Hashable, deque[tuple[Sequence[Any], Done | None]]] = {}
        self._idle = 0
        self._keys: queue.SimpleQueue[Hashable] = queue.SimpleQueue()

    def add(self, key: Hashable, works: Sequence[Any], done: Done | None = None) -> None:
        """Wait for some transfers, one after the other.

        Args:
            done: called by the thread with the first error, or None.
        """
        with self._lock:
            waiting = self._pending.get(key)
            if waiting is not None:
                waiting.append((works, done))
                return
            self._pending[key] = deque([(works, done)])
            if self._idle:
                self._idle -= 1
                self._keys.put(key)
                return
        threading.Thread(target=self._work, args=(key,), name=self._name, daemon=True).start()

    def all_over(self) -> bool:
        """Tell whether nothing is waited for."""
        with self._lock:
            return not self._pending

    def _work(self, key: Hashable) -> None:
        while True:
            self._wait_for_all_of(key)
            key = self._keys.get()

    def _wait_for_all_of(self, key: Hashable) -> None:
        while True:
            with self._lock:
                waiting = self._pending[key]
                if not waiting:
                    del self._pending[key]
                    self._idle += 1
                    return
                works, done = waiting.popleft()
            error = _wait(works)
            del works
            if done is not None:
                done(error)


def _wait(works: Sequence[Any]) -> Exception | None:
    errors = [error for error in map(_wait_for_one, works) if error is not None]
    return errors[0] if errors else None


def _wait_for_one(work: Any) -> Exception | None:
    try:
        work.wait(FOREVER)
    except Exception as error:
        return error
    return None
