"""What users combine with a round, trained twice, on the device and on the host: features.py RESULTS.

Both must end at the same model, up to the order in which a GPU sums; a copy on the device is compared bit for bit.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import comm, device, report

import pushsum_opt as ps

STEPS = 12
HOST = torch.device("cpu")


def network() -> torch.nn.Module:
    """No bias before the norm: its gradient would be rounding alone, which Adam takes for a direction."""
    torch.manual_seed(3)
    first = torch.nn.Linear(24, 40, bias=False)
    return torch.nn.Sequential(first, torch.nn.BatchNorm1d(40), torch.nn.Tanh(), torch.nn.Linear(40, 10))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + comm.rank)
    return torch.randn(32, 24, generator=generator), torch.randint(10, (32,), generator=generator)


class Training:
    """One model and its optimizer on one device."""

    def __init__(self, where: torch.device, inner: Callable[..., Any], **options: Any) -> None:
        self.model = network().to(where)
        self.where = where
        self.optimizer = ps.PushSumOptimizer(inner(self.model.parameters()), self.model, **options)

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last):
            images, labels = (tensor.to(self.where) for tensor in batch(step))
            self.optimizer.zero_grad()
            torch.nn.functional.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()

    def end(self) -> list[torch.Tensor]:
        """The model of all ranks, on the host."""
        with self.optimizer.averaged():
            found = [tensor.detach().double().cpu() for tensor in self.model.state_dict().values()]
        self.optimizer.close()
        return found


def trained(
    inner: Callable[..., Any], algorithm: Callable[[], Any] = lambda: None, **options: Any
) -> Callable[[torch.device], list[torch.Tensor]]:
    def run(where: torch.device) -> list[torch.Tensor]:
        training = Training(where, inner, algorithm=algorithm(), **options)
        training.steps(0, STEPS)
        return training.end()

    return run


def resumed(where: torch.device) -> list[torch.Tensor]:
    """A checkpoint in the middle, another training meanwhile, then back: what follows is the same, bit for bit."""
    training = Training(where, adamw, staleness=1)
    with tempfile.TemporaryDirectory() as folder:
        folder = ps.broadcast_object(folder)
        training.steps(0, 5)
        ps.checkpoint.save(folder, training.optimizer)
        training.steps(5, 9)
        first = [tensor.clone() for tensor in training.model.state_dict().values()]
        ps.checkpoint.load(folder, training.optimizer)
        training.steps(5, 9)
        again = list(training.model.state_dict().values())
        assert all(map(torch.equal, first, again)), "what was resumed is not what was saved"
        assert all(tensor.device.type == where.type for tensor in again)
        ps.barrier()
    return training.end()


def kept_in_memory(where: torch.device) -> list[torch.Tensor]:
    """A run ends badly after a checkpoint in memory; the next one begins with the same bits."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(ps.broadcast_object(name))

        def begin() -> tuple[Training, Any]:
            training = Training(where, adamw)
            memory = {"memory_every": 2, "memory_directory": folder, "memory_limit": 1.0}
            return training, ps.checkpoint.Saver(folder / "disk", training.optimizer, **memory)

        training, saver = begin()
        for step in range(6):
            training.steps(step, step + 1)
            saver.after_step(step=step + 1)
        saved = [tensor.clone() for tensor in training.model.state_dict().values()]
        saver._end(well=False)  # as where the process is killed: what is in memory stays
        training.optimizer.close()
        training, saver = begin()
        resumed = saver.resume()
        assert resumed is not None, "nothing was found in memory"
        assert resumed["step"] == 6
        found = list(training.model.state_dict().values())
        assert all(map(torch.equal, saved, found)), "what was resumed is not what was kept"
        assert all(tensor.device.type == where.type for tensor in found)
        training.steps(6, 9)
        ended = training.end()
        saver.close()
        ps.barrier()
    return ended


def collectives(where: torch.device) -> list[torch.Tensor]:
    mine = torch.arange(7, dtype=torch.float32, device=where) + comm.rank
    model = network().to(where)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += comm.rank
    ps.broadcast_parameters(model)
    metric = ps.Metric()
    metric.update(mine.mean(), 3)
    mean, total = ps.average(mine), ps.sum(mine)
    assert mean.device.type == total.device.type == where.type
    last = torch.tensor(float(metric.compute()))
    return [last, mean.cpu(), total.cpu(), *(tensor.detach().cpu() for tensor in model.parameters())]


def live_distance(where: torch.device) -> list[torch.Tensor]:
    """What every rank reads without waiting: the logarithm, so that what is compared is relative."""
    training = Training(where, sgd, staleness=1, graph=ps.graphs.Complete())
    for step in range(16):  # a window has two rounds, and the fourth sketch gives the first distance
        training.steps(step, step + 1)
        found = training.optimizer.means()
    training.optimizer.close()
    return [torch.tensor(found["consensus_distance"]).log()]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3)


def fused(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3, fused=True)


def capturable(parameters: Any) -> torch.optim.Optimizer:
    """Its step counts are on the device."""
    parameters = list(parameters)
    return torch.optim.AdamW(parameters, lr=torch.tensor(3e-3), capturable=parameters[0].is_cuda)


CASES = {
    "AdamW, synchronous": trained(adamw),
    "AdamW, staleness 1": trained(adamw, staleness=1),
    "AdamW, fused": trained(fused, staleness=1),
    "AdamW, capturable, a rate that is a tensor": trained(capturable, staleness=1),
    "AdamW, plain": trained(adamw, staleness=1, adaptive="plain"),
    "NAdam": trained(lambda parameters: torch.optim.NAdam(parameters, lr=2e-3)),
    "slow momentum": trained(sgd, lambda: ps.algorithms.SlowMomentum(every=4), staleness=1),
    "periodic averages": trained(sgd, lambda: ps.algorithms.PeriodicAverage(4), staleness=1),
    "buffers gossip": trained(sgd, buffers="gossip"),
    "bfloat16 on the wire": trained(sgd, wire_dtype=torch.bfloat16, staleness=1),
    "every second step": trained(sgd, gossip_every=2),
    "gradients within the host": trained(sgd, within_host="gradients"),
    "unequal data": trained(sgd, data_weight=1.0 + comm.rank, staleness=2),
    "resumed": resumed,
    "kept in memory": kept_in_memory,
    "collectives": collectives,
    "live distance": live_distance,
}
far = {}
for name, run in CASES.items():
    if len(sys.argv) > 2 and sys.argv[2] not in name:
        continue
    try:
        pairs = zip(run(device), run(HOST), strict=True)
        far[name] = max(float((one - other).abs().max() / (1 + other.abs().max())) for one, other in pairs)
    except ps.PushSumError as error:
        far[name] = f"{type(error).__name__}: {error}"
report(far=far)
