"""A run in which one rank is slow, to try out `pushsum top` and `pushsum report`.

    pushsum run -np 4 examples/slow_rank.py --metrics slow-run
    pushsum top slow-run                                     # in another terminal, meanwhile
    pushsum report slow-run -o report.html                   # meanwhile, or afterwards

Every rank sleeps in place of loading data and of computing; rank 2 needs three times as long for its data. A little
least-squares problem is solved beside that.
"""

from __future__ import annotations

import argparse
import time

import torch

import pushsum_opt as ps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--metrics", default="slow-run", help="folder for the metrics (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--slow", type=int, default=2, help="the rank whose data takes longer; -1: none")
    parser.add_argument("--seconds", type=float, default=0.04, help="what the data of a step takes on other ranks")
    parser.add_argument("--staleness", default="0", help="0, 1, 2, ... or unbounded")
    args = parser.parse_args()
    staleness = args.staleness if args.staleness == "unbounded" else int(args.staleness)

    torch.manual_seed(0)
    model = torch.nn.Linear(100, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    optimizer = ps.PushSumOptimizer(optimizer, model, graph=ps.graphs.Ring(), staleness=staleness)
    metrics = ps.observe.Metrics(optimizer, jsonl=args.metrics)
    target = torch.randn(100, 10)
    torch.manual_seed(1 + ps.rank())  # from here on every rank has data of its own
    for _ in range(args.steps):
        optimizer.zero_grad()
        with ps.observe.span("data"):
            inputs = torch.randn(16, 100)
            time.sleep(args.seconds * (3 if ps.rank() == args.slow else 1))
        with ps.observe.span("forward and backward"):
            loss = (model(inputs) - inputs @ target).square().mean()
            loss.backward()
            time.sleep(args.seconds)
        optimizer.step()
        metrics.log(loss=loss)
    optimizer.close()


if __name__ == "__main__":
    main()
