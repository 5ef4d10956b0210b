"""Shared by the tests of the wrapper: optimizers, a small network, batches that depend on (step, rank) alone."""

from __future__ import annotations

import copy

import torch._dynamo  # the first optimizer would import it, and take longer than a timeout on a busy machine
from torch import nn

import pushsum_opt as ps

KINDS = {
    "SGD": lambda p, **kw: torch.optim.SGD(p, **{"lr": 0.1, "momentum": 0.9, **kw}),
    "AdamW": lambda p, **kw: torch.optim.AdamW(p, **{"lr": 0.01, **kw}),
    "fused AdamW": lambda p, **kw: torch.optim.AdamW(p, **{"lr": 0.01, "fused": True, **kw}),
    "LBFGS": lambda p, **kw: torch.optim.LBFGS(p, **{"lr": 0.1, "max_iter": 3, **kw}),
}
FIRST_ORDER = [kind for kind in KINDS if kind != "LBFGS"]


def network(seed: int = 0) -> nn.Module:
    """Return the same network for the same seed; torch's global generator, which ranks share, is left alone."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def batch(step: int, rank: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(8, 6, generator=generator), torch.randn(8, 2, generator=generator)


def closure_of(model: nn.Module, step: int, rank: int = 0):
    def closure():
        model.zero_grad()
        inputs, targets = batch(step, rank)
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        return loss

    return closure


def train(optimizer, model, steps: int, rank: int = 0, start: int = 0) -> None:
    for step in range(start, start + steps):
        optimizer.step(closure_of(model, step, rank))


def values(model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def bits(tensors) -> list[bytes]:
    """Return what makes tensors equal bit for bit: nan equals itself, and 0 differs from -0."""
    return [tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]


def flat(state) -> list[object]:
    """Return the leaves of nested containers in order, keys included, tensors as their bits."""
    if isinstance(state, dict):
        return [item for key in state for item in (key, *flat(state[key]))]
    if isinstance(state, (list, tuple)):
        return [item for value in state for item in flat(value)]
    if isinstance(state, torch.Tensor):
        return [(str(state.dtype), tuple(state.shape), *bits([state]))]
    return [state]


def twins(model: nn.Module, size: int) -> list[nn.Module]:
    return [copy.deepcopy(model) for _ in range(size)]


def alone(function):
    """Run ``function(comm)`` as the only rank."""
    return ps.testing.run(1, function)[0]


def star(rank, size, round):
    """All send to rank 0, which sends to all: degrees, and so push weights, are far from equal."""
    return tuple(range(1, size)) if rank == 0 else (0,)


def ring(rank, size, round):
    """Each keeps a half and gives a half to the next: the push weights stay 1 and halves of integers are exact."""
    return ((rank + 1) % size,) if size > 1 else ()


class Varied(nn.Module):
    """Parameters and buffers of every sort."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.norm = nn.BatchNorm1d(2)
        self.narrow = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4).to(torch.bfloat16))
        self.wide = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
        self.strided = nn.Parameter(torch.linspace(-1, 1, 24).reshape(4, 6)[:, ::2])
        self.phase = nn.Parameter(torch.linspace(-1, 1, 4).to(torch.complex64))
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("spectrum", torch.zeros(3, dtype=torch.complex64))
        self.register_buffer("half_buffer", torch.zeros(3, dtype=torch.float16))
        self.register_buffer("transposed", torch.zeros(3, 2).t())
        self.register_buffer("scalar", torch.zeros(()))
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("mask", torch.ones(3, dtype=torch.bool))
        self.register_buffer("hidden", torch.zeros(4), persistent=False)

    def forward(self, inputs):
        used = self.narrow.float().sum() + self.wide.sum() + self.strided.sum() + self.phase.abs().sum()
        return self.norm(self.body(inputs)) + used


def held(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
