"""Running totals of one rank, cheap enough to keep always."""

from __future__ import annotations

from .events import Listener

__all__ = ["Statistics"]


class Statistics(Listener):
    """Counts what happens in rounds."""

    def __init__(self) -> None:
        self._seconds_waited = 0.0
        self._bytes_sent = 0
        self._chunks_skipped = 0
        self._blocks_missed = 0
        self._last_heard: dict[int, int] = {}

    def waited(self, seconds: float) -> None:
        self._seconds_waited += seconds

    def message_posted(self, round: int, peer: int, nbytes: int, mass: float) -> None:
        self._bytes_sent += nbytes

    def message_merged(self, round: int, peer: int, age: int) -> None:
        self._last_heard[peer] = round - age

    def chunk_skipped(self, round: int, peer: int, what: str) -> None:
        self._chunks_skipped += 1

    def blocks_missed(self, round: int, peer: int, count: int) -> None:
        self._blocks_missed += count

    def values(self, rounds: int) -> dict[str, float]:
        """Return the totals as plain floats, after ``rounds`` completed rounds."""
        oldest = min(self._last_heard.values(), default=rounds - 1)
        return {
            "seconds_waited": self._seconds_waited,
            "bytes_sent": float(self._bytes_sent),
            "worst_age": float(max(0, rounds - 1 - oldest)),
            "chunks_skipped": float(self._chunks_skipped),
            "blocks_missed": float(self._blocks_missed),
        }
