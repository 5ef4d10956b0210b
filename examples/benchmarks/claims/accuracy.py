"""Test accuracy on Fashion-MNIST over the number of ranks: every mode, and the baselines.

All contenders train the network of examples/fashion_mnist.py on the same batches, 32 images per rank and step, on real
ranks. The learning rate at its peak is proportional to the number of ranks, times each of ``--factors``: what suits one
contender need not suit another. A file of JSON lines keeps every run that has ended, and a table that was cut short
goes on from it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from emulated_hosts import EmulatedHosts
from fashion_mnist import DATA, REFERENCE_BATCH, dataset, floats, network, warm_up_and_decay
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from .contenders import LABELS, Contender, contender
from .room import Row, add_row, missing, mpirun, read_rows, spread

CONTENDERS = ("all-reduce", "d-psgd", "ad-psgd", "sgp", "sgp int8", "tau 1", "tau 2", "async")
EACH = 32  # images per rank and step
RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0], help="of the learning rates")
    parser.add_argument("--data", type=Path, default=DATA, help=f"(default {DATA})")
    parser.add_argument("--images", type=int, default=60_000, help="for training, the first so many")
    parser.add_argument("--rows", type=Path, default=Path("accuracy.jsonl"), help="the file of runs that have ended")
    parser.add_argument("--show", action="store_true", help="run nothing: show what this file has")
    parser.add_argument("--only", nargs="+", choices=tuple(LABELS), default=CONTENDERS)


def table(arguments: argparse.Namespace) -> list[Row]:
    for ranks in () if arguments.show else arguments.ranks:
        passed_on = ["rows", "epochs", "seeds", "factors", "data", "images", "only"]
        mpirun("accuracy", EmulatedHosts(ranks), arguments, passed_on)
    rows = read_rows(arguments.rows)
    show(rows)
    return rows


def work(arguments: argparse.Namespace) -> None:
    """One rank: train with every contender and seed that the file of rows does not have yet."""
    comm = MPI.COMM_WORLD
    same = {"ranks": comm.size, "epochs": arguments.epochs, "images": arguments.images}
    each = itertools.product(range(arguments.seeds), arguments.factors, arguments.only)
    wanted = [{"contender": name, "factor": factor, "seed": seed, **same} for seed, factor, name in each]
    train, test = dataset(arguments.data, "train", arguments.images), dataset(arguments.data, "t10k", None)
    for row in comm.bcast(missing(wanted, arguments.rows)):
        row |= one(row["contender"], row["factor"], row["seed"], arguments.epochs, train.tensors, test.tensors)
        if comm.rank == 0:
            add_row(arguments.rows, row)
            said = f"{comm.size:2} ranks, {row['contender']:10} x {row['factor']:g}, seed {row['seed']}"
            print(f"{said}: {row['accuracy'][-1]:.2f}", flush=True)


def one(name: str, factor: float, seed: int, epochs: int, train: tuple[Tensor, ...], test: tuple[Tensor, ...]) -> Row:
    comm = MPI.COMM_WORLD
    torch.manual_seed(seed)
    model, copy = network(), network()
    peak = factor * RATE * EACH * comm.size / REFERENCE_BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=MOMENTUM, weight_decay=DECAY)
    who = contender(name, model, optimizer)
    steps = len(train[1]) // (EACH * comm.size)
    schedule = warm_up_and_decay(epochs * steps, steps)
    begin, busy, found = time.perf_counter(), os.times(), []
    for epoch in range(epochs):
        with who.late():
            for step, (images, labels) in enumerate(batches(train, seed, epoch)):
                optimizer.param_groups[0]["lr"] = peak * schedule(epoch * steps + step)
                optimizer.zero_grad()
                nn.functional.cross_entropy(who.module(floats(images)), labels).backward()
                who.step()
        if 2 * (epoch + 1) in (epochs, 2 * epochs):
            found.append(right(who, copy, test))
    seconds, ended = time.perf_counter() - begin, os.times()
    who.close()
    processor = comm.allreduce(ended.user + ended.system - busy.user - busy.system)
    return {"accuracy": found, "seconds": seconds, "processor_seconds": processor, "date": time.strftime("%Y-%m-%d")}


def batches(train: tuple[Tensor, ...], seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this rank's batches of an epoch; all ranks have equally many."""
    comm = MPI.COMM_WORLD
    images, labels = train
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1000 * seed + epoch))
    steps = len(order) // (EACH * comm.size)
    for chosen in order[: steps * comm.size * EACH].reshape(steps, comm.size, EACH)[:, comm.rank]:
        yield images[chosen], labels[chosen]


@torch.no_grad()
def right(who: Contender, copy: nn.Module, test: tuple[Tensor, ...]) -> float:
    """Return the accuracy of the average of all ranks, in percent; every rank looks at its share of the images."""
    comm = MPI.COMM_WORLD
    vector_to_parameters(who.average(), copy.parameters())
    images, labels = (part[comm.rank :: comm.size] for part in test)
    parts = zip(images.split(500), labels.split(500), strict=True)
    correct = sum(int((copy(floats(some)).argmax(1) == wanted).sum()) for some, wanted in parts)
    return 100 * comm.allreduce(correct) / len(test[1])


def show(rows: list[Row]) -> None:
    kinds = sorted({(row["ranks"], row["epochs"], row["images"]) for row in rows})
    for ranks, epochs, images in kinds:
        mine = [row for row in rows if (row["ranks"], row["epochs"], row["images"]) == (ranks, epochs, images)]
        print(f"\n{ranks} ranks, {epochs} epochs of {images} images, {EACH} per rank and step")
        print("contender                 rate  seeds  accuracy               - all-reduce, same seeds  at half time")
        by = {(row["contender"], row["factor"], row["seed"]): row["accuracy"] for row in mine}
        for name, factor in itertools.product(LABELS, sorted({row["factor"] for row in mine})):
            seeds = [seed for who, rate, seed in by if (who, rate) == (name, factor)]
            if not seeds:
                continue
            found_by = {seed: by[name, factor, seed] for seed in seeds}
            less = [
                found[-1] - by["all-reduce", factor, seed][-1]
                for seed, found in found_by.items()
                if ("all-reduce", factor, seed) in by
            ]
            print(
                f"{LABELS[name]:25} {factor:4g}  {len(seeds):5}  {spread(found[-1] for found in found_by.values()):22} "
                f"{spread(less) if less else '':25} {spread(found[0] for found in found_by.values())}"
            )
