"""What a metric that is averaged over ranks costs overlapped gossip: ps.average() in every batch against ps.Metric.

    pushsum run -np 4 examples/benchmarks/metric.py --staleness 2

Computing is stood in for by sleeping, so that four ranks fit on few cores; with probability 1/10 a rank sleeps four
times as long in a step, as ranks that stumble now and then do. Each way is timed in turn, several times, in one run;
the table shows medians over the repeats, of the slowest rank's time over its own compute. A machine that is busy with
other things adds to all of them.
"""

import argparse
import random
import statistics
import time

import torch

import pushsum_opt as ps

NAP_S = 0.02


def train(way: str, steps: int, staleness: int | str, seed: int) -> float:
    """Return the slowest rank's time over the time that it asked for."""
    model = torch.nn.Linear(100, 100)
    optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.01), model, staleness=staleness)
    naps = random.Random(1000 * seed + ps.rank())
    metric, inputs, asked = ps.Metric(), torch.randn(4, 100), 0.0
    begin = time.perf_counter()
    for _ in range(steps):
        nap = NAP_S * (4 if naps.random() < 0.1 else 1)
        asked += nap
        time.sleep(nap)
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        optimizer.step()
        if way == "ps.average":
            ps.average(loss.detach())
        elif way == "ps.Metric":
            metric.update(loss)
    if way == "ps.Metric":
        metric.compute()
    took = (time.perf_counter() - begin) / asked
    optimizer.close()
    return max(ps.allgather(took))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--staleness", default="2", help="an int, or unbounded")
    arguments = parser.parse_args()
    staleness = arguments.staleness if arguments.staleness == "unbounded" else int(arguments.staleness)
    ways = ("none", "ps.Metric", "ps.average")
    times: dict[str, list[float]] = {way: [] for way in ways}
    train("none", 5, staleness, 0)  # the first use of everything
    for repeat in range(arguments.repeats):
        for way in ways:
            times[way].append(train(way, arguments.steps, staleness, repeat))
    if ps.rank() == 0:
        print(f"{ps.size()} ranks, {arguments.steps} steps, staleness {staleness}: x compute, slowest rank")
        for way, found in times.items():
            print(f"  {way:10}  {statistics.median(found):.2f}  ({min(found):.2f} to {max(found):.2f})")


if __name__ == "__main__":
    main()
