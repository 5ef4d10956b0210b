"""Adam under push-sum with moments that travel and are corrected, all ranks at once, in numpy and float64.

Written from the rules in docs/adaptive.md, and independent of the library: no torch, no code of pushsum_opt.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SHAPES = ((4, 3), (5,))


def start(number: int) -> np.ndarray:
    return np.random.default_rng(100 + number).normal(size=SHAPES[number])


def gradient(z: np.ndarray, number: int, step: int, rank: int) -> np.ndarray:
    """Return the gradient of a quadratic form that differs from rank to rank, with noise that is of one step."""
    fixed = np.random.default_rng([7, number, rank])
    noise = np.random.default_rng([8, number, rank, step])
    curvature = fixed.uniform(0.5, 2.0, SHAPES[number])
    return curvature * (z - fixed.normal(size=SHAPES[number])) + noise.normal(size=SHAPES[number])


@dataclass(frozen=True)
class Setting:
    """What all ranks have in common."""

    lr: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    decoupled: bool = True
    maximize: bool = False
    amsgrad: bool = False
    staleness: int = 0
    average_every: int | None = None
    """Every such round is an exact average, of z and m, after all that is in flight was merged."""
    skips: bool = False
    """Some parameters have no gradient in some steps."""

    def lacks(self, number: int, step: int, rank: int) -> bool:
        return self.skips and number == 1 and (step < rank or (step + rank) % 4 == 3)


@dataclass
class Rank:
    a: float
    w: float
    z: list[np.ndarray]
    m: list[np.ndarray] = field(default_factory=lambda: [np.zeros(shape) for shape in SHAPES])
    v: list[np.ndarray] = field(default_factory=lambda: [np.zeros(shape) for shape in SHAPES])
    largest: list[np.ndarray] = field(default_factory=lambda: [np.zeros(shape) for shape in SHAPES])
    t: list[int] = field(default_factory=lambda: [0 for _ in SHAPES])


def train(setting: Setting, peers, data_weights: list[float], steps: int):
    """Give all ranks after each step; they are changed by the next one."""
    n = len(data_weights)
    a = np.array(data_weights) * n / sum(data_weights)
    theta = float(((a / n) ** 2).sum())
    ranks = [Rank(a[i], a[i], [start(number) for number in range(len(SHAPES))]) for i in range(n)]
    in_flight: dict[int, list[tuple[int, int, float, list[np.ndarray], list[np.ndarray]]]] = {}  # by round
    for k in range(steps):
        for i, rank in enumerate(ranks):
            local_step(setting, rank, theta, k, i)
        exact = setting.average_every is not None and (k + 1) % setting.average_every == 0
        if not exact:
            awaited = len(in_flight)
            in_flight[k] = [message for i in range(n) for message in give(setting, ranks[i], peers, i, n, k, awaited)]
        for sent in [sent for sent in in_flight if exact or k - sent == setting.staleness]:
            merge(ranks, in_flight.pop(sent), setting.beta1 ** (k - sent))
        if exact:
            average(ranks)
        yield ranks


def local_step(setting: Setting, rank: Rank, theta: float, k: int, i: int) -> None:
    b1, b2, f = setting.beta1, setting.beta2, rank.a / rank.w
    for number in range(len(SHAPES)):
        if setting.lacks(number, k, i):
            continue
        z = rank.z[number]
        g = gradient(z, number, k, i) * (-1 if setting.maximize else 1)
        g = g if setting.decoupled else g + setting.weight_decay * z
        rank.t[number] = t = rank.t[number] + 1
        mixed = b1 * rank.m[number] + (1 - b1) * f * g
        m = mixed if t > 1 else (1 - b1) * g  # the first step is plain Adam's
        m_hat = m / (1 - b1**t)
        v = b2 * rank.v[number] + (1 - b2) * ((1 - theta) * m_hat**2 + theta * g**2)
        rank.m[number], rank.v[number] = mixed, v
        rank.largest[number] = np.maximum(rank.largest[number], v)
        used = rank.largest[number] if setting.amsgrad else v
        update = m_hat / (np.sqrt(used / (1 - b2**t)) + setting.epsilon)
        decay = setting.weight_decay * z if setting.decoupled else 0.0
        rank.z[number] = z - f * setting.lr * (update + decay)


def give(setting: Setting, rank: Rank, peers, i: int, n: int, k: int, awaited: int):
    out = peers(i, n, k)
    tau, d = setting.staleness, len(out)
    given = rank.w * d / (1 + d)
    if d and awaited < tau:  # nothing comes back yet
        given = min(rank.a * d / (1 + d + tau * d), rank.w / (1 + tau - awaited))
    rank.w -= given
    return [(i, j, given / d, [z.copy() for z in rank.z], [m.copy() for m in rank.m]) for j in out]


def merge(ranks: list[Rank], messages, decayed: float) -> None:
    for _, j, mass, z, m in sorted(messages, key=lambda message: message[0]):
        rank = ranks[j]
        total = rank.w + mass
        for number in range(len(SHAPES)):
            rank.z[number] = (rank.w * rank.z[number] + mass * z[number]) / total
            rank.m[number] = (rank.w * rank.m[number] + mass * decayed * m[number]) / total
        rank.w = total


def average(ranks: list[Rank]) -> None:
    total = sum(rank.w for rank in ranks)
    for number in range(len(SHAPES)):
        z = sum(rank.w * rank.z[number] for rank in ranks) / total
        m = sum(rank.w * rank.m[number] for rank in ranks) / total
        for rank in ranks:
            rank.z[number], rank.m[number] = z.copy(), m.copy()
    for rank in ranks:
        rank.w = rank.a
