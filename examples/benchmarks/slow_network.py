"""What a step costs on a slow network: compute alone, all-reduce, DDP, and push-sum in every mode, side by side.

    python examples/benchmarks/slow_network.py                       # as root: 4, 8 and 16 hosts, 1 Gbit/s each
    python examples/benchmarks/slow_network.py --hosts 16 --hiccup 0.05:4
    python examples/benchmarks/slow_network.py --straggler 3:2 --json slow.json --plot slow.png

Hosts are network namespaces of this machine behind rate-limited links; without root everything runs on one host, and
says so. Compute is stood in for by sleeping, a third in forward and the rest spread over backward, as a GPU's work
leaves the host's processor alone. All programs of a row run in the same job, one after the other in blocks that repeat.

    compute       the same network and optimizer on each rank alone, no exchange
    ddp           torch DistributedDataParallel over gloo, its own buckets overlapping its own backward
    all-reduce    MPI all-reduce of the gradients after backward
    bare          a bare Isend/Irecv of the same bytes as push-sum, moved during compute, and one lerp
    sync          push-sum, staleness 0
    tau 1, tau 2  push-sum, overlapped
    async         push-sum, staleness "unbounded"
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PROGRAMS = ["compute", "ddp", "all-reduce", "bare", "sync", "tau 1", "tau 2", "async"]
LAYERS = 10
WARM_UP = 4  # steps: weights settle, messages are in flight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--rate", default="1gbit", help="of each host's link (default 1gbit)")
    parser.add_argument("--parameters", type=float, default=2.55e6, help="float32 values (default 2.55e6)")
    parser.add_argument("--compute", type=float, default=0.25, help="seconds per step (default 0.25)")
    parser.add_argument("--steps", type=int, default=24, help="timed steps of each program (default 24)")
    parser.add_argument("--blocks", type=int, default=2, help="blocks that the steps are spread over (default 2)")
    parser.add_argument("--straggler", help="RANK:FACTOR: that rank takes so many times the compute")
    parser.add_argument("--jitter", type=float, default=0.0, help="sigma of a log-normal factor on every step")
    parser.add_argument("--hiccup", help="PROBABILITY:FACTOR: any rank, any step, by itself")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
    else:
        drive(arguments)


# ---------------------------------------------------------------------- the driver


def drive(arguments: argparse.Namespace) -> None:
    from emulated_hosts import EmulatedHosts, emulated_hosts, possible

    obstacle = possible()
    if obstacle:
        print(f"{obstacle}: running on one host, over shared memory; the figures say nothing about a network")
    rows = []
    for count in arguments.hosts:
        if obstacle:
            rows.append(measure(EmulatedHosts(count, None), arguments))
        else:
            with emulated_hosts(count, arguments.rate) as hosts:
                rows.append(measure(hosts, arguments))
        show(rows[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    if arguments.plot:
        plot(rows, arguments.plot)


def measure(hosts: object, arguments: argparse.Namespace) -> dict[str, object]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        words = [str(Path(__file__).resolve()), "--worker", str(result)]
        for name in ("parameters", "compute", "steps", "blocks", "jitter", "straggler", "hiccup"):
            value = getattr(arguments, name)
            words += [f"--{name}", str(value)] if value is not None else []
        words += ["--only", *(f"'{name}'" if hosts.agent else name for name in arguments.only)]
        subprocess.run(hosts.mpirun(words), env=hosts.environment, check=True, timeout=1800)
        figures = json.loads(result.read_text())
    return {"hosts": hosts.count, "rate": arguments.rate if hosts.agent else "shared memory", **figures}


def show(row: dict) -> None:
    print(
        f"\n{row['hosts']} hosts, {row['rate']}, {row['parameters'] / 1e6:.2f} M float32, compute {row['compute']:g} s "
        f"(mean with disturbances {row['mean_compute']:.3f} s)"
    )
    heads = {"median": 9, "mean": 9, "95 %": 9, "mean / compute": 16, "throughput / ddp": 18, "cores per rank": 16}
    print(f"  {'program':11}" + "".join(f"{head:>{width}}" for head, width in heads.items()))
    for name, seconds in row["seconds"].items():
        mean = statistics.fmean(seconds)
        ddp = row["seconds"].get("ddp")
        against_ddp = f"{statistics.fmean(ddp) / mean:18.2f}" if ddp else ""
        print(
            f"  {name:11}{1e3 * statistics.median(seconds):9.0f}{1e3 * mean:9.0f}"
            f"{1e3 * float(np.percentile(seconds, 95)):9.0f}{mean / row['mean_compute']:16.2f}{against_ddp or 18 * ' '}"
            f"{row['cores'][name]:16.3f}",
            flush=True,
        )


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(rows[0]["seconds"])
    shades = ["0.75", "#8c564b", "#d62728", "#7f7f7f", "#9ecae1", "#3182bd", "#08519c", "#2ca02c"]
    colours = dict(zip(PROGRAMS, shades, strict=True))
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        means = [statistics.fmean(row["seconds"][name]) / row["mean_compute"] for row in rows]
        places = [group + (index - (len(names) - 1) / 2) * width for group in range(len(rows))]
        bars = axes.bar(places, means, width * 0.92, label=name, color=colours[name])
        axes.bar_label(bars, fmt="%.2f", fontsize=6.5, padding=1)
    axes.set_xticks(range(len(rows)), [f"{row['hosts']} hosts" for row in rows])
    axes.set_ylabel("mean step time / mean compute time")
    axes.set_title(
        f"One step at {rows[0]['rate']} per host, {rows[0]['parameters'] / 1e6:.2f} M float32, "
        f"{rows[0]['compute']:g} s of compute",
        fontsize=10,
    )
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=len(names), loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False, fontsize=8)
    figure.savefig(path, dpi=160)


# ---------------------------------------------------------------------- one rank


def work(arguments: argparse.Namespace) -> None:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    seconds: dict[str, list[float]] = {name: [] for name in arguments.only}
    cores: dict[str, list[float]] = {name: [] for name in arguments.only}
    compute: list[float] = []
    for block in range(arguments.blocks):
        for name in arguments.only:
            step, finish = make(name, comm, arguments)
            naps = durations(comm.rank, block, arguments)
            for _ in range(WARM_UP):
                step(naps[0])
            comm.Barrier()
            before = os.times()
            marks = [time.perf_counter()]
            for nap in naps[1:]:
                step(nap)
                marks.append(time.perf_counter())
            after = os.times()
            finish()
            comm.Barrier()
            mine = np.diff(marks)
            # What counts is when the job is done: the mean over ranks of their step times, step by step.
            seconds[name] += (comm.allreduce(mine) / comm.size).tolist()
            busy = after.user + after.system - before.user - before.system
            cores[name].append(comm.allreduce(busy) / comm.size / float(mine.sum()))
            compute += naps[1:]
    mean_compute = comm.allreduce(statistics.fmean(compute)) / comm.size
    if comm.rank == 0:
        figures = {
            "parameters": arguments.parameters,
            "compute": arguments.compute,
            "mean_compute": mean_compute,
            "seconds": seconds,
            "cores": {name: statistics.fmean(shares) for name, shares in cores.items()},
        }
        arguments.worker.write_text(json.dumps(figures))


def durations(rank: int, block: int, arguments: argparse.Namespace) -> list[float]:
    """Return the seconds of compute of each step of this rank: the same for every program."""
    random = np.random.default_rng([rank, block])
    count = arguments.steps // arguments.blocks + 1
    naps = np.full(count, arguments.compute)
    if arguments.jitter:
        naps *= random.lognormal(-(arguments.jitter**2) / 2, arguments.jitter, count)
    if arguments.hiccup:
        probability, factor = map(float, arguments.hiccup.split(":"))
        naps *= np.where(random.random(count) < probability, factor, 1.0)
    if arguments.straggler:
        slow, factor = arguments.straggler.split(":")
        naps *= float(factor) if rank == int(slow) else 1.0
    return [float(nap) for nap in naps]


def make(name: str, comm, arguments: argparse.Namespace) -> tuple[Callable[[float], None], Callable[[], None]]:
    """Return what takes one step with so many seconds of compute, and what ends the program."""
    count = int(arguments.parameters)
    if name == "all-reduce":
        return all_reduce(comm, count), lambda: None
    if name == "bare":
        return bare(comm, count), lambda: None
    return torch_step(name, comm, count)


def all_reduce(comm, count: int) -> Callable[[float], None]:
    from mpi4py import MPI

    gradients, in_place = np.ones(count, np.float32), MPI.IN_PLACE

    def step(seconds: float) -> None:
        time.sleep(seconds)
        wait(comm.Iallreduce(in_place, gradients))

    return step


def bare(comm, count: int) -> Callable[[float], None]:
    """A one-peer exchange by hand: what was sent a step ago is merged after this step's compute."""
    z, sent, received = (np.ones(count, np.float32) for _ in range(3))
    rounds = max(1, (comm.size - 1).bit_length())
    turn = 0

    def step(seconds: float) -> None:
        nonlocal turn
        offset = 1 << (turn % rounds)
        turn += 1
        sent[:] = z
        requests = []
        if comm.size > 1:
            requests = [comm.Irecv(received, (comm.rank - offset) % comm.size, 5)]
            requests.append(comm.Isend(sent, (comm.rank + offset) % comm.size, 5))
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            for request in requests:
                request.Test()
            time.sleep(min(left, 1e-3))
        for request in requests:
            wait(request)
        np.add(z, 0.5 * (received - z), out=z)

    return step


def wait(request) -> None:
    while not request.Test():
        time.sleep(2e-4)


def torch_step(name: str, comm, count: int) -> tuple[Callable[[float], None], Callable[[], None]]:
    import torch

    import pushsum_opt as ps

    torch.set_num_threads(1)

    class Compute(torch.autograd.Function):
        """A layer that sleeps instead of computing: a third of its time in forward, the rest in backward."""

        @staticmethod
        def forward(ctx, value, weight, clock):
            ctx.clock, ctx.shape = clock, weight.shape
            time.sleep(clock["layer"] / 3)
            return value + 0.0

        @staticmethod
        def backward(ctx, gradient):
            time.sleep(ctx.clock["layer"] * 2 / 3)
            return gradient, torch.full(ctx.shape, 1e-6), None

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList([torch.ones(count // LAYERS) for _ in range(LAYERS)])
            self.clock = {"layer": 0.0}

        def forward(self, value):
            for weight in self.weights:
                value = Compute.apply(value, weight, self.clock)
            return value.sum()

    model = Network()
    clock = model.clock
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
    if name == "compute":
        network, optimizer, finish = model, sgd, lambda: None
    elif name == "ddp":
        if not torch.distributed.is_initialized():
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
            torch.distributed.init_process_group("gloo", rank=comm.rank, world_size=comm.size)
        network = torch.nn.parallel.DistributedDataParallel(model)
        optimizer, finish = sgd, lambda: None
    else:
        staleness = {"sync": 0, "tau 1": 1, "tau 2": 2, "async": "unbounded"}[name]
        network = model
        optimizer = ps.PushSumOptimizer(sgd, model, staleness=staleness)
        finish = optimizer.close
    value = torch.ones(1, requires_grad=True)

    def step(seconds: float) -> None:
        clock["layer"] = seconds / LAYERS
        loss = network(value)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, finish


if __name__ == "__main__":
    sys.exit(main())
