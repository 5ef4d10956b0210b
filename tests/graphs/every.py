"""Every family, with several settings each."""

from __future__ import annotations

from pushsum_opt import graphs
from pushsum_opt.errors import GraphError

SIZES = [*range(1, 18), 20, 24, 25, 27, 31, 32, 33, 48, 64, 100]
"""All small ones; beyond, primes, powers, products of small and of large factors, and both neighbours of a power."""


def offsets(rank, size, round):
    """A user's function: two peers, then one; in Python's usual forms."""
    if round % 2:
        return (rank + 1) % size
    return {(rank + 1) % size, (rank + 1 + round % (size - 1)) % size}


def uneven(rank, size, round):
    """A user's function with shares: even ranks give more."""
    return {(rank + 1) % size: 0.6 if rank % 2 == 0 else 0.2}


def every_graph(size):
    """Return graphs of every family that are defined at this size."""
    ring = [(rank, (rank + 1) % size) for rank in range(size)] if size > 1 else []
    back = [(rank, (rank - 1) % size, 0.25) for rank in range(size)] if size > 1 else []
    candidates = [
        *graphs.families(size),
        graphs.KPeerExponential(1),
        graphs.KPeerExponential(3),
        graphs.KPeerExponential(9),
        graphs.BaseK(3),
        graphs.BaseK(4),
        graphs.BaseK(7),
        graphs.Torus(rows=2),
        graphs.Star(centre=size - 1),
        graphs.EquiDyn(seed=5, eta=0.3),
        graphs.RandomPeer(seed=-3),
        graphs.RandomMatching(seed=2**70),
        graphs.Hierarchical(4, outer=graphs.Ring(), inner=graphs.OnePeerExponential()),
        graphs.Hierarchical(3, outer=graphs.RandomPeer(1)),
        graphs.Hierarchical(5, inner=graphs.Star(), outer=uneven),
        graphs.Schedule([(3, graphs.KPeerExponential(2)), (7, graphs.RandomPeer()), (None, graphs.BaseK(1))]),
        graphs.from_function(offsets, period=2 * max(1, size - 1)),
        graphs.from_function(uneven),
        graphs.from_edges(ring, back),
    ]
    return [graph for graph in candidates if defined(graph, size)]


def defined(graph, size):
    try:
        graph.check_size(size)
    except GraphError:
        return False
    return True


def looked_at(graph, size):
    """Return rounds of a period, or some where that is long or missing, and one far on."""
    return [*range(min(graph.period(size) or 8, 24)), 123_456_789]
