"""pytest under mpirun: a test that fails on one rank soon fails on all, and all ranks start the next test together.

pytest loads this plugin by itself. It does nothing unless mpirun has started several ranks.

A rank whose test raises tells the others. Those that wait for it in a call of this library stop with its reason. So do
those that wait for a rank that has come to the end of the test, skipped it, or failed before they waited. After every
test all ranks say how it ended for them. Where it failed on one, all ranks give up what is open.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

import pytest

__all__ = ["pytest_addoption", "pytest_configure"]

LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
REASON_BYTES = 500
LISTEN_S = 0.1
"""Between two looks for questions of ranks that wait for this one."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "pushsum_grace_seconds",
        "under mpirun: seconds that other ranks have to come to the end of a test that failed on one rank",
        default="60",
    )


def pytest_configure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")  # of xdist; not by its variable, which what a worker starts inherits
    if _several_ranks(os.environ) and not is_worker:
        config.pluginmanager.register(Ranks(float(config.getini("pushsum_grace_seconds"))), "pushsum_opt_ranks")


def _several_ranks(environ: Mapping[str, str]) -> bool:
    return any(environ.get(name, "").isdigit() and int(environ[name]) > 1 for name in LAUNCHED)


class Ranks:
    """This rank's tests beside those of the others.

    Args:
        grace: seconds that the others have to come to the end of a test that has failed on one rank.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._channel: Any = None
        self._reason = ""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        from . import transport
        from .channel import by_communicator
        from .job import world

        self._channel = transport.connect(world.communicator())
        # Open on all ranks: a rank that fails can tell those that wait in it.
        by_communicator.opened(world.communicator())
        self._compare("collection", "\n".join(item.nodeid for item in session.items), b"")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
        outcome = yield
        if self._channel is None:
            return
        report = outcome.get_result()
        error = None if call.excinfo is None else call.excinfo.value
        if error is not None and not isinstance(error, pytest.skip.Exception) and not self._reason:
            self._tell(item.nodeid, error)
        if call.when == "teardown":
            theirs = self._end_of_test(item.nodeid)
            if theirs and report.passed and not self._reason:
                report.outcome = "failed"
                report.longrepr = f"{item.nodeid} failed on another rank of this job:\n{theirs}"
            self._reason = ""

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._channel is not None:
            self._end_of_test("the end of the session")
            self._channel.close()

    # ------------------------------------------------------------------ what is said

    def _tell(self, test: str, error: BaseException) -> None:
        from .channel import by_communicator
        from .job import ending

        self._reason = f"rank {self._channel.rank}, in {test}: {type(error).__name__}: {error}"
        ending.fail_all(error)
        by_communicator.tell_all(self._reason)

    def _end_of_test(self, test: str) -> str:
        """Collective. Return the reasons of the ranks on which the test failed; then nothing is open on any rank."""
        from .transport.mpi.catch_up import catch_up

        reasons, set_ups = self._compare(test, test, self._reason.encode("utf-8", "replace"))
        self._wait(catch_up(set_ups), f"what ranks had begun to set up in {test} was not made", limited=True)
        if reasons:
            from .channel import by_communicator
            from .job import ending, world

            ending.fail_all(RuntimeError(reasons))
            for member in ending.THIS.members:
                member.close()
            by_communicator.tell_all(reasons)
            by_communicator.abandon_all()
            by_communicator.opened(world.communicator())
        return reasons

    def _compare(self, where: str, what: str, reason: bytes) -> tuple[str, int]:
        """Collective. Return the reasons of the ranks that have one, and how many channels some rank has begun."""
        from .transport.mpi.catch_up import set_ups
        from .transport.mpi.post import roll_of_the_job

        digest = hashlib.blake2b(what.encode(), digest_size=16).digest()
        name = where.encode("utf-8", "replace")[-100:].ljust(100)
        mine = digest + name + struct.pack("<q", set_ups()) + reason[:REASON_BYTES].ljust(REASON_BYTES)
        ticket, rows = self._channel.gather(mine, f"the end of {where}")
        roll = roll_of_the_job()
        roll.left = self._reason or f"it has come to the end of {where}"
        failed = bool(self._reason)
        self._wait(lambda: ticket.done, f"the other ranks did not come to the end of {where}", limited=failed)
        roll.left = ""
        said = [row.tobytes() for row in rows]
        if any(one[:16] != digest for one in said):
            places = [f"rank {rank}: {one[16:116].decode('utf-8', 'replace').strip()}" for rank, one in enumerate(said)]
            self._stop("the ranks run different tests: " + "; ".join(places[:8]) + ". Select the same on every rank")
        texts = [one[124:].decode("utf-8", "replace").strip() for one in said]
        return "\n".join(text for text in texts if text), max(struct.unpack("<q", one[116:124])[0] for one in said)

    def _wait(self, done: Callable[[], bool], why_not: str, *, limited: bool) -> None:
        """Wait, and answer the ranks that wait for this one; where it is limited, end the job after the grace."""
        from .transport.mpi.post import roll_of_the_job

        began = time.monotonic()
        while not done():
            self._channel.poll(LISTEN_S)
            roll_of_the_job().listen()
            if limited and time.monotonic() - began > self._grace:
                self._stop(f"{why_not} within {self._grace:g} s. {self._reason}")

    def _stop(self, why: str) -> None:
        from .errors import PushSumError
        from .job import ending

        ending.abort(PushSumError(f"rank {self._channel.rank}: {why}"))
