"""What a step costs on a slow network: compute alone, all-reduce, DDP, and push-sum in every mode, side by side.

    python examples/benchmarks/slow_network.py                       # as root: 4, 8 and 16 hosts, 1 Gbit/s each
    python examples/benchmarks/slow_network.py --hosts 16 --hiccup 0.05:4 --json hiccup.json
    python examples/benchmarks/slow_network.py --straggler 3:2 --json slow.json --plot slow.png
    python examples/benchmarks/slow_network.py --hosts 4 --ranks-per-host 2
    python examples/benchmarks/slow_network.py --draw hiccup.json slow.json --plot both.png        # runs nothing

Hosts are network namespaces of this machine behind rate-limited links; without root everything runs on one host, and
says so. Compute is stood in for by sleeping, a third in forward and the rest spread over backward, as a GPU's work
leaves the host's processor alone and goes on while the host prepares the next layer. All programs of a row run in the
same job, one after the other in blocks that repeat, with the same disturbances.

    compute       the same network and optimizer on each rank alone, no exchange
    ddp           torch DistributedDataParallel over gloo, its own buckets overlapping its own backward
    all-reduce    MPI all-reduce of the gradients after backward (with Open MPI: a ring, its fastest algorithm here)
    bare          a bare Isend/Irecv of the same bytes as push-sum, moved during compute, and one lerp
    sync          push-sum, staleness 0
    sync int8     the same with wire_dtype="int8"
    tau 1, tau 2  push-sum, overlapped
    tau 1 int8    the first of these with wire_dtype="int8"; only where --only names it
    async         push-sum, staleness "unbounded"
    within host   push-sum, overlapped, with --within-host: left out where PushSumOptimizer does not take that value
    d-psgd        pairs of ranks swap models during compute (Lian et al. 2017); only where --only names it
    ad-psgd       averages with random peers in a second thread (Lian et al. 2018); only where --only names it

Times are means over ranks. "x compute" is the mean step time over the mean time that compute should take, disturbances
included: 1.00 would be free communication on an idle machine. The row `compute` says what this machine adds by itself,
the last column how many cores the rest of the machine (other programs, and the kernel's network) took meanwhile.
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

PROGRAMS = ["compute", "bare", "tau 1", "tau 2", "async", "sync", "sync int8", "within host", "ddp", "all-reduce"]
BASELINES = ["d-psgd", "ad-psgd"]
IF_NAMED = ["tau 1 int8", *BASELINES]
LAYERS = 10
WARM_UP = 17  # steps: weights settle, messages are in flight, and messages in eight bits are no longer whole
PASSED_ON = ("parameters", "compute", "steps", "blocks", "jitter", "straggler", "hiccup", "within_host")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--ranks-per-host", type=int, default=1)
    parser.add_argument("--rate", default="1gbit", help="of each host's link (default 1gbit)")
    parser.add_argument("--parameters", type=float, default=2.55e6, help="float32 values (default 2.55e6)")
    parser.add_argument("--compute", type=float, default=0.25, help="seconds per step (default 0.25)")
    parser.add_argument("--steps", type=int, default=48, help="timed steps of each program (default 48)")
    parser.add_argument("--blocks", type=int, default=2, help="blocks that the steps are spread over (default 2)")
    parser.add_argument("--straggler", help="RANK:FACTOR: that rank takes so many times the compute")
    parser.add_argument("--jitter", type=float, default=0.0, help="sigma of a log-normal factor on every step")
    parser.add_argument("--hiccup", help="PROBABILITY:FACTOR: any rank, any step, by itself")
    parser.add_argument("--within-host", help="adds the row `within host`, with this value of within_host=")
    parser.add_argument("--only", nargs="+", choices=[*PROGRAMS, *IF_NAMED], default=PROGRAMS)
    parser.add_argument("--json", type=Path, help="write every step time to this file")
    parser.add_argument("--plot", type=Path, help="draw the mean step times into this file, one panel a row")
    parser.add_argument("--draw", type=Path, nargs="+", help="run nothing: show and draw what --json has written")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.within_host is None:
        arguments.only = [name for name in arguments.only if name != "within host"]
    if arguments.worker:
        work(arguments)
    else:
        drive(arguments)


# ---------------------------------------------------------------------- the driver


def drive(arguments: argparse.Namespace) -> None:
    if arguments.draw:
        rows = [row for path in arguments.draw for row in json.loads(path.read_text())]
        for row in rows:
            show(row)
    else:
        rows = measure_all(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    if arguments.plot:
        plot(rows, arguments.plot)


def measure_all(arguments: argparse.Namespace) -> list[dict]:
    from emulated_hosts import EmulatedHosts, emulated_hosts, possible

    obstacle = possible()
    if obstacle:
        print(f"{obstacle}: running on one host, over shared memory; the figures say nothing about a network")
    rows = []
    for count in arguments.hosts:
        if obstacle:
            rows.append(measure(EmulatedHosts(count, ranks_per_host=arguments.ranks_per_host), arguments))
        else:
            with emulated_hosts(count, arguments.rate, arguments.ranks_per_host) as hosts:
                rows.append(measure(hosts, arguments))
        show(rows[-1])
    return rows


def measure(hosts, arguments: argparse.Namespace) -> dict:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        words = [str(Path(__file__).resolve()), "--worker", str(result), "--only", *arguments.only]
        for name in PASSED_ON:
            value = getattr(arguments, name)
            words += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
        # Open MPI's own choice is a tree, which moves four times the bytes of a ring at 16 ranks.
        environment = {"OMPI_MCA_coll_libnbc_iallreduce_algorithm": "1", **hosts.environment}
        subprocess.run(hosts.mpirun(words), env=environment, check=True, timeout=1800)
        figures = json.loads(result.read_text())
    return {
        "date": time.strftime("%Y-%m-%d"),
        "hosts": hosts.count,
        "ranks_per_host": hosts.ranks_per_host,
        "rate": arguments.rate if hosts.agent else "shared memory",
        "disturbance": disturbance(arguments),
        **figures,
    }


def disturbance(arguments: argparse.Namespace) -> str:
    """Say in words what disturbs the compute; nothing where nothing does."""
    said = []
    if arguments.jitter:
        said.append(f"jitter {arguments.jitter:g}")
    if arguments.hiccup:
        probability, factor = arguments.hiccup.split(":")
        said.append(f"{float(probability):.0%} of steps take {factor} x")
    if arguments.straggler:
        slow, factor = arguments.straggler.split(":")
        said.append(f"rank {slow} takes {factor} x")
    return ", ".join(said)


def place(row: dict) -> str:
    from emulated_hosts import spoken

    each = "" if row["ranks_per_host"] == 1 else f" x {row['ranks_per_host']} ranks"
    return f"{row['hosts']} hosts{each}, {spoken(row['rate'])}"


def ratios(row: dict) -> dict[str, float]:
    return {name: statistics.fmean(seconds) / row["mean_compute"] for name, seconds in row["seconds"].items()}


def show(row: dict) -> None:
    disturbed = f"; {row['disturbance']}: mean {row['mean_compute']:.3f} s" if row["disturbance"] else ""
    print(f"\n{place(row)}, {row['parameters'] / 1e6:.3g} M float32, compute {row['compute']:g} s{disturbed}")
    heads = {"median ms": 11, "mean ms": 10, "95 % ms": 10, "x compute": 11, "speed / ddp": 13}
    heads |= {"cores per rank": 16, "others' cores": 15}
    print(f"  {'program':11}" + "".join(f"{head:>{width}}" for head, width in heads.items()))
    against = ratios(row)
    for name, seconds in row["seconds"].items():
        mean = statistics.fmean(seconds)
        ddp = f"{against['ddp'] / against[name]:13.2f}" if "ddp" in against else 13 * " "
        print(
            f"  {name:11}{1e3 * statistics.median(seconds):11.0f}{1e3 * mean:10.0f}"
            f"{1e3 * float(np.percentile(seconds, 95)):10.0f}{against[name]:11.2f}{ddp}{row['cores'][name]:16.3f}"
            f"{row['other_cores'][name]:15.2f}",
            flush=True,
        )


COLOURS = {
    "compute": "#bdbdbd",
    "bare": "#7f7f7f",
    "tau 1": "#08519c",
    "tau 2": "#3182bd",
    "async": "#2ca02c",
    "sync": "#9ecae1",
    "sync int8": "#c6dbef",
    "tau 1 int8": "#6baed6",
    "within host": "#756bb1",
    "ddp": "#d62728",
    "all-reduce": "#8c564b",
    "d-psgd": "#ff7f0e",
    "ad-psgd": "#bcbd22",
}
LABELS = {
    "compute": "compute alone",
    "bare": "bare Isend/Irecv, overlapped",
    "tau 1": "push-sum, staleness 1",
    "tau 2": "push-sum, staleness 2",
    "async": "push-sum, unbounded",
    "sync": "push-sum, synchronous",
    "sync int8": "push-sum, synchronous, 8 bits",
    "tau 1 int8": "push-sum, staleness 1, 8 bits",
    "within host": "push-sum, within_host",
    "ddp": "DDP, gloo",
    "all-reduce": "MPI all-reduce",
    "d-psgd": "D-PSGD",
    "ad-psgd": "AD-PSGD",
}


def plot(rows: list[dict], path: Path) -> None:
    """Draw one panel of bars for each row, all on one scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in [*PROGRAMS, *IF_NAMED] if any(name in row["seconds"] for row in rows)]
    places = range(len(names))[::-1]
    height = 0.33 * len(names) + 1.5
    figure, panels = plt.subplots(
        1, len(rows), figsize=(2.4 + 2.9 * len(rows), height), layout="constrained", sharex=True, sharey=True
    )
    for axes, row in zip(np.atleast_1d(panels), rows, strict=True):
        values = ratios(row)
        bars = axes.barh(places, [values.get(name, 0.0) for name in names], 0.72, color=[COLOURS[n] for n in names])
        texts = [f"{values[name]:.2f}" if name in values else "not run" for name in names]
        axes.bar_label(bars, texts, padding=3, fontsize=8.5)
        axes.axvline(1.0, color="black", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks(places, [LABELS[name] for name in names], fontsize=9)
        axes.set_title(place(row) + "\n" + (row["disturbance"] or "undisturbed"), fontsize=9.5)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.margins(x=0.15)
    first = rows[0]
    figure.supxlabel(
        "mean step time / mean compute time (dashed: no time lost)\n"
        f"{first['compute']:g} s of compute a step, {first['parameters'] / 1e6:.3g} M float32 parameters",
        fontsize=9,
    )
    figure.savefig(path, dpi=160)


# ---------------------------------------------------------------------- one rank


def work(arguments: argparse.Namespace) -> None:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    seconds: dict[str, list[float]] = {}
    cores: dict[str, list[float]] = {}
    others: dict[str, list[float]] = {}
    compute: list[float] = []
    for block in range(arguments.blocks):
        naps = durations(comm.rank, block, arguments)
        compute += naps[WARM_UP:]
        for name in arguments.only:
            program = make(name, comm, arguments)
            if program is None:
                continue
            mine, busy, all_busy = run(*program, naps, comm)
            # What counts is when the job is done: the mean over ranks of their step times, step by step.
            seconds.setdefault(name, []).extend((comm.allreduce(mine) / comm.size).tolist())
            cores.setdefault(name, []).append(comm.allreduce(busy / float(mine.sum())) / comm.size)
            others.setdefault(name, []).append((all_busy - comm.allreduce(busy)) / float(mine.sum()))
    mean_compute = comm.allreduce(statistics.fmean(compute)) / comm.size
    if comm.rank == 0:
        figures = {
            "parameters": arguments.parameters,
            "compute": arguments.compute,
            "mean_compute": mean_compute,
            "seconds": seconds,
            "cores": {name: statistics.fmean(shares) for name, shares in cores.items()},
            "other_cores": {name: max(0.0, statistics.fmean(shares)) for name, shares in others.items()},
        }
        arguments.worker.write_text(json.dumps(figures))


def run(step: Callable[[float], None], finish: Callable[[], None], naps: list[float], comm):
    """Take all steps; return the seconds of each after the warm-up, and the processor seconds that this process, and
    all processes of the machine, spent on these."""
    for nap in naps[:WARM_UP]:
        step(nap)
    wait(comm.Ibarrier())
    before, all_before = os.times(), machine_seconds()
    marks = [time.perf_counter()]
    for nap in naps[WARM_UP:]:
        step(nap)
        marks.append(time.perf_counter())
    after, all_after = os.times(), machine_seconds()
    finish()
    wait(comm.Ibarrier())  # a blocking barrier would spin, and take the processor from ranks that still run
    return np.diff(marks), after.user + after.system - before.user - before.system, all_after - all_before


def machine_seconds() -> float:
    """Return the processor seconds that this machine has spent on anything so far; 0 where it does not say."""
    try:
        counts = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0.0
    return (sum(counts) - counts[3] - counts[4]) / os.sysconf("SC_CLK_TCK")  # without idle and waiting for disks


def durations(rank: int, block: int, arguments: argparse.Namespace) -> list[float]:
    """Return the seconds of compute of each step of this rank, warm-up included: the same for every program."""
    random = np.random.default_rng([rank, block])
    count = WARM_UP + arguments.steps // arguments.blocks
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


def make(name: str, comm, arguments: argparse.Namespace) -> tuple[Callable[[float], None], Callable[[], None]] | None:
    """Return what takes one step with so many seconds of compute, and what ends the program; None: it cannot run."""
    count = int(arguments.parameters)
    if name == "all-reduce":
        return all_reduce(comm, count), lambda: None
    if name == "bare":
        return bare(comm, count), lambda: None
    return torch_step(name, comm, count, arguments.within_host)


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


class Clock:
    """An accelerator's time: layers follow each other without gaps, while the host prepares the next ones."""

    def begin(self, layer: float) -> None:
        self.layer, self.due = layer, time.perf_counter()

    def work(self, share: float) -> None:
        """Sleep until this share of a layer's seconds is done, counted from when the work before it was done."""
        self.due += share * self.layer
        time.sleep(max(0.0, self.due - time.perf_counter()))


def torch_step(
    name: str, comm, count: int, within_host: str | None
) -> tuple[Callable[[float], None], Callable[[], None]] | None:
    import torch

    import pushsum_opt as ps

    torch.set_num_threads(1)

    class Compute(torch.autograd.Function):
        """A layer that sleeps instead of computing: a third of its time in forward, the rest in backward."""

        @staticmethod
        def forward(ctx, value, weight, clock):
            ctx.clock, ctx.shape = clock, weight.shape
            clock.work(1 / 3)
            return value + 0.0

        @staticmethod
        def backward(ctx, gradient):
            ctx.clock.work(2 / 3)
            return gradient, torch.full(ctx.shape, 1e-6), None

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList([torch.ones(count // LAYERS) for _ in range(LAYERS)])
            self.clock = Clock()

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
    elif name in BASELINES:
        from baselines.ad_psgd import ADPSGD
        from baselines.d_psgd import DPSGD

        network, optimizer = model, (DPSGD if name == "d-psgd" else ADPSGD)(sgd, model, comm)
        finish = optimizer.close
    else:
        staleness = {"tau 1": 1, "tau 2": 2, "tau 1 int8": 1, "async": "unbounded", "within host": 1}.get(name, 0)
        wire = "int8" if name.endswith("int8") else None
        network = model
        within_host = within_host if name == "within host" else None
        try:
            optimizer = ps.PushSumOptimizer(sgd, model, staleness=staleness, wire_dtype=wire, within_host=within_host)
        except ps.errors.ConfigurationError as error:
            if name != "within host":
                raise
            if comm.rank == 0:
                print(f"row left out: {error}", file=sys.stderr)
            return None
        finish = optimizer.close
    value = torch.ones(1, requires_grad=True)

    def step(seconds: float) -> None:
        clock.begin(seconds / LAYERS)
        loss = network(value)
        sgd.zero_grad()
        loss.backward()
        optimizer.step()

    return step, finish


if __name__ == "__main__":
    sys.exit(main())
