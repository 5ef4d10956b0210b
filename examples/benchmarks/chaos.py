"""Lets ranks die, stop for a while, and raise, at random moments, and checks that the others go on with all the mass.

    python examples/benchmarks/chaos.py --faults 1000
    python examples/benchmarks/chaos.py --faults 20 --ranks 4 --seed 7

Each job has ``--ranks`` ranks, in one mode after the other. All ranks but one get a fault that ends them: SIGKILL, or a
signal whose handler raises an error wherever the rank is. Between these, ranks are stopped (SIGSTOP) for up to 0.7 s.
The ranks make rounds, exact averages, ``averaged()`` and other calls that all make together, until they are told that
all faults were there. Then those that are left must agree on who is left, and their masses must sum to their number.

Open MPI 5.0 itself crashes on all ranks when one dies in the milliseconds in which a communicator is made, as at the
start and in each recovery. Such jobs are counted apart, with their faults, and tell nothing of this library.

It ends with code 1 at the first job that hangs (--limit seconds), or whose survivors do not agree; its folder, with
what each rank printed, is then kept.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

MODES = ("0", "1", "2", "unbounded")


# ---------------------------------------------------------------------- one rank


def rank(folder: Path, staleness: str, seed: int) -> None:
    """Exchange until all faults were there."""
    import numpy as np

    import pushsum_opt as ps
    from pushsum_opt.collectives import averaged

    def fail(number: int, frame: FrameType | None) -> None:
        raise RuntimeError("a fault on purpose")

    signal.signal(signal.SIGUSR1, fail)
    me = ps.rank()
    (folder / f"{os.getpid()}.pid").write_text(str(me))
    in_step = staleness != "unbounded"
    mode = int(staleness) if in_step else staleness
    z = np.full(50_000, float(me), np.float32)
    push_sum = ps.PushSum([z], staleness=mode, on_loss="continue", timeout=60)  # type: ignore[arg-type]
    (folder / f"{me}.made").touch()
    draw = random.Random(seed)  # the same calls on every rank
    over = False
    while not over:
        for _ in range(20):
            push_sum.mix()
        call = draw.choice(["average", "drain", "averaged", "distance", *(["exact"] if in_step else [])])
        if call == "average":
            ps.average(1.0)
        elif call == "drain":
            push_sum.drain()
        elif call == "averaged":
            with averaged(push_sum):
                pass
        elif call == "distance":
            ps.consensus_distance(push_sum)
        else:
            push_sum.average()
        over = ps.sum(float((folder / "over").exists())) > 0
    push_sum.drain()
    mass = ps.sum(push_sum.push_weight)
    assert abs(mass - push_sum.size) < 1e-9, mass
    lost = sorted(rank for loss in push_sum.losses for rank in loss.ranks)
    seconds = max((loss.seconds for loss in push_sum.losses), default=0.0)
    print(f"left {push_sum.members} lost {lost} of {push_sum.round} rounds, slowest {seconds:.3f} s", flush=True)
    push_sum.close()


# ---------------------------------------------------------------------- the faults


MPI_CRASHES = "ompi_comm_revoke_local"


@dataclass
class Counts:
    kill: int = 0
    error: int = 0
    stop: int = 0

    @property
    def all(self) -> int:
        return self.kill + self.error + self.stop


def job(ranks: int, staleness: str, faults: int, draw: random.Random, limit: float, counts: Counts) -> str | None:
    """Run one job; return what is wrong with its end, or None."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    program = [sys.executable, __file__, "--rank", str(folder), staleness, str(draw.randrange(1 << 30))]
    to_file = f'exec "$0" "$@" >{folder}/$OMPI_COMM_WORLD_RANK.out 2>&1'
    child = subprocess.Popen(
        [str(mpirun), "--oversubscribe", "--bind-to", "none", "--with-ft", "ulfm", "-np", str(ranks), "sh", "-c",
         to_file, *program],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=(folder / "mpirun.out").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    deadline, problem = time.monotonic() + limit, None
    try:
        ended = harm(folder, ranks, faults, draw, deadline, counts)
        child.wait(max(1.0, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, TimeoutError):
        problem = f"{folder}: staleness {staleness}: it hung for {limit:g} s"
    except ProcessLookupError:
        problem = f"{folder}: staleness {staleness}: a rank ended that nobody had harmed"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for file in folder.glob("*.pid"):  # where MPI crashes on one rank, mpirun may end before the others
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.stem), signal.SIGKILL)
    if any(MPI_CRASHES in file.read_text(errors="replace") for file in folder.glob("*.out")):
        shutil.rmtree(folder)
        return MPI_CRASHES
    if problem is not None:
        return problem
    expected = f"lost {sorted(ended)}"
    left = [number for number in range(ranks) if number not in ended]
    said = [(folder / f"{number}.out").read_text() for number in left]
    if child.returncode == 0 and all(f"left {tuple(left)} {expected} " in one for one in said):
        shutil.rmtree(folder)
        return None
    return f"{folder}: staleness {staleness}: exit code {child.returncode}, expected of ranks {left}: {expected}"


def harm(folder: Path, ranks: int, faults: int, draw: random.Random, deadline: float, counts: Counts) -> list[int]:
    """Do the faults; return the ranks that they have ended."""
    # The first fault of some jobs comes while the push-sum is made.
    pids = started(folder, ranks, deadline)
    alive, ended = dict(pids), []
    kinds = draw.sample(["end"] * (ranks - 1) + ["stop"] * (faults - ranks + 1), faults)
    time.sleep(draw.choice([0.0, 0.05, 0.5]))
    for kind in kinds:
        time.sleep(draw.choice([0.0, 0.002, 0.05, 0.3]) * draw.random())
        number = draw.choice(sorted(alive))
        if kind == "stop":
            os.kill(alive[number], signal.SIGSTOP)
            time.sleep(0.7 * draw.random())
            os.kill(alive[number], signal.SIGCONT)
            counts.stop += 1
            continue
        # Before a rank has asked for on_loss="continue", an error on it ends the job.
        raises = draw.random() < 0.3 and (folder / f"{number}.made").exists()
        os.kill(alive.pop(number), signal.SIGUSR1 if raises else signal.SIGKILL)
        ended.append(number)
        counts.error += raises
        counts.kill += not raises
    time.sleep(0.3)
    (folder / "over").touch()
    return ended


def started(folder: Path, ranks: int, deadline: float) -> dict[int, int]:
    """Return the process of each rank, once all have started."""
    while True:
        found = list(folder.glob("*.pid"))
        texts = [file.read_text() for file in found]
        if len(found) == ranks and all(texts):
            return {int(text): int(file.stem) for file, text in zip(found, texts, strict=True)}
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100, help="in all (default 100)")
    parser.add_argument("--ranks", type=int, default=4, help="of each job (default 4)")
    parser.add_argument("--per-job", type=int, default=10, help="faults in one job (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds for one job (default 90)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the job that runs, too
    draw, counts, jobs, crashes = random.Random(arguments.seed), Counts(), 0, 0
    while counts.all < arguments.faults:
        mode = MODES[(jobs + arguments.seed) % len(MODES)]
        before = replace(counts)
        problem = job(arguments.ranks, mode, arguments.per_job, draw, arguments.limit, counts)
        if problem == MPI_CRASHES:
            counts, crashes = before, crashes + 1
            continue
        jobs += 1
        if problem is not None:
            sys.exit(f"after {counts.all} faults in {jobs} jobs: {problem}")
        if jobs % 10 == 0 or counts.all >= arguments.faults:
            kinds = f"{counts.kill} kills, {counts.error} errors, {counts.stop} stops"
            print(f"{counts.all} faults survived in {jobs} jobs: {kinds}; Open MPI crashed in {crashes}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
