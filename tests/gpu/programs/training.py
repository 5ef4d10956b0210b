"""A small model trained on the device: training.py RESULTS HOW, with HOW one of plain, compile, graphs, amp."""

import sys

import torch
from common import comm, device, digest, report

import pushsum_opt as ps

how = sys.argv[2]
torch.manual_seed(comm.rank)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)).to(device)
inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
optimizer = ps.PushSumOptimizer(inner, model, staleness=1)
inputs = torch.randn(256, 64, device=device)
targets = (inputs[:, :10]).argmax(1)
forward = torch.compile(model) if how == "compile" else model
scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16, enabled=how == "amp")
skipped = 0


def loss_of():
    with torch.autocast(device.type, torch.float16, enabled=how == "amp"):
        return torch.nn.functional.cross_entropy(forward(inputs).float(), targets)


def capture():
    """Capture forward and backward; gradients keep their place, so that the replay fills them."""
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            loss_of().backward()
    torch.cuda.current_stream().wait_stream(warm)
    optimizer.zero_grad(set_to_none=True)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        loss = loss_of()
        loss.backward()
    return captured, loss


captured, static_loss = capture() if how == "graphs" else (None, None)
refused = ""
if how == "graphs":
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            optimizer.push_sum.memory._device.current()
    except ps.PushSumError as error:
        refused = str(error)
losses = []
optimizer.means()  # from now on the distance is measured, beside graphs and whatever else there is
for step in range(40):
    if captured is not None:
        captured.replay()
        losses.append(static_loss.item())
        optimizer.step()
        continue
    optimizer.zero_grad()
    loss = loss_of()
    scaler.scale(loss).backward()
    if how == "amp" and step == 5 and comm.rank == 0:
        next(model.parameters()).grad[0, 0] = float("inf")
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    skipped += scaler.get_scale() < before
    losses.append(loss.item())
optimizer.drain()
weight, rounds = optimizer.push_weight, optimizer.round
distance = ps.consensus_distance(optimizer)
live = optimizer.means().get("consensus_distance")
finite = all(bool(p.isfinite().all()) for p in model.parameters())
total = ps.average(weight, data_weight=1.0)
bits = digest(model.parameters())
optimizer.close()
report(
    losses=losses,
    weight=weight,
    mean_weight=total,
    rounds=rounds,
    distance=distance,
    live=live,
    finite=finite,
    skipped=skipped,
    refused=refused,
    digest=bits,
)
