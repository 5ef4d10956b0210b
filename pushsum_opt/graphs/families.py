"""One graph of each family, to compare."""

from __future__ import annotations

from ..errors import GraphError
from .base import Graph
from .base_k import BaseK
from .bipartite import BipartiteExponential
from .complete import Complete
from .equi_dyn import EquiDyn
from .exponential import KPeerExponential, OnePeerExponential, StaticExponential
from .hierarchical import Hierarchical
from .hypercube import Hypercube
from .random_matching import RandomMatching
from .random_peer import RandomPeer
from .ring import Ring
from .star import Star
from .torus import Torus

__all__ = ["families"]


def families(size: int, local_size: int | None = None) -> list[Graph]:
    """Return one graph of each family that is defined at this size, some with two settings.

    Args:
        size: number of ranks.
        local_size: ranks per host, for :class:`Hierarchical`; None for the largest divisor of size up to 8.

    >>> len(families(32)), [graph for graph in families(7) if "Hyper" in repr(graph)]
    (16, [])
    """
    if local_size is None:
        local_size = next(lanes for lanes in range(8, 0, -1) if size % lanes == 0)
    candidates = [
        OnePeerExponential(),
        KPeerExponential(2),
        StaticExponential(),
        BaseK(1),
        BaseK(2),
        Hypercube(),
        BipartiteExponential(),
        EquiDyn(),
        RandomPeer(),
        RandomMatching(),
        *([Hierarchical(local_size)] if local_size > 1 else []),
        Torus(),
        Ring(),
        Ring(peers=2),
        Star(),
        Complete(),
    ]
    return [graph for graph in candidates if _defined(graph, size)]


def _defined(graph: Graph, size: int) -> bool:
    try:
        graph.check_size(size)
    except GraphError:
        return False
    return True
