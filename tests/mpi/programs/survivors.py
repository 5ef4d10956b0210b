"""Ranks are killed, or raise, and the others go on. Arguments: the mode, how they die, and which ones."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np

import pushsum_opt as ps

staleness = sys.argv[1] if sys.argv[1] == "unbounded" else int(sys.argv[1])
dying = [int(rank) for rank in sys.argv[3].split(",")]
me = ps.rank()


def say(what: str) -> None:
    print(what, flush=True)


push_sum = ps.PushSum([np.full(60_000, float(me), np.float32)], staleness=staleness, on_loss="continue", timeout=60)
push_sum.on_change(lambda: say(f"now {push_sum.rank} of {push_sum.size}, ps {ps.rank()} of {ps.size()}"))
for k in range(40):
    if me in dying and k == 10 + 5 * dying.index(me):
        if sys.argv[2] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("out of luck")
    push_sum.mix()
    if k % 10 == 9:
        ps.average(1.0)
        ps.consensus_distance(push_sum)
push_sum.drain()
mass = ps.sum(push_sum.push_weight)
assert abs(mass - push_sum.size) < 1e-12, mass
say(f"round {push_sum.round}, members {push_sum.members}, lost {sum((x.ranks for x in push_sum.losses), ())}")
push_sum.close()
