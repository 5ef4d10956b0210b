"""The training that most tables share: the network of examples/digits.py, each rank on its own part of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from digits import accuracy, datasets, network
from torch import Tensor, nn

import pushsum_opt as ps

BATCH = 64  # of all ranks
RATE, MOMENTUM = 0.1, 0.9


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
