"""Trains a linear model with every baseline of examples/benchmarks/baselines, one after the other, and writes the
models of all ranks after each step: python baselines.py RESULT.npz STEPS."""

import sys
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "examples" / "benchmarks"))
from baselines.ad_psgd import ADPSGD
from baselines.d_psgd import DPSGD
from baselines.ddp import distributed
from baselines.local_sgd import LocalSGD

result, steps = sys.argv[1], int(sys.argv[2])
world = MPI.COMM_WORLD
SHAPE = (12, 16)


def sample(rank: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """What a rank learns from in a step: the tests make the same."""
    random = np.random.default_rng([rank, step])
    return random.standard_normal(SHAPE[1]), random.standard_normal(SHAPE[0])


def linear() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    torch.nn.init.constant_(model.weight, 0.1 * (1 + world.rank))  # all are to begin with that of rank 0
    return model, torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)


def backward(model: torch.nn.Module, step: int) -> None:
    inputs, wanted = (torch.tensor(part, dtype=torch.float32) for part in sample(world.rank, step))
    model.zero_grad()
    (0.5 * (model(inputs) - wanted).square().sum()).backward()


def trace(called: torch.nn.Module, trained, weight: torch.Tensor) -> np.ndarray:
    """Return the models of all ranks after each step: steps x ranks x rows x columns."""
    found = []
    for step in range(steps):
        backward(called, step)
        trained.step()
        found.append(weight.detach().clone().numpy())
    return np.stack(world.allgather(np.stack(found)), 1)


arrays = {}

for size in dict.fromkeys([world.size, 3]):  # with three, one has no partner in some steps
    part = world.Split(0 if world.rank < size else MPI.UNDEFINED)
    found = None
    if part != MPI.COMM_NULL:
        model, optimizer = linear()
        trained = DPSGD(optimizer, model, part)
        found = []
        for step in range(steps):
            backward(model, step)
            trained.step()
            found.append(model.weight.detach().clone().numpy())
        average = trained.average()
        trained.close()
        part.Free()
        np.testing.assert_array_equal(trained.x, model.weight.detach().reshape(-1))
    arrays[f"d-psgd {size}"] = np.stack([one for one in world.allgather(found) if one is not None], 1)
    if world.rank == 0:
        arrays[f"d-psgd {size} average"] = average.reshape(SHAPE)

model, optimizer = linear()
trained = LocalSGD(optimizer, model, every=3)
arrays["local sgd"] = trace(model, trained, model.weight)
trained.close()

# AD-PSGD is another one in every run. What holds in each of them: averages move no mean, updates move it by their mean.
model, optimizer = linear()
trained = ADPSGD(optimizer, model, seed=1)
updates = np.zeros(SHAPE)
before = torch.empty(SHAPE)


def remember(*_) -> None:
    before.copy_(model.weight.detach())


def count(*_) -> None:
    updates[:] += (model.weight.detach() - before).numpy()


optimizer.register_step_pre_hook(remember)
optimizer.register_step_post_hook(count)
for step in range(steps):
    backward(model, step)
    trained.step()
arrays["ad-psgd average"] = trained.average().reshape(SHAPE)
arrays["ad-psgd updates"] = np.stack(world.allgather(updates))
for group in optimizer.param_groups:
    group["lr"], group["momentum"] = 0.0, 0.0
apart = [np.ptp(np.stack(world.allgather(trained.x.copy())), 0).max()]
for _ in range(12):  # nobody learns any more: averages alone
    backward(model, 0)
    trained.step()
    trained.average()  # all are through with theirs
    apart.append(np.ptp(np.stack(world.allgather(trained.x.copy())), 0).max())
arrays["ad-psgd apart"] = np.array(apart)
arrays["ad-psgd average later"] = trained.average().reshape(SHAPE)
arrays["ad-psgd averages"] = np.array(world.allgather(trained.averages))
trained.close()

torch.distributed.init_process_group("gloo", rank=world.rank, world_size=world.size)
for kind, more in {
    "plain": {},
    "fp16": {},
    "powersgd": {"low_rank": 2, "warm_up": 2},
    "post-local": {"warm_up": 4, "every": 3},
}.items():
    model, optimizer = linear()
    arrays[f"ddp {kind}"] = trace(*distributed(model, optimizer, kind, **more), model.weight)
torch.distributed.destroy_process_group()

if world.rank == 0:
    np.savez(result, **arrays)
