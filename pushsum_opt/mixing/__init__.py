"""What rounds do to the mass of all ranks: mixing matrices, and how fast they bring the ranks together. Pure numpy.

With Phi = P(k - 1) ... P(0), ranks that start at z and a hold z(k) = diag(Phi a)^-1 Phi diag(a) z after k rounds of
push-sum, and tend to the weighted mean a^T z / n [1]_. The analysis looks at the matrix
E = diag(Phi a)^-1 Phi diag(a) - 1 a^T / n, which takes where the ranks start to how far they still are from that mean.
Its norm is the worst case.

References:
    .. [1] Kempe, Dobra, Gehrke (2003). Gossip-Based Computation of Aggregate Information. FOCS.
"""

from __future__ import annotations

from .analysis import Mixing, analyse, second_singular_value
from .matrices import mixing_matrix, window_matrix

__all__ = ["Mixing", "analyse", "mixing_matrix", "second_singular_value", "window_matrix"]
