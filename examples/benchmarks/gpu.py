"""What a round costs on GPUs: ResNet-50's 161 tensors (25.6 M float32), against copies within the same GPU.

    pushsum run -np 2 examples/benchmarks/gpu.py
    PUSHSUM_CUDA_AWARE=0 pushsum run -np 2 examples/benchmarks/gpu.py
    pushsum run -np 2 examples/benchmarks/gpu.py --json gpu.json --repeat 51
    torchrun --nproc-per-node 2 examples/benchmarks/gpu.py
    PUSHSUM_NCCL=1 torchrun --nproc-per-node 2 examples/benchmarks/gpu.py

Several ranks may share one GPU; then they also share its bandwidth. In one run, interleaved:

    copy      the bytes of the model, from one place of the GPU to another
    pack      all tensors into slabs; its floor is a copy: every byte read once and written once
    merge     what came is checked, then merged into all tensors; its floor is two copies: three bytes read (twice what
              came, once the tensor) for one written
    gossip    a synchronous round: pack, messages, checks and merges
    bare      the plain SGD step, on one rank
    wrapped   the step of PushSumOptimizer around the same SGD, on one rank: no messages, only the wrapper
    train     forward, backward and step of ResNet-50 (torchvision, where it is installed): plain, with a synchronous
              round, and with the round overlapped (staleness 1)

NCCL refuses two ranks on one GPU, unless it takes them for ranks of two hosts: with PUSHSUM_NCCL=1 each rank sets an
NCCL_HOSTID of its own where there are more ranks than GPUs. Its messages go through sockets then, so what they cost
says nothing about two GPUs.

The figures are medians of the slowest rank. Without a GPU it says so and ends with code 1; ``--anyway`` takes the host,
to try the script out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shapes import resnet50_shapes

import pushsum_opt as ps
from pushsum_opt.job.process_groups import Job

Actions = dict[str, Callable[[], object]]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(device: torch.device, actions: Actions, repeat: int) -> dict[str, float]:
    """Return the milliseconds of each action on the slowest rank, the actions interleaved."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeat + 3):
        for name, action in actions.items():
            synchronize(device)
            ps.barrier()
            begin = time.perf_counter()
            action()
            synchronize(device)
            milliseconds = 1e3 * max(ps.allgather(time.perf_counter() - begin))
            if turn >= 3:
                times[name].append(milliseconds)
    return {name: statistics.median(values) for name, values in times.items()}


def parameters_on(device: torch.device) -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(torch.randn(shape, device=device) * 1e-2) for shape in resnet50_shapes()]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-6)
    return parameters


def rounds(device: torch.device, repeat: int) -> tuple[dict[str, float], str]:
    """Time copies, packing, merging and whole rounds."""
    tensors = parameters_on(device)
    count = sum(tensor.numel() for tensor in tensors)
    here, there = torch.zeros(count, device=device), torch.zeros(count, device=device)
    with ps.PushSum(tensors, graph=ps.graphs.Ring()) as push_sum:
        memory = push_sum.memory
        slabs = {chunk.index: memory.new_slab(chunk.nbytes, chunk.device) for chunk in memory.chunks}

        def merge() -> None:
            verdicts = [memory.merge_if_finite(chunk, slabs[chunk.index], 1.0, 1.0) for chunk in memory.chunks]
            assert all(verdict.outcome().finite for verdict in verdicts)

        actions: Actions = {
            "copy": lambda: there.copy_(here),
            "pack": lambda: [memory.pack(chunk, slabs[chunk.index]) for chunk in memory.chunks],
            "merge": merge,
        }
        if ps.size() > 1:
            actions["gossip"] = push_sum.mix
        return medians(device, actions, repeat), memory.name


def wrapper(device: torch.device, repeat: int) -> dict[str, float]:
    """Time a step with and without the wrapper, each rank by itself."""
    bare = torch.optim.SGD(parameters_on(device), lr=0.1, momentum=0.9)
    inner = torch.optim.SGD(parameters_on(device), lr=0.1, momentum=0.9)
    optimizer = ps.PushSumOptimizer(inner, comm=Job(None, 0, 1, "this rank alone").everyone())
    found = medians(device, {"bare": bare.step, "wrapped": optimizer.step}, repeat)
    optimizer.close()
    return found


def train(device: torch.device, repeat: int, batch: int, make: Callable[[], Any]) -> dict[str, float]:
    """Time whole steps of ResNet-50, one way after another: a model at a time fits."""
    found = {}
    ways: list[tuple[str, int | None]] = [("train, plain", None)]
    if ps.size() > 1:
        ways += [("train, synchronous", 0), ("train, overlapped", 1)]
    for name, staleness in ways:
        torch.manual_seed(ps.rank())
        model = make().to(device)
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        if staleness is not None:
            optimizer = ps.PushSumOptimizer(optimizer, model, staleness=staleness)
        images = torch.randn(batch, 3, 224, 224, device=device)
        labels = torch.randint(1000, (batch,), device=device)

        def step(model: Any = model, optimizer: Any = optimizer, images: Any = images, labels: Any = labels) -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

        found |= medians(device, {name: step}, repeat)
        if staleness is not None:
            optimizer.close()
    return found


def resnet50() -> Callable[[], Any] | None:
    try:
        from torchvision.models import resnet50 as make
    except (ImportError, RuntimeError):  # RuntimeError: a build for another torch
        return None
    return lambda: make(weights=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=21, help="timed runs of each (default 21)")
    parser.add_argument("--batch", type=int, default=64, help="images per rank and step (default 64)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--anyway", action="store_true", help="run on the host where there is no GPU")
    arguments = parser.parse_args()
    if os.environ.get("PUSHSUM_NCCL") == "1" and ps.local_size() > torch.cuda.device_count():
        os.environ["NCCL_HOSTID"] = f"rank {ps.rank()}"
    device = ps.local_device()
    if device.type != "cuda" and not arguments.anyway:
        if ps.rank() == 0:
            print("this benchmark needs a GPU, and torch sees none: nothing was measured", file=sys.stderr)
        sys.exit(1)

    times, memory = rounds(device, arguments.repeat)
    times |= wrapper(device, arguments.repeat)
    make = resnet50()
    if make is not None and device.type == "cuda":
        times |= train(device, arguments.repeat, arguments.batch, make)

    gigabytes = sum(4 * torch.Size(shape).numel() for shape in resnet50_shapes()) / 1e9
    rates = {name: gigabytes / times[name] * 1e3 for name in ("copy", "pack", "merge", "gossip") if name in times}
    ratios = {
        "pack / its floor": times["pack"] / times["copy"],
        "merge / its floor": times["merge"] / (2 * times["copy"]),
    }
    ratios["(wrapped - bare) / bare"] = (times["wrapped"] - times["bare"]) / times["bare"]
    if "gossip" in times:
        ratios["gossip / copy"] = times["gossip"] / times["copy"]
    if "train, overlapped" in times:
        for way in ("synchronous", "overlapped"):
            ratios[f"train, {way} / plain"] = times[f"train, {way}"] / times["train, plain"]
    if ps.rank() == 0:
        figures: dict[str, Any]
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU: these figures mean nothing"
        print(f"{ps.size()} ranks, {where}, {memory}, {1e3 * gigabytes:.0f} MB of parameters, {arguments.repeat} runs")
        for name, milliseconds in times.items():
            rate = f"{rates[name]:8.1f} GB/s" if name in rates else ""
            print(f"  {name:20} {milliseconds:9.3f} ms {rate}")
        for name, ratio in ratios.items():
            print(f"  {name:30} {ratio:7.3f}")
        if make is None:
            print("  torchvision is not installed (or not for this torch): no training was timed")
        if arguments.json:
            figures = {"ranks": ps.size(), "device": where, "memory": memory, "median_ms": times, "gb_per_s": rates}
            figures |= {"ratios": ratios}
            arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
