"""Outer steps in plain numpy, as their papers write them: oracles that share nothing with the library but the pairs."""

from __future__ import annotations

import numpy as np

import pushsum_opt as ps


def pairs(size: int, outer_step: int, seed: int = 0) -> list[list[int]]:
    """Return for each rank who is in its pair, itself included."""
    graph = ps.graphs.RandomMatching(seed)
    return [[i, *graph.out_peers(i, size, outer_step)] for i in range(size)]


def descend(x: np.ndarray, targets: np.ndarray, gamma: float, steps: int) -> np.ndarray:
    """Gradient descent of every rank alone, on half the square distance to its target."""
    for _ in range(steps):
        x = x - gamma * (x - targets)
    return x


def noloco(targets, outer_steps, every, alpha, beta, gamma, *, seed=0, rate=0.1, start=0.0):
    """Two means over the pair, of what the inner steps have moved and of the slow weights; phi of every outer step."""
    size = len(targets)
    phi = np.full(targets.shape, start)
    delta = np.zeros_like(phi)
    history = []
    for t in range(outer_steps):
        moved = descend(phi, targets, rate, every) - phi
        pair = pairs(size, t, seed)
        mean_moved = np.array([moved[members].mean(0) for members in pair])
        mean_phi = np.array([phi[members].mean(0) for members in pair])
        delta = alpha * delta + beta * mean_moved - gamma * (phi - mean_phi)
        phi = phi + delta
        history.append(phi)
    return history


def diloco(targets, outer_steps, every, lr, mu, *, data_weights=None, rate=0.1, start=0.0):
    """Algorithm 1 of Douillard et al. (2023) with Nesterov momentum; phi of every outer step."""
    phi = np.full(targets.shape[1:], start)
    b = np.zeros_like(phi)
    history = []
    for _ in range(outer_steps):
        theta = descend(np.broadcast_to(phi, targets.shape), targets, rate, every)
        outer_gradient = np.average(phi - theta, axis=0, weights=data_weights)
        b = mu * b + outer_gradient
        phi = phi - lr * (outer_gradient + mu * b)
        history.append(phi)
    return history
