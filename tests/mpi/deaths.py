"""What happens to whom when a rank dies: the rows of the table on the page "When a rank dies".

``python docs/draw_deaths.py`` writes the table. test_deaths.py lets ranks die in each of these ways, and fails where
the others do something else than the row says.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["DEATHS", "Death", "Others", "table"]


class Others(Enum):
    """What becomes of the other ranks."""

    GO_ON = "go on without it"
    GO_ON_WITH_IT = "wait for it, and go on with it"
    END = "end with an error that names it"
    WAIT = "wait until `timeout`, and end with an error that names it"
    ARE_ENDED = "are ended by mpirun"


@dataclass(frozen=True)
class Death:
    """One row."""

    kind: str
    """What happens to a rank."""

    others: Others
    code: int | None
    """What ``pushsum run --survive`` returns; None: what it returns if nothing had happened, or no test shows it."""


DEATHS = {
    "killed": Death("It is killed (SIGKILL), as by the kernel when memory runs out", Others.GO_ON, 0),
    "crashes": Death("It crashes (SIGSEGV)", Others.GO_ON, 0),
    "raises": Death("It raises an error that is not of this library", Others.GO_ON, 0),
    "memory": Death("It raises `MemoryError`", Others.GO_ON, 0),
    "rank 0": Death("It is rank 0", Others.GO_ON, 0),
    "two": Death("Two are killed at once", Others.GO_ON, 0),
    "last": Death("All but one are gone", Others.GO_ON, 0),
    "construction": Death(
        "It is killed while the optimizer is made, but for the milliseconds below", Others.GO_ON, None
    ),
    "round": Death("It is killed in the middle of a round, its message half sent", Others.GO_ON, None),
    "exact": Death("It is killed in an exact average", Others.GO_ON, None),
    "averaged": Death("It is killed in `averaged()`", Others.GO_ON, None),
    "recovery": Death("It is killed while the others recover from another death", Others.GO_ON, None),
    "close": Death("It is killed in `close()`", Others.GO_ON, None),
    "slow": Death("It is stopped (SIGSTOP) or slow, for less than `timeout`", Others.GO_ON_WITH_IT, None),
    "stopped": Death("It is stopped (SIGSTOP) for longer than `timeout`", Others.WAIT, 1),
    "library": Death("It raises an error of this library, such as `NonFiniteError`", Others.END, 1),
    "sys.exit": Death("Its program ends early (`sys.exit()`, `break`)", Others.END, 1),
    "os._exit": Death("Its process ends with `os._exit(3)`, of which MPI does not say that it died", Others.WAIT, 3),
    "host": Death("Its host is lost", Others.ARE_ENDED, 1),
}


def table() -> str:
    """Return the table, in Markdown."""
    rows = ["| what happens to a rank | the others | exit code |", "|---|---|---|"]
    rows += [
        f"| {death.kind} | {death.others.value} | {'' if death.code is None else death.code} |"
        for death in DEATHS.values()
    ]
    return "\n".join(rows)
