"""Three claims of the paper (Assran et al. 2019), each seen with one command, on handwritten digits: a table, and JSON.

    python examples/benchmarks/evidence.py deviations    # ranks stay apart in proportion to the learning rate
    python examples/benchmarks/evidence.py bias          # without the push weight, gossip optimises something else
    python examples/benchmarks/evidence.py hybrids       # denser rounds at the beginning
    python examples/benchmarks/evidence.py bias --seeds 3 --epochs 5 --json bias.json

8 ranks in threads of one process train the network of examples/digits.py, each on its own shard, by the library's real
exchange. Every row begins with the same weights and sees the same batches. Nothing here is about speed.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pushsum_opt as ps
from pushsum_opt.algorithms import PeriodicAverage
from pushsum_opt.graphs import KPeerExponential, OnePeerExponential, Ring, Schedule, from_edges

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from digits import accuracy, datasets, network

BATCH = 64  # of all ranks
RATE, MOMENTUM = 0.1, 0.9
Row = dict[str, Any]


class Job:
    """One rank's part of a training: its model, and its batches.

    Args:
        weights: of the network at the start. Ranks in threads share torch's generator, so none of them draws its own.
    """

    def __init__(self, comm: Any, weights: dict[str, Tensor], seed: int) -> None:
        self.comm, self.seed = comm, seed
        self.images, self.labels = datasets()[0].tensors
        self.model = network()
        self.model.load_state_dict(weights)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(1000 * self.seed + epoch))
        each = BATCH // self.comm.size
        steps = len(order) // (each * self.comm.size)
        for chosen in order[: steps * each * self.comm.size].reshape(steps, self.comm.size, each)[:, self.comm.rank]:
            yield self.images[chosen], self.labels[chosen]

    def backward(self, images: Tensor, labels: Tensor) -> None:
        self.model.zero_grad()
        nn.functional.cross_entropy(self.model(images), labels).backward()

    def sgd(self, rate: float = RATE, momentum: float = MOMENTUM) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=rate, momentum=momentum)

    def flat(self) -> np.ndarray:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()]).double().numpy()

    def right(self) -> float:
        """Return the accuracy on the test images, in percent."""
        return 100 * accuracy(self.model, datasets()[1])


def start(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return network().state_dict()


def on_ranks(size: int, seed: int, work: Callable[[Job], Any]) -> list[Any]:
    """Return what each rank found."""
    weights = start(seed)
    return ps.testing.run(size, lambda comm: work(Job(comm, weights, seed)), timeout=600.0)


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Return mean (least to most)."""
    values = list(values)
    shown = [f"{value:.{digits}f}" for value in (statistics.mean(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


# ---------------------------------------------------------------------- how far apart ranks are


RATES = (0.1, 0.05, 0.025, 0.0125, 0.00625)
EPOCHS_AT_RATE = 2


def deviations(arguments: argparse.Namespace) -> list[Row]:
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


# ---------------------------------------------------------------------- with and without the push weight


def uneven(size: int) -> Any:
    """A ring, and edges from rank 0 to all: push weights differ from rank to rank."""
    return from_edges([(i, (i + 1) % size) for i in range(size)] + [(0, j) for j in range(2, size)])


def bias(arguments: argparse.Namespace) -> list[Row]:
    """Ranks that divide by the push weight, and ranks that do not."""
    graphs = {
        "one-peer exponential": (OnePeerExponential(), 0),
        "one-peer exponential, staleness 1": (OnePeerExponential(), 1),
        "uneven": (uneven(arguments.ranks), 0),
        "uneven, staleness 1": (uneven(arguments.ranks), 1),
    }
    rows = []
    print(
        "graph                              ranks divide by w  accuracy, mean over ranks  of the worst rank          w"
    )
    for name, (graph, staleness) in graphs.items():
        for divided in (True, False):
            found = []
            for seed in range(arguments.seeds):

                def work(
                    job: Job, graph: Any = graph, staleness: int = staleness, divided: bool = divided
                ) -> tuple[float, float]:
                    return one_bias(job, graph, staleness, arguments.epochs, divided=divided)

                ranks = on_ranks(arguments.ranks, seed, work)
                right, weights = ([one[k] for one in ranks] for k in (0, 1))
                found.append(
                    {
                        "graph": name, "divided": divided, "seed": seed, "accuracy": statistics.mean(right),
                        "worst": min(right), "weights": weights,
                    }
                )  # fmt: skip
            rows += found
            everyone = [w for row in found for w in row["weights"]]
            print(
                f"{name:33}  {'yes' if divided else 'no':17}  {spread(row['accuracy'] for row in found):25}  "
                f"{spread(row['worst'] for row in found):25}  {min(everyone):.2f} to {max(everyone):.2f}",
                flush=True,
            )
    return rows


def one_bias(job: Job, graph: Any, staleness: int, epochs: int, *, divided: bool) -> tuple[float, float]:
    """Train with plain SGD, and return the accuracy of this rank's own model and its push weight.

    Every rank moves x = w z by the gradient, as the paper's Algorithm 1 does. Ranks that do not divide also compute it
    at x, as if each rank's share of the sum were the average.
    """
    inner = job.sgd(RATE, momentum=0.0)
    push_sum = ps.PushSum(dict(job.model.named_parameters()), graph=graph, staleness=staleness, comm=job.comm)

    def scale(by: float) -> None:
        with torch.no_grad():
            for parameter in job.model.parameters():
                parameter.mul_(by)

    for epoch in range(epochs):
        for images, labels in job.batches(epoch):
            weight = push_sum.push_weight
            if divided:
                job.backward(images, labels)
                inner.param_groups[0]["lr"] = RATE / weight  # z moves by the gradient over w, and so x by the gradient
                inner.step()
            else:
                scale(weight)
                job.backward(images, labels)
                inner.step()
                scale(1.0 / weight)
            push_sum.mix()
    weight = push_sum.push_weight
    scale(1.0 if divided else weight)
    right = job.right()
    scale(1.0 if divided else 1.0 / weight)
    push_sum.close()
    return right, weight


# ---------------------------------------------------------------------- denser rounds at the beginning


def hybrids(arguments: argparse.Namespace) -> list[Row]:
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


TABLES = {"deviations": deviations, "bias": bias, "hybrids": hybrids}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    logging.getLogger("pushsum_opt").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = TABLES[arguments.table](arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
