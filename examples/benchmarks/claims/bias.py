"""Without the push weight, gossip optimises something else."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

import pushsum_opt as ps
from pushsum_opt.graphs import OnePeerExponential, from_edges

from .digits_job import RATE, Job, on_ranks
from .room import Row, spread


def uneven(size: int) -> Any:
    """A ring, and edges from rank 0 to all: push weights differ from rank to rank."""
    return from_edges([(i, (i + 1) % size) for i in range(size)] + [(0, j) for j in range(2, size)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)


def table(arguments: argparse.Namespace) -> list[Row]:
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
