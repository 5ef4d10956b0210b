"""What waiting for a peer costs: how much of a core, and how much later a message that is due is seen.

    pushsum run -np 2 examples/benchmarks/waiting.py
    pushsum run -np 2 examples/benchmarks/waiting.py --rounds 200 --sleep 0.1

Rank 1 sleeps before every round, so rank 0 waits for each of its messages. The delay runs from rank 1's call of mix()
to the return of rank 0's call that needed that message, on one clock, the work of both calls included. The same without
naps, polling all the time, stands beside it: the difference is what the naps add. The first line is what naps cost on
this machine by themselves.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
from mpi4py import MPI

import pushsum_opt as ps
from pushsum_opt.transport import naps

comm = MPI.COMM_WORLD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="(default 100)")
    parser.add_argument("--sleep", type=float, default=0.03, help="of rank 1 before each round, seconds (default 0.03)")
    arguments = parser.parse_args()
    if comm.size != 2:
        raise SystemExit(f"expected 2 ranks, got {comm.size}")
    say(f"{'naps alone':34}{share(lambda: nap_for(arguments.rounds * arguments.sleep)):7.1%} of a core")
    for staleness in (0, 1, 2):
        say(f"{f'staleness {staleness}':34}{measure(staleness, arguments)}")
        with mock.patch.object(naps, "YIELD_FOR_S", math.inf):
            say(f"{f'staleness {staleness}, polling all the time':34}{measure(staleness, arguments)}")


def measure(staleness: int, arguments: argparse.Namespace) -> str:
    """Return what share of a core rank 0 uses, and how late it sees messages, in words."""
    begun, ended = [], []
    random = np.random.default_rng(0)

    def rounds() -> None:
        for _ in range(arguments.rounds):
            if comm.rank == 1:
                time.sleep(arguments.sleep * random.uniform(0.5, 1.5))
            begun.append(time.monotonic())
            push_sum.mix()
            ended.append(time.monotonic())

    with ps.PushSum([np.zeros(1000)], graph=ps.graphs.Ring(), staleness=staleness) as push_sum:
        comm.Barrier()
        used = share(rounds)
    sent = comm.bcast(begun, 1)
    # A round needs the message of so many rounds before; the first ones wait for nothing.
    micro = sorted(1e6 * (end - begin) for begin, end in zip(sent, ended[staleness:], strict=False))
    return (
        f"{used:7.1%} of a core; delay mean {statistics.fmean(micro):5.0f}, median {statistics.median(micro):5.0f}, "
        f"95 % {micro[int(0.95 * len(micro))]:5.0f} microseconds"
    )


def nap_for(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(naps.LONGEST_NAP_S)


def share(work: Callable[[], None]) -> float:
    """Return the processor seconds of this process over the seconds that the work takes."""
    begin, busy = time.monotonic(), time.process_time()
    work()
    return (time.process_time() - busy) / (time.monotonic() - begin)


def say(line: str) -> None:
    if comm.rank == 0:
        print(line, flush=True)
    comm.Barrier()


if __name__ == "__main__":
    main()
