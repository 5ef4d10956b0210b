"""Time to a test accuracy when ranks are slow: hiccups on any rank at any step, and one rank that is always slow.

Real ranks train the network of examples/digits.py on real images, by every mode and baseline. A sleep stands in for
most of the compute, so that two cores carry eight ranks; all contenders sleep equally long in the same steps. Learning
rates do not change, so that no run is ahead by its schedule. Each rank keeps its model after every step. When all are
through, the average of what the ranks had at a time is tested: nobody stops for that during the training.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from digits import datasets, network
from emulated_hosts import EmulatedHosts
from mpi4py import MPI
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from .contenders import COLOURS, LABELS, Contender, contender
from .digits_job import Job, start
from .room import Row, add_row, missing, mpirun, read_rows, spread

CONTENDERS = ("all-reduce", "local sgd", "d-psgd", "ad-psgd", "sgp", "tau 1", "tau 2", "async")
DISTURBANCES = {
    "none": "undisturbed",
    "hiccups": "5 % of steps take 4 times as long, on any rank",
    "slow": "rank 3 takes 3 times as long, always",
}
TICK = 0.1  # seconds between two tests


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6, help="of 22 steps on 8 ranks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--compute", type=float, default=0.1, help="seconds of sleep per step (default 0.1)")
    parser.add_argument("--goal", type=float, default=95.0, help="test accuracy in percent (default 95)")
    parser.add_argument("--disturbances", nargs="+", choices=DISTURBANCES, default=list(DISTURBANCES))
    parser.add_argument("--rows", type=Path, default=Path("stragglers.jsonl"), help="the file of runs that have ended")
    parser.add_argument("--show", action="store_true", help="run nothing: show what this file has")
    parser.add_argument("--plot", type=Path, help="draw accuracy over time into this file")
    parser.add_argument("--only", nargs="+", choices=LABELS, default=CONTENDERS)


def table(arguments: argparse.Namespace) -> list[Row]:
    if not arguments.show:
        passed_on = ["rows", "ranks", "epochs", "seeds", "compute", "disturbances", "only"]
        mpirun("stragglers", EmulatedHosts(arguments.ranks), arguments, passed_on)
    rows = read_rows(arguments.rows)
    show(rows, arguments.goal)
    if arguments.plot:
        plot(rows, arguments.goal, arguments.plot)
    return rows


def work(arguments: argparse.Namespace) -> None:
    """One rank: train with every contender, disturbance and seed that the file of rows does not have yet."""
    comm = MPI.COMM_WORLD
    same = {"ranks": comm.size, "epochs": arguments.epochs, "compute": arguments.compute}
    wanted = [
        {"contender": name, "disturbance": disturbance, "seed": seed, **same}
        for seed in range(arguments.seeds)
        for disturbance in arguments.disturbances
        for name in arguments.only
    ]
    for row in comm.bcast(missing(wanted, arguments.rows)):
        found = one(row)
        if found is not None:
            add_row(arguments.rows, row | found)
            said = f"{row['contender']:10} {row['disturbance']:8} seed {row['seed']}"
            print(f"{said}: {found['accuracy'][-1]:.1f} after {found['seconds']:.1f} s", flush=True)


def one(row: Row) -> Row | None:
    """Train once; return on rank 0 the accuracy of the average at every tick."""
    comm = MPI.COMM_WORLD
    job = Job(comm, start(row["seed"]), row["seed"])
    who = contender(row["contender"], job.model, job.sgd())
    naps = iter(durations(row, comm.rank))
    comm.barrier()
    begin = comm.bcast(time.monotonic())  # of all processes of this machine
    kept: list[tuple[float, float, np.ndarray]] = []
    with who.late():
        for epoch in range(row["epochs"]):
            for images, labels in job.batches(epoch):
                train(job.model, who, images, labels, next(naps))
                kept.append((time.monotonic() - begin, who.weight(), flat(job.model)))
    who.close()
    everybody = comm.gather(kept)
    if everybody is None:
        return None
    seconds = max(mine[-1][0] for mine in everybody)
    return {"accuracy": over_time(everybody, seconds), "seconds": seconds, "date": time.strftime("%Y-%m-%d")}


def train(model: nn.Module, who: Contender, images: torch.Tensor, labels: torch.Tensor, nap: float) -> None:
    model.zero_grad()
    loss = nn.functional.cross_entropy(who.module(images), labels)
    time.sleep(nap)
    loss.backward()
    who.step()


def flat(model: nn.Module) -> np.ndarray:
    return parameters_to_vector(model.parameters()).detach().clone().numpy()


def durations(row: Row, rank: int) -> np.ndarray:
    """Return the seconds of sleep of each step of a rank: the same for every contender."""
    random = np.random.default_rng([row["seed"], rank])
    naps = np.full(row["epochs"] * 1000, row["compute"])
    if row["disturbance"] == "hiccups":
        naps *= np.where(random.random(len(naps)) < 0.05, 4.0, 1.0)
    elif row["disturbance"] == "slow" and rank == min(3, row["ranks"] - 1):
        naps *= 3.0
    return naps


@torch.no_grad()
def over_time(everybody: list[list[tuple[float, float, np.ndarray]]], seconds: float) -> list[float]:
    """Return the accuracy in percent, at every tick, of the average of what the ranks had then, by their weights."""
    images, labels = datasets()[1].tensors
    model, places, found = network(), [-1] * len(everybody), []
    for tick in range(1, int(seconds / TICK) + 2):
        for rank, mine in enumerate(everybody):
            while places[rank] + 1 < len(mine) and mine[places[rank] + 1][0] <= tick * TICK:
                places[rank] += 1
        if min(places) < 0:  # somebody has not taken a step
            found.append(0.0)
            continue
        having = [mine[place] for mine, place in zip(everybody, places, strict=True)]
        average = np.average([model for _, _, model in having], 0, [weight for _, weight, _ in having])
        vector_to_parameters(torch.from_numpy(average.astype(np.float32)), model.parameters())
        found.append(100 * (model(images).argmax(1) == labels).float().mean().item())
    return found


def reached(row: Row, goal: float) -> float | None:
    """Return the seconds after which a run first has this accuracy; None: never."""
    return next(((tick + 1) * TICK for tick, right in enumerate(row["accuracy"]) if right >= goal), None)


def show(rows: list[Row], goal: float) -> None:
    for disturbance, said in DISTURBANCES.items():
        some = [row for row in rows if row["disturbance"] == disturbance]
        if not some:
            continue
        print(f"\n{some[0]['ranks']} ranks, {some[0]['compute']:g} s of compute a step: {said}")
        print(f"contender                 seeds  seconds to {goal:g} %          until all are through   last accuracy")
        for name, label in LABELS.items():
            mine = [row for row in some if row["contender"] == name]
            if not mine:
                continue
            times = [reached(row, goal) for row in mine]
            first = spread(known, 1) if len(known := [t for t in times if t is not None]) == len(times) else "not all"
            print(
                f"{label:25} {len(mine):5}  {first:22} {spread((row['seconds'] for row in mine), 1):23} "
                f"{spread((row['accuracy'][-1] for row in mine), 1)}"
            )


def plot(rows: list[Row], goal: float, path: Path) -> None:
    """Draw one panel for each disturbance: the mean accuracy of all seeds over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    kinds = [kind for kind in DISTURBANCES if any(row["disturbance"] == kind for row in rows)]
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(4.2 * len(kinds), 3.8), layout="constrained", sharey=True, squeeze=False
    )
    for axes, kind in zip(panels[0], kinds, strict=True):
        for name, label in LABELS.items():
            runs = [row["accuracy"] for row in rows if (row["contender"], row["disturbance"]) == (name, kind)]
            if not runs:
                continue
            longest = max(map(len, runs))
            mean = np.mean([run + [run[-1]] * (longest - len(run)) for run in runs], 0)
            axes.plot(TICK * np.arange(1, longest + 1), mean, label=label, color=COLOURS[name], linewidth=1.6)
        axes.axhline(goal, color="black", linewidth=0.7, linestyle=(0, (4, 3)))
        axes.set_title(DISTURBANCES[kind], fontsize=9)
        axes.set_xlabel("seconds")
        axes.set_ylim(60, 100)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("test accuracy of the average, %")
    panels[0][-1].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150)
