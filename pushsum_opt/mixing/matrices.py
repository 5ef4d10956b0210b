"""Mixing matrices: where a round, or several, take the mass of each rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..graphs.convert import as_graph
from ..graphs.sparse import sparse_round

__all__ = ["Floats", "mixing_matrix", "window_matrix"]

Floats = npt.NDArray[np.float64]


def mixing_matrix(graph: Any, size: int, round: int) -> Floats:
    """Return P(k) of a ``graph`` on n = ``size`` ranks in ``round`` k, shape (n, n); its columns sum to 1.

    Column i says where the mass of rank i goes.

    >>> from pushsum_opt.graphs import Ring
    >>> mixing_matrix(Ring(), 3, 0)
    array([[0.5, 0. , 0.5],
           [0.5, 0.5, 0. ],
           [0. , 0.5, 0.5]])
    """
    return sparse_round(as_graph(graph), size, round).apply(np.eye(size))


def window_matrix(graph: Any, size: int, rounds: int, first: int = 0) -> Floats:
    """Return P(first + rounds - 1) ... P(first + 1) P(first) of a ``graph``, shape (n, n) with n = ``size``.

    >>> from pushsum_opt.graphs import OnePeerExponential
    >>> window_matrix(OnePeerExponential(), 4, 2)[0]
    array([0.25, 0.25, 0.25, 0.25])
    """
    graph = as_graph(graph)
    product = np.eye(size)
    for round in range(first, first + rounds):
        product = sparse_round(graph, size, round).apply(product)
    return product
