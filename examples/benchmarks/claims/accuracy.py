"""Test accuracy on Fashion-MNIST over the number of ranks: every mode, and the baselines.

All contenders train the network of examples/fashion_mnist.py on the same batches, 32 images per rank and step, with the
same learning rates, on real ranks. A file of JSON lines keeps every run that has ended, and a table that was cut short
goes on from it.
"""

from __future__ import annotations

import argparse
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
    parser.add_argument("--data", type=Path, default=DATA, help=f"(default {DATA})")
    parser.add_argument("--images", type=int, default=60_000, help="for training, the first so many")
    parser.add_argument("--rows", type=Path, default=Path("accuracy.jsonl"), help="the file of runs that have ended")
    parser.add_argument("--show", action="store_true", help="run nothing: show what this file has")
    parser.add_argument("--only", nargs="+", choices=tuple(LABELS), default=CONTENDERS)


def table(arguments: argparse.Namespace) -> list[Row]:
    for ranks in () if arguments.show else arguments.ranks:
        mpirun("accuracy", EmulatedHosts(ranks), arguments, ["rows", "epochs", "seeds", "data", "images", "only"])
    rows = read_rows(arguments.rows)
    show(rows)
    return rows


def work(arguments: argparse.Namespace) -> None:
    """One rank: train with every contender and seed that the file of rows does not have yet."""
    comm = MPI.COMM_WORLD
    same = {"ranks": comm.size, "epochs": arguments.epochs, "images": arguments.images}
    wanted = [{"contender": name, "seed": seed, **same} for seed in range(arguments.seeds) for name in arguments.only]
    train, test = dataset(arguments.data, "train", arguments.images), dataset(arguments.data, "t10k", None)
    for row in comm.bcast(missing(wanted, arguments.rows)):
        row |= one(row["contender"], row["seed"], arguments.epochs, train.tensors, test.tensors)
        if comm.rank == 0:
            add_row(arguments.rows, row)
            said = f"{comm.size:2} ranks, {row['contender']:10} seed {row['seed']}"
            print(f"{said}: {row['accuracy'][-1]:.2f}", flush=True)


def one(name: str, seed: int, epochs: int, train: tuple[Tensor, ...], test: tuple[Tensor, ...]) -> Row:
    comm = MPI.COMM_WORLD
    torch.manual_seed(seed)
    model, copy = network(), network()
    peak = RATE * EACH * comm.size / REFERENCE_BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=MOMENTUM, weight_decay=DECAY)
    who = contender(name, model, optimizer)
    steps = len(train[1]) // (EACH * comm.size)
    factor = warm_up_and_decay(epochs * steps, steps)
    begin, busy, found = time.perf_counter(), os.times(), []
    for epoch in range(epochs):
        with who.late():
            for step, (images, labels) in enumerate(batches(train, seed, epoch)):
                optimizer.param_groups[0]["lr"] = peak * factor(epoch * steps + step)
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
        print("contender                 seeds  accuracy               - all-reduce, same seeds  at half time")
        by = {(row["contender"], row["seed"]): row["accuracy"] for row in mine}
        for name, label in LABELS.items():
            seeds = [seed for who, seed in by if who == name]
            if not seeds:
                continue
            both = [seed for seed in seeds if ("all-reduce", seed) in by]
            less = [by[name, seed][-1] - by["all-reduce", seed][-1] for seed in both]
            print(
                f"{label:25} {len(seeds):5}  {spread(by[name, seed][-1] for seed in seeds):22} "
                f"{spread(less) if less else '':25} {spread(by[name, seed][0] for seed in seeds)}"
            )
