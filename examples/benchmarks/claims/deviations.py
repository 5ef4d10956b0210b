"""Ranks stay apart in proportion to the learning rate."""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

import numpy as np

import pushsum_opt as ps
from pushsum_opt.graphs import KPeerExponential, OnePeerExponential

from .digits_job import Job, on_ranks
from .room import Row, spread

RATES = (0.1, 0.05, 0.025, 0.0125, 0.00625)
EPOCHS_AT_RATE = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)


def table(arguments: argparse.Namespace) -> list[Row]:
    """Distances of the ranks' models from their average after a drop of the learning rate, with one peer and with two.

    All runs are the same until then, so that the gradients are of about one size.
    """
    rows = []
    for graph in (OnePeerExponential(), KPeerExponential(2)):
        for rate in RATES:
            for seed in range(arguments.seeds):

                def work(job: Job, graph: Any = graph, rate: float = rate) -> np.ndarray:
                    return distances(job, graph, rate, arguments.epochs)

                late = np.stack(on_ranks(arguments.ranks, seed, work))  # ranks x steps
                rows.append(
                    {
                        "graph": str(graph), "rate": rate, "seed": seed, "mean": late.mean(),
                        "least": late.min(1).mean(), "most": late.max(1).mean(),
                    }
                )  # fmt: skip
    print("graph                  rate     distance to the average: mean over ranks and steps (least to most of seeds)")
    for graph in dict.fromkeys(row["graph"] for row in rows):
        points = []
        for rate in RATES:
            found = [row["mean"] for row in rows if (row["graph"], row["rate"]) == (graph, rate)]
            points.append((math.log(rate), math.log(statistics.mean(found))))
            print(f"{graph:21}  {rate:<7g}  {spread(found, 5)}")
        slope = np.polyfit(*zip(*points, strict=True), 1)[0]
        print(f"{graph:21}  slope on log-log axes: {slope:.2f} (the paper: 1)")
    return rows


def distances(job: Job, graph: Any, rate: float, epochs: int) -> np.ndarray:
    """Train at the highest rate, then at another one; return distances from the average in the last epoch."""
    optimizer = ps.PushSumOptimizer(job.sgd(RATES[0]), job.model, graph=graph, comm=job.comm)
    found = []
    for epoch in range(epochs + EPOCHS_AT_RATE):
        if epoch == epochs:
            optimizer.param_groups[0]["lr"] = rate
        for images, labels in job.batches(epoch):
            job.backward(images, labels)
            optimizer.step()
            if epoch == epochs + EPOCHS_AT_RATE - 1:
                mine = job.flat()
                found.append(np.linalg.norm(mine - ps.average(mine, data_weight=1.0, comm=job.comm)))
    optimizer.close()
    return np.array(found)
