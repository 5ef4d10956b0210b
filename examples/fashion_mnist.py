"""Train a small convolutional network on Fashion-MNIST, each rank on its own shard: push-sum in any mode, or DDP.

    pushsum run -np 4 examples/fashion_mnist.py
    pushsum run -np 4 examples/fashion_mnist.py --staleness 1 --graph Ring
    pushsum run -np 4 examples/fashion_mnist.py --baseline ddp
    mpirun -np 64 python examples/fashion_mnist.py --staleness unbounded --epochs 10

Every mode trains the same network on the same batches with the same learning rates. Rank 0 shows a bar, and prints one
line of JSON per epoch. The data is what Debian's package dataset-fashion-mnist installs: four gzipped idx files.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset
from tqdm import tqdm

import pushsum_opt as ps

DATA = Path("/usr/share/datasets/fashion-mnist")
REFERENCE_BATCH = 256  # samples per step, over all ranks, that --lr is meant for


def read_idx(path: Path) -> Tensor:
    """Read a gzipped idx file of bytes: two zeros, the type (8), the number of dimensions, their sizes, the values."""
    data = gzip.decompress(path.read_bytes())
    sizes = np.frombuffer(data, ">i4", count=data[3], offset=4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    return torch.tensor(values.reshape(sizes))


def dataset(folder: Path, part: str, limit: int | None) -> TensorDataset:
    """Return the first ``limit`` images and labels of a part ("train" or "t10k"), as bytes: that is a quarter of the
    memory of floats."""
    images, labels = (folder / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    for path in (images, labels):
        if not path.is_file():
            sys.exit(
                f"rank {ps.rank()}: there is no {path}. Install the data with `apt-get install dataset-fashion-mnist`, "
                "or name the folder that holds it with --data DIR"
            )
    return TensorDataset(read_idx(images)[:limit, None], read_idx(labels)[:limit].long())


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip


def floats(images: Tensor) -> Tensor:
    return (images.float() - 73.0) / 90.0  # the mean and the standard deviation of the training images


def wrap(
    arguments: argparse.Namespace, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], AbstractContextManager[None]]]:
    """Return the module to call, the optimizer to step, and the context in which the model is the ranks' average."""
    if arguments.baseline == "ddp":
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29500")
        torch.distributed.init_process_group("gloo", rank=ps.rank(), world_size=ps.size())
        # All ranks hold the same parameters after each step: there is nothing to average.
        return nn.parallel.DistributedDataParallel(model), optimizer, contextlib.nullcontext
    graph = getattr(ps.graphs, arguments.graph)() if arguments.graph else None
    staleness = arguments.staleness if arguments.staleness == "unbounded" else int(arguments.staleness)
    push_sum = ps.PushSumOptimizer(optimizer, model, graph=graph, staleness=staleness)
    return model, push_sum, push_sum.averaged


def warm_up_and_decay(steps: int, warm_up: int) -> Callable[[int], float]:
    """Return the factor of the learning rate at each step: up along a line, then down along a cosine to 0."""

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return factor


@torch.no_grad()
def correct(model: nn.Module, data: TensorDataset) -> int:
    """Count the correct answers on this rank's share of the test set."""
    images, labels = (tensor[ps.rank() :: ps.size()] for tensor in data.tensors)
    parts = zip(images.split(500), labels.split(500), strict=True)
    return sum(int((model(floats(some)).argmax(1) == wanted).sum()) for some, wanted in parts)


def train_epoch(
    model: nn.Module,
    loader: tqdm,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """Train on every batch of this rank; return the mean loss."""
    total = 0.0
    with until_all_are_through(optimizer):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(floats(images)), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
    return total / len(loader)


def until_all_are_through(optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
    """Return a context in which ranks that are faster than others go on gossiping until these have finished too."""
    asynchronous = isinstance(optimizer, ps.PushSumOptimizer) and optimizer.staleness == "unbounded"
    return optimizer.join() if asynchronous else contextlib.nullcontext()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--staleness", default="0", help="0, 1, 2, ... or unbounded (default 0)")
    parser.add_argument("--graph", help="a family of pushsum_opt.graphs that needs no arguments, such as Ring")
    parser.add_argument("--baseline", choices=["ddp"], help="instead of push-sum: DistributedDataParallel over gloo")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="samples per rank and step (default 32)")
    parser.add_argument("--lr", type=float, default=0.05, help="for 256 samples per step of all ranks (default 0.05)")
    parser.add_argument("--warm-up", type=float, default=1.0, help="epochs (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help=f"(default {DATA})")
    parser.add_argument("--limit-train", type=int, metavar="N", help="train on the first N images")
    parser.add_argument("--limit-test", type=int, metavar="N", help="test on the first N images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the lines to a file instead of printing them")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    train, test = (
        dataset(arguments.data, part, limit)
        for part, limit in (("train", arguments.limit_train), ("t10k", arguments.limit_test))
    )
    torch.manual_seed(arguments.seed)
    sampler = DistributedSampler(train, num_replicas=ps.size(), rank=ps.rank(), seed=arguments.seed, drop_last=True)
    # Every rank takes equally many steps: the last, smaller batch is dropped.
    loader = DataLoader(train, sampler=BatchSampler(sampler, arguments.batch, drop_last=True), batch_size=None)
    rate = arguments.lr * arguments.batch * ps.size() / REFERENCE_BATCH
    plain = network()
    optimizer = torch.optim.SGD(plain.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    model, optimizer, averaged = wrap(arguments, plain, optimizer)
    factor = warm_up_and_decay(arguments.epochs * len(loader), round(arguments.warm_up * len(loader)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    for epoch in range(arguments.epochs):
        sampler.set_epoch(epoch)
        ps.average(0.0)  # all ranks start the clock together
        begin = time.perf_counter()
        with tqdm(loader, f"epoch {epoch + 1}", leave=False, unit="step", disable=ps.rank() != 0) as batches:
            loss = ps.average(train_epoch(model, batches, optimizer, schedule))  # all ranks are through
        seconds = time.perf_counter() - begin
        with averaged():
            accuracy = ps.average(float(correct(plain, test))) * ps.size() / len(test)
        line = {
            "epoch": epoch + 1,
            "test_accuracy": round(accuracy, 5),
            "loss": round(loss, 5),
            "seconds": round(seconds, 3),  # of training, without evaluation
            "mode": arguments.baseline or f"staleness {arguments.staleness}",
            "seed": arguments.seed,
            "ranks": ps.size(),
        }
        if ps.rank() == 0 and arguments.json:
            with arguments.json.open("a") as file:
                print(json.dumps(line), file=file)
        elif ps.rank() == 0:
            print(json.dumps(line), flush=True)
    if arguments.baseline == "ddp":
        torch.distributed.destroy_process_group()
    else:
        optimizer.close()


if __name__ == "__main__":
    main()
