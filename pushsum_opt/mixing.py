"""Mixing matrices: what a round does to the mass of all ranks. Pure numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .graphs import Graph

__all__ = ["mixing_matrix"]


def mixing_matrix(graph: Graph, size: int, round: int) -> npt.NDArray[np.float64]:
    """Return P(k), shape (n, n): column i says where the mass of rank i goes; its columns sum to 1.

    >>> from pushsum_opt.graphs import Ring
    >>> mixing_matrix(Ring(), 3, 0)
    array([[0.5, 0. , 0.5],
           [0.5, 0.5, 0. ],
           [0. , 0.5, 0.5]])
    """
    matrix = np.zeros((size, size))
    for rank in range(size):
        given = 0.0
        for peer, share in graph.gives(rank, size, round):
            matrix[peer, rank] = share
            given += share
        matrix[rank, rank] = 1.0 - given
    return matrix
