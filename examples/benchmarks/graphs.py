"""What a graph costs: the peers of one rank and round, construction, and memory, at growing numbers of ranks.

    python examples/benchmarks/graphs.py
    python examples/benchmarks/graphs.py --size 64 --size 4096 --size 65536 --json graphs.json

Needs neither MPI nor torch. For every family:

    peers     microseconds for the out-peers with their shares and the in-peers of one rank in one round, once warm:
              the median over rounds and ranks, and the 99th percentile
    check     milliseconds for the checks at construction
    digest    milliseconds for the fingerprint that ranks compare
    analysis  seconds of this process for pushsum_opt.mixing.analyse, up to 4,096 ranks
    memory    kilobytes that stay allocated after 512 ranks have asked for every round of a period (at most 64 rounds)

Fails where check and digest together take more than a second, or a median of the peers is above 50 microseconds.
Complete, and the centre of Star, have as many peers as there are other ranks, and cannot be cheap: they are not held to
the second limit.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

from pushsum_opt import graphs
from pushsum_opt.graphs import Graph
from pushsum_opt.mixing import analyse

MOST_ANALYSED = 4096  # ranks
AS_MANY_PEERS_AS_RANKS = (graphs.Complete, graphs.Star)


def family(size: int) -> list[Graph]:
    schedule = graphs.Schedule([(1000, graphs.KPeerExponential(2)), (None, graphs.BaseK(1))])
    ring = graphs.from_edges([(rank, (rank + 1) % size) for rank in range(size)])
    return [*graphs.families(size), graphs.BaseK(4), schedule, ring]


def peers_microseconds(graph: Graph, size: int) -> list[float]:
    """Time single questions, each of another rank and round."""
    rounds = min(graph.period(size) or 64, 64)
    questions = [(size * index // 97 % size, index % rounds) for index in range(400)]
    for rank, round in questions:
        graph.gives(rank, size, round)
        graph.in_peers(rank, size, round)
    times = []
    for rank, round in questions:
        begin = time.perf_counter_ns()
        graph.gives(rank, size, round)
        graph.in_peers(rank, size, round)
        times.append((time.perf_counter_ns() - begin) / 1e3)
    return times


def kilobytes(graph: Graph, size: int) -> float:
    gc.collect()
    tracemalloc.start()
    for round in range(min(graph.period(size) or 64, 64)):
        for rank in range(0, size, max(1, size // 512)):
            graph.gives(rank, size, round)
            graph.in_peers(rank, size, round)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / 1024


def milliseconds(action: Any, size: int) -> float:
    begin = time.perf_counter()
    action(size)
    return 1e3 * (time.perf_counter() - begin)


def analysis_seconds(graph: Graph, size: int) -> float:
    """Return 0 where the matrices would be too large."""
    if size > MOST_ANALYSED:
        return 0.0
    begin = time.process_time()
    analyse(graph, size)
    return time.process_time() - begin


def measure(graph: Graph, size: int) -> dict[str, Any]:
    times = peers_microseconds(graph, size)
    return {
        "graph": repr(graph),
        "size": size,
        "peers_us": statistics.median(times),
        "peers_us_99": statistics.quantiles(times, n=100)[98],
        "check_ms": milliseconds(graph.check, size),
        "digest_ms": milliseconds(graph.fingerprint, size),
        "analysis_s": analysis_seconds(graph, size),
        "memory_kb": kilobytes(graph, size),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, action="append", help="ranks; may be repeated (default 64, 256, 4096)")
    parser.add_argument("--limit", type=float, default=50.0, help="microseconds for the peers (default 50)")
    parser.add_argument(
        "--start-limit", type=float, default=1e3, help="milliseconds to check and digest (default 1000)"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    results, slow = [], []
    print(f"{'graph':<54}{'ranks':>7}{'peers':>9}{'99 %':>9}{'check':>9}{'digest':>9}{'analysis':>10}{'memory':>11}")
    for size in arguments.size or [64, 256, 4096]:
        for graph in family(size):
            found = measure(graph, size)
            results.append(found)
            print(
                f"{found['graph'][:53]:<54}{size:>7}{found['peers_us']:>6.1f} us{found['peers_us_99']:>6.1f} us"
                f"{found['check_ms']:>6.1f} ms{found['digest_ms']:>6.1f} ms{found['analysis_s']:>8.2f} s"
                f"{found['memory_kb']:>8.0f} KB"
            )
            if found["peers_us"] > arguments.limit and not isinstance(graph, AS_MANY_PEERS_AS_RANKS):
                slow.append(f"{found['graph']} at {size} ranks: {found['peers_us']:.1f} us for the peers")
            if found["check_ms"] + found["digest_ms"] > arguments.start_limit:
                slow.append(
                    f"{found['graph']} at {size} ranks: {found['check_ms'] + found['digest_ms']:.0f} ms to start"
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if slow:
        print("above the limit: " + "; ".join(slow), file=sys.stderr)
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
