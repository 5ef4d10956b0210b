"""One host of two ranks against torch's DDP over the same two, on the same data: python like_ddp.py FOLDER."""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

import pushsum_opt as ps

rank, size = ps.rank(), ps.size()
store = dist.FileStore(str(Path(sys.argv[1]) / "store"), size)
dist.init_process_group("gloo", store=store, rank=rank, world_size=size)


class Net(nn.Module):
    """One part of it is used by rank 1 alone in odd steps, and one never."""

    def __init__(self, recompute=False):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 40), nn.Linear(40, 40), nn.Linear(40, 2)
        self.sometimes, self.never = nn.Linear(40, 2), nn.Linear(3, 3)
        self.recompute = recompute

    def forward(self, inputs, odd):
        hidden = torch.tanh(self.first(inputs))
        second = self.second
        if self.recompute:
            hidden = torch.relu(checkpoint(second, hidden, use_reentrant=self.recompute == "reentrant"))
        else:
            hidden = torch.relu(second(hidden))
        return self.last(hidden) + (self.sometimes(hidden) if odd and rank else 0)


def data(k):
    generator = torch.Generator().manual_seed(100 * rank + k)
    inputs = 5 * torch.randn(8, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(8, 2, generator=generator, dtype=torch.float64)


def train(case, ours):
    torch.manual_seed(0)
    model = Net(case if case in ("reentrant", "recompute") else False).double()
    inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if ours:
        optimizer, trained = ps.PushSumOptimizer(inner, model, within_host="gradients"), model
        no_sync = optimizer.no_sync
    else:
        optimizer = inner
        # DDP cannot find unused parameters where backward() runs inside backward(): there, none is unused.
        if case == "reentrant":
            for part in (model.sometimes, model.never):
                part.requires_grad_(False)
        trained = nn.parallel.DistributedDataParallel(model, find_unused_parameters=case != "reentrant")
        no_sync = trained.no_sync
    forward = torch.compile(trained, backend="aot_eager") if case == "compiled" and ours else trained
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for k in range(6):
        odd = k % 2 and case != "reentrant"
        optimizer.zero_grad(set_to_none=case != "zeros")
        parts = 3 if "accumulat" in case else 1
        for part in range(parts):
            inputs, targets = data(10 * k + part)
            quiet = no_sync() if case == "accumulating without sync" and part < parts - 1 else nullcontext()
            with quiet:
                loss = (forward(inputs, odd) - targets).square().mean() / parts
                if case == "scaled":
                    loss = scaler.scale(loss)
                if case == "twice" and ours:
                    loss.backward(retain_graph=True)
                (2 * loss if case == "twice" and not ours else loss).backward()  # DDP takes one backward per forward
        if case == "scaled":
            scaler.unscale_(optimizer)
        if case == "by hand":  # replaced by other tensors, as libraries do
            for p in model.parameters():
                p.grad = None if p.grad is None else p.grad.clamp(-0.01, 0.01)
        elif case == "clipped by value":
            nn.utils.clip_grad_value_(model.parameters(), 0.01)
        elif case == "frozen":
            model.second.weight.grad = None
        else:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        if case == "scaled":
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
    found = [p.detach().clone() for p in model.parameters()]
    if ours:
        optimizer.close()
    return found


for case in (
    "clipped", "zeros", "scaled", "accumulating", "accumulating without sync", "clipped by value", "by hand", "frozen",
    "twice", "recompute", "reentrant", "compiled",
):  # fmt: skip
    for mine, its in zip(train(case, True), train(case, False), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-12, msg=lambda text, case=case: f"{case}: {text}")
dist.destroy_process_group()
print(f"rank {rank} of {size}: ok")
