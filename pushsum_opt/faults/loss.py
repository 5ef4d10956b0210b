"""What is known of a loss, for the user."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Loss"]


@dataclass(frozen=True)
class Loss:
    """Ranks that died together, or so shortly after each other that one recovery covers them."""

    ranks: tuple[int, ...]
    """The ranks that were lost, by their numbers when the job was started."""

    round: int
    """The first round of the survivors without them."""

    mass: float
    """The mass that was lost, of n before it: what the dead held, and what they had given and nobody had opened."""

    taken_back: int
    """Messages whose mass went back to their senders, over all survivors."""

    mass_taken_back: float
    """Their mass, in all. The mean of the models moves by at most the sum of m times the distance between z now and z
    as it was sent, over these messages."""

    seconds: float
    """How long the recovery took on this rank, from the moment that it noticed to the moment that it could go on."""

    replaced: tuple[int, ...] = ()
    """Those of :attr:`ranks` whose places spares have taken since."""
