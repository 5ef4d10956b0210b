"""What rounding on the wire costs in training: accuracy, how far ranks stay apart, and bytes, for each wire_dtype.

    python examples/benchmarks/wire_dtypes.py                     # 8 ranks in threads, some minutes
    python examples/benchmarks/wire_dtypes.py --seeds 3 --epochs 5 --json wires.json

Trains the network of examples/digits.py on 8 ranks, each on its own shard. Every dtype begins with the same weights and
sees the same batches. The spread is the largest distance over ranks of a model from the average of all, as a part of
that average's norm.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from pathlib import Path

import torch
from torch import nn

import pushsum_opt as ps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from digits import accuracy, datasets, network

WIRES = [None, "bfloat16", "int8"]


def train(
    comm, weights: dict[str, torch.Tensor], seed: int, epochs: int, staleness: int, wire: str | None
) -> dict[str, float]:
    """Return what one rank has found.

    Args:
        weights: of the network at the start. Ranks in threads share torch's generator, so none of them draws its own.
    """
    images, labels = datasets()[0].tensors
    model = network()
    model.load_state_dict(weights)
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = ps.PushSumOptimizer(inner, model, staleness=staleness, wire_dtype=wire, comm=comm)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    batch = 64 // comm.size
    for epoch in range(epochs):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        mine = order[: len(order) // 64 * 64].reshape(-1, comm.size, batch)[:, comm.rank]
        for chosen in mine:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
        schedule.step()
    distance = ps.consensus_distance(optimizer)
    stats = optimizer.stats()
    with optimizer.averaged():
        norm = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).norm().item()
        right = accuracy(model, datasets()[1])
    rounds = stats["round"]
    optimizer.close()
    return {
        "accuracy": right,
        "spread": distance / norm,
        "missed": stats["blocks_missed"],
        "bytes": stats["bytes_sent"] / rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    logging.getLogger("pushsum_opt").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = []
    print("staleness  wire dtype  accuracy                spread   bytes a step  blocks missed")
    for staleness in (0, 1):
        for wire in WIRES:
            found = []
            for seed in range(arguments.seeds):
                torch.manual_seed(seed)
                weights = network().state_dict()

                def rank(comm, weights=weights, seed=seed, staleness=staleness, wire=wire):
                    return train(comm, weights, seed, arguments.epochs, staleness, wire)

                ranks = ps.testing.run(arguments.ranks, rank)
                one = {**ranks[0], "missed": sum(r["missed"] for r in ranks)}
                rows.append({"staleness": staleness, "wire": wire, "seed": seed, **one})
                found.append(one)
            right = [100 * one["accuracy"] for one in found]
            spread, nbytes = (statistics.mean(one[key] for one in found) for key in ("spread", "bytes"))
            missed = sum(one["missed"] for one in found)
            print(
                f"{staleness:9}  {wire or 'float32':10}  {statistics.mean(right):.2f} ({min(right):.2f} to "
                f"{max(right):.2f})  {spread:.5f}  {nbytes:12.0f}  {missed:13.0f}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
