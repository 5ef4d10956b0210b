"""Denser rounds at the beginning."""

from __future__ import annotations

import argparse

import torch
from digits import datasets
from torch import nn

import pushsum_opt as ps
from pushsum_opt.algorithms import PeriodicAverage
from pushsum_opt.graphs import KPeerExponential, OnePeerExponential, Ring, Schedule

from .digits_job import BATCH, Job, on_ranks
from .room import Row, spread


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)


def table(arguments: argparse.Namespace) -> list[Row]:
    """One peer all the time, and exact averages or two peers in the first third of the rounds."""
    steps = len(datasets()[0].tensors[1]) // BATCH
    dense = arguments.epochs * steps // 3
    one, two = OnePeerExponential(), KPeerExponential(2)
    options: dict[str, Row] = {
        "1P: one peer": {"graph": one},
        "AR/1P: exact averages, then one peer": {"graph": one, "averages": {"first": dense}},
        "2P/1P: two peers, then one": {"graph": Schedule([(dense, two), (None, one)])},
        "AR: exact averages": {"graph": one, "averages": {"every": 1}},
        "ring: one peer, always the same": {"graph": Ring()},
    }
    rows = []
    print(
        f"{dense} of {arguments.epochs * steps} rounds are denser         accuracy of the average   loss of the average"
    )
    for name, more in options.items():
        found = []
        for seed in range(arguments.seeds):
            ranks = on_ranks(arguments.ranks, seed, lambda job, more=more: one_hybrid(job, more, arguments.epochs))
            found.append({"rule": name, "seed": seed, **ranks[0]})
        rows += found
        right, loss = ([row[key] for row in found] for key in ("accuracy", "loss"))
        print(f"{name:37}  {spread(right):24}  {spread(loss, 4)}", flush=True)
    return rows


def one_hybrid(job: Job, more: Row, epochs: int) -> Row:
    averages = more.get("averages")
    algorithm = PeriodicAverage(**averages) if averages else None  # each rank has its own
    optimizer = ps.PushSumOptimizer(job.sgd(), job.model, graph=more["graph"], algorithm=algorithm, comm=job.comm)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        for images, labels in job.batches(epoch):
            job.backward(images, labels)
            optimizer.step()
        schedule.step()
    with optimizer.averaged(), torch.no_grad():
        images, labels = datasets()[1].tensors
        loss = nn.functional.cross_entropy(job.model(images), labels).item()
        right = job.right()
    optimizer.close()
    return {"accuracy": right, "loss": loss}
