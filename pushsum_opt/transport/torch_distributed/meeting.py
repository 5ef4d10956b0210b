"""Ranks meet in a store in which others with the same numbers may have met before.

torchrun starts ranks again with the store of the ranks before, and with what these have left there. So nothing in it is
believed that does not answer a word of this process: each rank says a word that nobody has said before, and rank 0
answers it.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

__all__ = ["Meeting"]

LOOK_EVERY_S = 5e-3
"""Between two looks at the beginning. With each second that a rank waits, up to 5 s, it grows by ten times that:
every look costs the process that holds the store some time, and rank 0 may look for hundreds of others."""
WORD_BYTES = 8


class Meeting:
    """One rank in a meeting. All ranks have the same token afterwards, which no earlier meeting had.

    1. Every rank says *hello*, with a word of its own.
    2. Rank 0 answers each with that word and a token.
    3. The rank says that it *has* the token. A later answer replaces an earlier one, by a rank 0 that has died.
    4. When all have it, rank 0 says *go*.

    Args:
        store: of torch.distributed.
        rank: of ``size`` that meet.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._word = secrets.token_hex(WORD_BYTES)
        self.token = self._word if rank == 0 else ""
        self._answered: dict[int, bytes] = {}
        self._over = False
        self._begin = time.monotonic()
        self._look_at = 0.0
        if rank:
            store.set(f"hello {rank}", self._word)

    def all_here(self) -> bool:
        """Look, and do what is to be done; tell whether all are there. Waits for nobody."""
        now = time.monotonic()
        if not self._over and now >= self._look_at:
            self._over = self._answer_all() if self._rank == 0 else self._hear_answer()
            self._look_at = time.monotonic() + LOOK_EVERY_S * (1 + 10 * min(now - self._begin, 5.0))
        return self._over

    def _answer_all(self) -> bool:
        for rank, hello in enumerate(self._read_all("hello"), 1):
            if hello and hello != self._answered.get(rank):
                self._answered[rank] = hello
                self._store.set(f"answer {rank}", hello.decode() + self.token)
        over = len(self._answered) == self._size - 1 and self._all_have_it()
        if over:
            self._store.set(f"go {self.token}", "1")
        return over

    def _all_have_it(self) -> bool:
        keys = self._keys("has")
        token = self.token.encode()
        return not keys or (self._store.check(keys) and all(bytes(has) == token for has in self._store.multi_get(keys)))

    def _hear_answer(self) -> bool:
        answer = self._read(f"answer {self._rank}").decode()
        if not answer.startswith(self._word):
            return False
        token = answer.removeprefix(self._word)
        if token != self.token:
            self.token = token
            self._store.set(f"has {self._rank}", token)
        return bool(self._read(f"go {token}"))

    def _read(self, key: str) -> bytes:
        """Return what a key holds; nothing where it holds nothing yet."""
        return bytes(self._store.get(key)) if self._store.check([key]) else b""

    def _read_all(self, word: str) -> list[bytes]:
        """Return what all ranks but rank 0 have said; in two requests once all have."""
        keys = self._keys(word)
        if keys and self._store.check(keys):
            return [bytes(said) for said in self._store.multi_get(keys)]
        return [self._read(key) for key in keys]

    def _keys(self, word: str) -> list[str]:
        return [f"{word} {rank}" for rank in range(1, self._size)]
