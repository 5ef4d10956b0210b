"""Who sends to whom: one family per file, pure functions of (rank, size, round).

``docs/graphs.md`` says which one to choose; :func:`resolve` makes a checked graph from what a user gives.
"""

from __future__ import annotations

from .base import Graph
from .base_k import BaseK
from .bipartite import BipartiteExponential
from .complete import Complete
from .default import default
from .edges import from_edges, from_networkx
from .equi_dyn import EquiDyn
from .exponential import KPeerExponential, OnePeerExponential, StaticExponential
from .families import families
from .function import from_function
from .hierarchical import Hierarchical
from .hypercube import Hypercube
from .random_matching import RandomMatching
from .random_peer import RandomPeer
from .resolve import resolve
from .ring import Ring
from .schedule import Schedule
from .speed import SlowMixingWarning
from .star import Star
from .torus import Torus

__all__ = [
    "BaseK",
    "BipartiteExponential",
    "Complete",
    "EquiDyn",
    "Graph",
    "Hierarchical",
    "Hypercube",
    "KPeerExponential",
    "OnePeerExponential",
    "RandomMatching",
    "RandomPeer",
    "Ring",
    "Schedule",
    "SlowMixingWarning",
    "Star",
    "StaticExponential",
    "Torus",
    "default",
    "families",
    "from_edges",
    "from_function",
    "from_networkx",
    "resolve",
]
