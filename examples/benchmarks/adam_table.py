"""What AdamW reaches under all-reduce, under gossip, and under gossip with adaptive="corrected", on real ranks.

    python examples/benchmarks/adam_table.py --rows adam.jsonl
    python examples/benchmarks/adam_table.py --ranks 4 8 --steps 1500 --seeds 3 --rates 4e-3 8e-3 --rows adam.jsonl
    python examples/benchmarks/adam_table.py --only corrected --ranks 8 --graph "KPeerExponential(2)" --average-every 16
    python examples/benchmarks/adam_table.py --show --rows adam.jsonl                            # runs nothing

Every row is the loss of the average model on data that was not trained on. All contenders of a seed and a number of
ranks start from the same model, see the same batches and follow the same schedule.
Rows are written as they come; a run that was cut short goes on where it stopped when the command is given again.

"one process" computes what DDP computes, the gradient of the mean over all ranks' batches, without other processes: a
reference where cores are short. Its rows differ from DDP's by rounding.

Workload "text": the model and the text of adam_simulation.py in torch modules: characters, 2 layers of width 48, the
source of the Python standard library; a sample is 32 characters. "images": a vision transformer of the same blocks on
Fashion-MNIST. Gradients are clipped by their norm, each rank's own under gossip; weight decay 0.1 on matrices.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import adam_simulation as simulation
import torch
from adam_workloads import WORKLOADS, Workload
from torch import nn

LABELS = {
    "ddp": "DDP, gloo",
    "one process": "all batches, one process",
    "sgp": "gossip, plain",
    "corrected": "gossip, corrected",
}
GOSSIP = ("sgp", "corrected")
Series = tuple[str, int, str, int]  # a line of the table: contender, staleness, graph, rounds between exact averages
REFERENCES = ("ddp", "one process")  # with all-reduce: the first that has run is what others are compared with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4], help="(default 4)")
    parser.add_argument("--steps", type=int, default=1500, help="(default 1500)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3: 0, 1 and 2)")
    parser.add_argument("--from-seed", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--rates", type=float, nargs="+", default=[4e-3, 8e-3], help="(default 4e-3 8e-3)")
    parser.add_argument("--workload", choices=WORKLOADS, default="text", help="(default text)")
    parser.add_argument("--samples", type=int, default=4, help="per rank and step (default 4)")
    parser.add_argument(
        "--clip", type=float, default=simulation.CLIP, help="largest norm; inf: no clipping (default 1)"
    )
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1], help="of gossip (default 0 1)")
    parser.add_argument("--graph", help="of gossip, as `pushsum graphs` takes it (default: the library's own)")
    parser.add_argument("--average-every", type=int, help="of so many rounds of gossip one is an exact average")
    parser.add_argument("--only", nargs="+", choices=LABELS, default=["ddp", *GOSSIP])
    parser.add_argument("--rows", type=Path, default=Path("adam_table.jsonl"), help="(default adam_table.jsonl)")
    parser.add_argument("--show", action="store_true", help="run nothing: show the rows that are there")
    parser.add_argument("--rank-program", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_program:
        work(arguments)
        return
    for ranks in () if arguments.show else arguments.ranks:
        wanted = missing(arguments, ranks)
        if any(cell["contender"] == "one process" for cell in wanted):
            alone(wanted, arguments.rows)
        if missing(arguments, ranks):
            launch(ranks)
    show(read(arguments.rows))


# ---------------------------------------------------------------------- which runs there are


def cells(arguments: argparse.Namespace, ranks: int) -> Iterator[dict]:
    """Give every run; seeds are the outer loop, so that a series that is cut short has whole seeds."""
    seeds = range(arguments.from_seed, arguments.from_seed + arguments.seeds)
    for seed, rate, contender in itertools.product(seeds, arguments.rates, arguments.only):
        for staleness in arguments.staleness if contender in GOSSIP else [0]:
            yield {
                "ranks": ranks,
                "steps": arguments.steps,
                "workload": arguments.workload,
                "samples": arguments.samples,
                "clip": arguments.clip,
                "contender": contender,
                "staleness": staleness,
                "rate": rate,
                "seed": seed,
                **(mixing(arguments) if contender in GOSSIP else {}),
            }


def mixing(arguments: argparse.Namespace) -> dict[str, str | int]:
    """Return what is not the default, so that rows of the default do not name it."""
    named = {"graph": arguments.graph, "average_every": arguments.average_every}
    return {key: value for key, value in named.items() if value is not None}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def missing(arguments: argparse.Namespace, ranks: int) -> list[dict]:
    results = ("loss", "seconds")
    there = [{key: value for key, value in row.items() if key not in results} for row in read(arguments.rows)]
    return [cell for cell in cells(arguments, ranks) if cell not in there]


def launch(ranks: int) -> None:
    """Start all runs with this number of ranks in one job: starting it takes as long as a short run."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", **os.environ, "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "pushsum_opt", "run", "-np", str(ranks), __file__, *sys.argv[1:], "--rank-program"]
    if subprocess.run(command, env=environment).returncode:
        raise SystemExit(f"the job of {ranks} ranks failed; give the command again to go on")


def alone(wanted: list[dict], rows: Path) -> None:
    torch.set_num_threads(1)
    workload = WORKLOADS[wanted[0]["workload"]]()
    for cell in wanted:
        if cell["contender"] == "one process":
            begin = time.perf_counter()
            write(rows, cell, train(cell, workload, None), begin)


def write(rows: Path, cell: dict, loss: float, begin: float) -> None:
    row = {**cell, "loss": loss, "seconds": round(time.perf_counter() - begin, 1)}
    with rows.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(" ".join(f"{key} {value:.5g}" if key == "loss" else f"{key} {value}" for key, value in row.items()))
    sys.stdout.flush()


# ---------------------------------------------------------------------- a rank


def work(arguments: argparse.Namespace) -> None:
    import pushsum_opt as ps

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=ps.rank(), world_size=ps.size())
    workload = WORKLOADS[arguments.workload]()
    for cell in ps.broadcast_object(missing(arguments, ps.size())):  # rank 0 writes while others read
        begin = time.perf_counter()
        loss = train(cell, workload, ps.rank())
        if ps.rank() == 0:
            write(arguments.rows, cell, loss, begin)
    torch.distributed.destroy_process_group()


def train(cell: dict, workload: Workload, rank: int | None) -> float:
    """Collective. Return the loss of the average model after all steps.

    Args:
        rank: whose batches are taken; None: those of all ranks, in one process.
    """
    import pushsum_opt as ps
    from pushsum_opt.cli.graph_names import named_graph

    torch.manual_seed(cell["seed"])
    model = workload.model()
    optimizer = torch.optim.AdamW(groups(model), lr=cell["rate"], betas=(simulation.BETA1, simulation.BETA2))
    forward = model
    if cell["contender"] == "ddp":
        forward = nn.parallel.DistributedDataParallel(model)
    elif cell["contender"] in GOSSIP:
        adaptive = "corrected" if cell["contender"] == "corrected" else "plain"
        graph = named_graph(cell["graph"]) if "graph" in cell else None
        algorithm = ps.algorithms.PeriodicAverage(cell["average_every"]) if "average_every" in cell else None
        optimizer = ps.PushSumOptimizer(
            optimizer, model, staleness=cell["staleness"], adaptive=adaptive, graph=graph, algorithm=algorithm
        )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: warm_up_and_cosine(k, cell["steps"]))
    generator = torch.Generator().manual_seed(cell["seed"] + 1)
    for _ in range(cell["steps"]):
        x, y = workload.batch((cell["ranks"], cell["samples"]), generator)
        x, y = (x.flatten(0, 1), y.flatten(0, 1)) if rank is None else (x[rank], y[rank])
        optimizer.zero_grad()
        workload.loss(forward(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), cell["clip"])
        optimizer.step()
        schedule.step()
    if cell["contender"] not in GOSSIP:
        return workload.validate(model)
    with optimizer, optimizer.averaged():
        return workload.validate(model)


def groups(model: nn.Module) -> list[dict]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": simulation.WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]


def warm_up_and_cosine(k: int, steps: int) -> float:
    return min(1, (k + 1) / simulation.WARM_UP_STEPS) * (0.1 + 0.45 * (1 + math.cos(math.pi * k / steps)))


# ---------------------------------------------------------------------- the table


def show(rows: list[dict]) -> None:
    for setting in sorted({setting_of(row) for row in rows}):
        workload, ranks, steps, samples, clip = setting
        print(
            f"\n{workload}, {ranks} ranks, {steps} steps, {samples} samples per rank and step, clipped to norm {clip:g}"
        )
        show_setting([row for row in rows if setting_of(row) == setting])


def setting_of(row: dict) -> tuple[str, int, int, int, float]:
    return row["workload"], row["ranks"], row["steps"], row["samples"], row["clip"]


def show_setting(rows: list[dict]) -> None:
    """Print a line for every contender; differences are between means over the seeds that all-reduce has run too."""
    rates = sorted({row["rate"] for row in rows})
    losses: dict[tuple[Series, float], dict[int, float]] = {}
    for row in rows:
        losses.setdefault((series_of(row), row["rate"]), {})[row["seed"]] = row["loss"]
    print(f"  {'':30}" + "".join(f"{f'rate {rate:g}':>36}" for rate in rates) + f"{'best':>16}")
    for series in sorted({key[0] for key in losses}, key=lambda one: (list(LABELS).index(one[0]), one[1:])):
        texts = [described(losses, series, rate) for rate in rates]
        print(f"  {named(series):30}" + "".join(f"{text:>36}" for text in texts) + best(losses, series, rates))


def series_of(row: dict) -> Series:
    return row["contender"], row["staleness"], row.get("graph", ""), row.get("average_every", 0)


def named(series: Series) -> str:
    contender, staleness, graph, every = series
    if contender not in GOSSIP:
        return LABELS[contender]
    extra = (f", {graph}" if graph else "") + (f", every {every} exact" if every else "")
    return f"{LABELS[contender]}, staleness {staleness}{extra}"


def described(losses: dict, series: Series, rate: float) -> str:
    own = losses.get((series, rate))
    if not own:
        return "-"
    values = list(own.values())
    against = difference(own, all_reduce(losses, rate)) if series[0] in GOSSIP else ""
    return f"{statistics.fmean(values):.4f} ({min(values):.3f}..{max(values):.3f}) {against} n={len(values)}"


def all_reduce(losses: dict, rate: float) -> dict[int, float]:
    """Return the losses of the references by seed, DDP's where it has run."""
    found: dict[int, float] = {}
    for reference in reversed(REFERENCES):
        found |= losses.get(((reference, 0, "", 0), rate), {})
    return found


def difference(own: dict[int, float], other: dict[int, float]) -> str:
    seeds = own.keys() & other.keys()
    if not seeds:
        return ""
    ratio = statistics.fmean(own[s] for s in seeds) / statistics.fmean(other[s] for s in seeds)
    return f"{100 * (ratio - 1):+.1f} %"


def best(losses: dict, series: Series, rates: list[float]) -> str:
    """Compare the best rate of a contender with the best of all-reduce."""

    def least(choices: list[dict[int, float]]) -> dict[int, float]:
        return min(filter(None, choices), key=lambda values: statistics.fmean(values.values()), default={})

    own = least([losses.get((series, rate), {}) for rate in rates])
    text = f"{statistics.fmean(own.values()):.4f}" if own else "-"
    against = difference(own, least([all_reduce(losses, rate) for rate in rates])) if series[0] in GOSSIP else ""
    return f"{text:>8} {against:>7}"


if __name__ == "__main__":
    main()
