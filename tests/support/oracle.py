"""Algorithm 1 of the paper in the paper's own form: numerators and weights, dense matrices, plain numpy.

Written from the paper (Assran et al. 2019, Algorithm 1), sharing no code and no reformulation with the library: the
library stores z and scales the local step, this stores x and w.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


@dataclass
class Trajectory:
    z: Matrix  # (rounds + 1, n, d)
    w: Matrix  # (rounds + 1, n)


def stochastic_gradient_push(
    z0: Matrix,
    data_weights: Matrix,
    matrices: Callable[[int], Matrix],
    gradient: Callable[[int, int, Matrix], Matrix],
    learning_rate: float,
    rounds: int,
) -> Trajectory:
    """Run it.

    Args:
        z0: (n, d), where each rank starts.
        data_weights: (n,), v_i; the ranks minimise sum_i v_i f_i / sum v.
        matrices: round -> P, (n, n), column i says where rank i's mass goes.
        gradient: (rank, round, z_i) -> (d,), the gradient of f_i at z_i.
        learning_rate: gamma.
    """
    n = len(z0)
    a = n * data_weights / data_weights.sum()
    w = a.copy()
    x = z0 * w[:, None]
    z = x / w[:, None]
    history_z, history_w = [z], [w]
    for k in range(rounds):
        steps = np.stack([gradient(i, k, z[i]) for i in range(n)])
        x_half = x - learning_rate * a[:, None] * steps
        x = matrices(k) @ x_half
        w = matrices(k) @ w
        z = x / w[:, None]
        history_z.append(z)
        history_w.append(w)
    return Trajectory(np.stack(history_z), np.stack(history_w))


@cache
def irregular_column_stochastic(n: int, round: int, seed: int) -> tuple[list[list[int]], Matrix]:
    """Return, for a round, everyone's out-peers (irregular, time-varying) and the matrix with uneven shares.

    A directed ring is always part of it, so that mass reaches everybody in time.
    """
    random = np.random.default_rng([seed, round, n])
    peers: list[list[int]] = []
    matrix = np.zeros((n, n))
    for i in range(n):
        others = [j for j in range(n) if j != i]
        count = int(random.integers(0, min(4, len(others)) + 1)) if others else 0
        chosen = set(random.choice(others, count, replace=False).tolist()) if count else set()
        if others and round % 2 == 0:
            chosen.add((i + 1) % n)
        peers.append(sorted(chosen))
        shares = random.dirichlet(np.ones(len(chosen) + 1) * 3)
        matrix[i, i] = shares[0]
        for j, share in zip(sorted(chosen), shares[1:], strict=True):
            matrix[j, i] = share
    return peers, matrix


def overlapped_push(
    z0: Matrix,
    data_weights: Matrix,
    matrices: Callable[[int], Matrix],
    gradient: Callable[[int, int, Matrix], Matrix],
    learning_rate: float,
    rounds: int,
    staleness: int,
    *,
    biased: bool = False,
) -> Trajectory:
    """Run Algorithm 2 with a message in every round: what is given in round k arrives in round k + staleness.

    While fewer than ``staleness`` rounds are in flight, a rank with d out-peers gives a d / (1 + d + staleness d) in
    all. With ``biased`` the weights are left out: z is taken to be x, as if w were 1.
    """
    n = len(z0)
    a = n * data_weights / data_weights.sum()
    w = a.copy()
    x = z0 * w[:, None]
    z = x / w[:, None]
    in_flight: dict[int, tuple[Matrix, Matrix]] = {}
    history_z, history_w = [z], [w]
    for k in range(rounds):
        x = x - learning_rate * a[:, None] * np.stack([gradient(i, k, z[i]) for i in range(n)])
        p = matrices(k).copy()
        given = p - np.diag(np.diag(p))
        if k < staleness:
            degree = (given > 0).sum(0)
            budget = a * degree / (1 + degree + staleness * degree)
            total = given.sum(0)
            given = given * np.where(total > 0, budget / np.where(total > 0, total, 1) / w, 0.0)
        kept = 1 - given.sum(0)
        in_flight[k] = (given @ x, given @ w)
        arrived_x, arrived_w = in_flight.pop(k - staleness, (0.0, 0.0))
        x = kept[:, None] * x + arrived_x
        w = kept * w + arrived_w
        z = x if biased else x / w[:, None]
        history_z.append(z)
        history_w.append(w)
    return Trajectory(np.stack(history_z), np.stack(history_w))


def overlap_sgp(
    z0: Matrix,
    data_weights: Matrix,
    matrices: Callable[[int], Matrix],
    gradient: Callable[[int, int, Matrix], Matrix],
    learning_rate: float,
    rounds: int,
    tau: int,
) -> Trajectory:
    """Run the paper's Algorithm 2 (Overlap SGP) as it stands there: a message every ``tau`` iterations.

    A node sends in the iterations 0, tau, 2 tau, ... and, tau iterations after a send, blocks until what its in-peers
    sent then has come. ``matrices`` is asked in the iterations that send. One thing differs from the paper: the very
    first message carries mass a d / (1 + d + tau d) rather than the share p, so that w begins low enough for mass to be
    on its way all the time.
    """
    n = len(z0)
    a = n * data_weights / data_weights.sum()
    w = a.copy()
    x = z0 * w[:, None]
    z = x / w[:, None]
    count_since_last = 0
    buffer: tuple[Matrix, Matrix] | None = None
    history_z, history_w = [z], [w]
    for k in range(rounds):
        x = x - learning_rate * a[:, None] * np.stack([gradient(i, k, z[i]) for i in range(n)])
        arriving = None
        if k > 0 and count_since_last == tau:
            arriving, buffer, count_since_last = buffer, None, 0
        if k % tau == 0:
            p = matrices(k)
            given = p - np.diag(np.diag(p))
            if k == 0:
                degree = (given > 0).sum(0)
                first = degree / (1 + degree + tau * degree)
                given = given * np.where(given.sum(0) > 0, first / np.where(given.sum(0) > 0, given.sum(0), 1), 0.0)
            buffer = (given @ x, given @ w)
            kept = 1 - given.sum(0)
            x, w = kept[:, None] * x, kept * w
        if arriving is not None:
            x, w = x + arriving[0], w + arriving[1]
        count_since_last += 1
        z = x / w[:, None]
        history_z.append(z)
        history_w.append(w)
    return Trajectory(np.stack(history_z), np.stack(history_w))
