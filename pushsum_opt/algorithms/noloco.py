"""Rare exchanges between random pairs of ranks, with outer momentum (NoLoCo)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import ConfigurationError
from ..graphs import Graph, RandomMatching
from ..interrupts import held_back
from ..push_sum import PushSum
from .base import count, number
from .slow_weights import OuterStep, Slow

__all__ = ["NoLoCo"]


class NoLoCo(OuterStep):
    """Every H steps, ranks meet in random pairs and take an outer step with momentum. No rank waits for all others.

    NoLoCo (Kolehmainen, Blagoev, Donaghy, Ersoy and Nies 2025, arXiv 2506.10911; the rule is that of the authors' own
    program, jkolehm/noloco on GitHub). Between outer steps a rank trains alone, from its slow weights phi_i, and comes
    to theta_i. Then, with means over its pair,

        delta_i <- alpha delta_i + beta mean(theta - phi) - gamma (phi_i - mean(phi));   phi_i <- phi_i + delta_i,

    and goes on from phi_i. With gamma = 0 and pairs of all ranks this is momentum on what H steps have moved; the last
    term draws the slow weights of a pair together.

    A rank sends one vector, not two: the mean of c = (beta / gamma) theta + (1 - beta / gamma) phi is all that it needs
    of its pair, because delta_i is alpha delta_i + gamma (mean(c) - phi_i). So an outer step is one round of gossip of
    c, with all that belongs to one: ``wire_dtype``, ``on_loss``, and any ``graph``. On graphs other than matchings, and
    with data weights, the means are those of push-sum. Where n is odd, one rank is its own pair.

    Args:
        every: H, local steps between outer steps.
        outer_lr: beta, > 0; 0.7 in the authors' runs.
        outer_momentum: alpha, 0 <= alpha < 1; 0.5 in the authors' runs. 0.9 needs hundreds of outer steps.
        pull: gamma, > 0, how strongly the slow weights of a pair are drawn together. None: ``outer_lr``, as the authors
            have it, but at most 1 - alpha^2. That keeps the ranks about as close as any value does, and from about
            twice that on momentum drives them apart.
        seed: of the pairs, the same on every rank. They are those of :class:`~pushsum_opt.graphs.RandomMatching`,
            unless the optimizer is given a ``graph``.

    Memory: two copies of the parameters, and during an outer step a third where ``pull`` is not ``outer_lr``. The
    wrapped optimizer keeps its state across outer steps. ``gossip_every`` stays 1: ``every`` says when a round is due.

    Raises:
        ConfigurationError: an argument is out of range.

    >>> NoLoCo(every=50)
    NoLoCo(every=50, outer_lr=0.7, outer_momentum=0.5, pull=0.7, seed=0)
    """

    synchronous = True

    def __init__(
        self,
        every: int = 50,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.5,
        pull: float | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.local_steps = count("every", every, 1)
        self.outer_lr = number("outer_lr", outer_lr, above=0.0)
        self.outer_momentum = number("outer_momentum", outer_momentum, least=0.0, below=1.0)
        closest = 1.0 - self.outer_momentum**2
        self.pull = min(self.outer_lr, closest) if pull is None else number("pull", pull, above=0.0)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigurationError(f"seed={seed!r}: expected an int")
        self.seed = seed

    def default_graph(self) -> Graph:
        return RandomMatching(self.seed)

    @torch.inference_mode(False)  # what is made here is written to outside of it
    @torch.no_grad()
    def round(self, push_sum: PushSum, param_groups: list[dict[str, Any]]) -> None:
        held = self._slow.of(param_groups)
        with _combined(held, self.outer_lr / self.pull):
            push_sum.mix()
        with held_back():  # slow weights, momentum and parameters belong together
            for one in held:
                one.momentum.mul_(self.outer_momentum).add_(one.now - one.weights, alpha=self.pull)
                one.weights.add_(one.momentum)
                one.now.copy_(one.weights)

    def __repr__(self) -> str:
        return (
            f"NoLoCo(every={self.local_steps}, outer_lr={self.outer_lr}, outer_momentum={self.outer_momentum}, "
            f"pull={self.pull}, seed={self.seed})"
        )


@contextmanager
def _combined(held: list[Slow], share: float) -> Iterator[None]:
    """Inside, the parameters hold c = share theta + (1 - share) phi. Where that fails, they get theta back."""
    if share == 1.0:
        yield
        return
    theta = [one.now.clone() for one in held]
    try:
        for one in held:
            one.now.sub_(one.weights).mul_(share).add_(one.weights)
        yield
    except BaseException:
        with held_back():
            for one, mine in zip(held, theta, strict=True):
                one.now.copy_(mine)
        raise
