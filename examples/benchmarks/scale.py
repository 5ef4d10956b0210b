"""Many ranks on one machine, without torch: do they start, agree and average?

    pushsum run -np 256 examples/benchmarks/scale.py
    pushsum run -np 64 examples/benchmarks/scale.py --elements 100000

Every rank holds its own random vector. One cycle of the default graph (8 rounds at 256 ranks) must bring every element
of every rank to the mean over ranks, to 1e-12; the mass must sum to n. Prints the times; fails loudly.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
from mpi4py import MPI

import pushsum_opt as ps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=1000, help="float64 values per rank (default 1000)")
    arguments = parser.parse_args()
    comm = MPI.COMM_WORLD
    begin = time.perf_counter()
    z = np.random.default_rng(comm.rank).normal(size=arguments.elements)
    mean = comm.allreduce(z) / comm.size
    push_sum = ps.PushSum([z])
    constructed = time.perf_counter()
    rounds = push_sum.graph.period(comm.size) or push_sum.graph.window(comm.size)
    for _ in range(rounds):
        push_sum.mix()
    comm.Barrier()
    mixed = time.perf_counter()
    error = comm.allreduce(float(np.abs(z - mean).max()), MPI.MAX)
    mass = comm.allreduce(push_sum.push_weight)
    push_sum.close()
    closed = time.perf_counter()
    if comm.rank == 0:
        print(
            f"{comm.size} ranks, {arguments.elements} elements, torch loaded: {'torch' in sys.modules}\n"
            f"  construction {constructed - begin:7.2f} s\n"
            f"  {rounds:2} rounds    {mixed - constructed:7.2f} s\n"
            f"  close        {closed - mixed:7.2f} s\n"
            f"  largest distance from the mean {error:.1e}, mass {mass!r}"
        )
    if error > 1e-12 or abs(mass - comm.size) > 1e-9:
        raise SystemExit(f"rank {comm.rank}: {error=:.1e}, {mass=}: expected the mean to 1e-12 and mass {comm.size}")


if __name__ == "__main__":
    main()
