"""How long survivors need to go on when a rank dies, and what being ready for that costs.

    python examples/benchmarks/recovery.py --recoveries 50 --ranks 8
    python examples/benchmarks/recovery.py --recoveries 0 --ranks 2 --blocks 21

Recoveries: jobs whose ranks are killed one by one, from --ranks down to one. For each, the seconds that the slowest
survivor needed, from the moment that it noticed to the moment that it could go on, as in ``Loss.seconds``.

A round: the median over blocks of 20 rounds, on the slowest rank, with on_loss="stop" and "continue" in turn in
one job in Open MPI's fault-tolerant mode; and with "stop" in a job without that mode, before and after it. The time of
a processor stands beside it, and says more on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 20


def recoveries(folder: Path, staleness: int) -> None:
    """One rank of a job in which ranks are killed one by one; each writes how long its recoveries took."""
    import numpy as np

    import pushsum_opt as ps

    me = ps.rank()
    push_sum = ps.PushSum([np.full(10_000, float(me))], staleness=staleness, on_loss="continue", timeout=60)
    while push_sum.size > 1:
        for _ in range(20):
            push_sum.mix()
        push_sum.drain()
        if me == max(push_sum.members):
            (folder / str(me)).write_text(json.dumps([loss.seconds for loss in push_sum.losses]))
            os.kill(os.getpid(), signal.SIGKILL)
        known = len(push_sum.losses)
        while len(push_sum.losses) == known:
            push_sum.mix()
        while push_sum.round < push_sum.losses[-1].round:
            push_sum.mix()
    (folder / str(me)).write_text(json.dumps([loss.seconds for loss in push_sum.losses]))
    push_sum.close()


def rounds(folder: Path, blocks: int, kinds: str, numbers: int) -> None:
    """One rank of a job that times rounds; rank 0 writes the medians by kind."""
    import numpy as np

    import pushsum_opt as ps

    made = {k: ps.PushSum([np.zeros(numbers, np.float32)], on_loss=k) for k in kinds.split(",")}  # type: ignore[arg-type]
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in made}
    for block in range(blocks + 1):
        for kind in sorted(made, reverse=bool(block % 2)):
            ps.barrier()
            begin, used = time.perf_counter(), time.process_time()
            for _ in range(ROUNDS):
                made[kind].mix()
            mine = time.perf_counter() - begin, time.process_time() - used
            slowest = [1e3 * max(each) / ROUNDS for each in zip(*ps.allgather(mine), strict=True)]
            if block:  # the first makes the buffers
                taken[kind].append((slowest[0], slowest[1]))
    if ps.rank() == 0:
        medians = {
            kind: [statistics.median(one[part] for one in each) for part in (0, 1)] for kind, each in taken.items()
        }
        (folder / "rounds").write_text(json.dumps(medians))


def start(ranks: int, survives: bool, *words: str) -> None:
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    mode = ["--with-ft", "ulfm"] if survives else []
    command = [str(mpirun), "--oversubscribe", "--bind-to", "none", *mode, "-np", str(ranks), sys.executable, __file__]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *words], env=environ, capture_output=True, text=True, timeout=200, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recoveries", type=int, default=50, help="at least so many (default 50)")
    parser.add_argument("--ranks", type=int, default=8, help="default 8")
    parser.add_argument("--staleness", default="0", help="0 (default), 1, 2, ...: in the recoveries")
    parser.add_argument("--numbers", type=int, default=1_000_000, help="exchanged in a round: float32 (default 1e6)")
    parser.add_argument("--blocks", type=int, default=0, help="blocks of rounds of each kind (default 0: none)")
    arguments = parser.parse_args()
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(prefix="recovery-") as name:
        folder = Path(name)
        while len(seconds) < arguments.recoveries:
            start(arguments.ranks, True, "--one-recovers", name, arguments.staleness)
            seen = [json.loads((folder / str(rank)).read_text()) for rank in range(arguments.ranks)]
            seconds += [max(of[k] for of in seen if k < len(of)) for k in range(arguments.ranks - 1)]
        if seconds:
            seconds.sort()
            print(
                f"{len(seconds)} recoveries of {arguments.ranks} ranks down to 1: median "
                f"{statistics.median(seconds):.4f} s, nine of ten within {seconds[int(0.9 * len(seconds))]:.4f} s, "
                f"slowest {seconds[-1]:.4f} s",
                flush=True,
            )
        if arguments.blocks:
            kinds = [("plain", False, "stop"), ("fault-tolerant", True, "stop,continue"), ("plain", False, "stop")]
            for mode, survives, words in kinds:
                start(
                    arguments.ranks, survives, "--one-round", name, str(arguments.blocks), words, str(arguments.numbers)
                )
                medians = json.loads((folder / "rounds").read_text())
                for kind, (elapsed, used) in medians.items():
                    print(f"{mode}, {kind}: {elapsed:.3f} ms, of a processor {used:.3f} ms", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one-recovers"]:
        recoveries(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["--one-round"]:
        rounds(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    else:
        main()
