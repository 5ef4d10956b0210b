"""Eight bits for a number that the receiver nearly knows: its place on a grid, modulo 256.

Two ranks are close to each other, far closer than their weights are to 0. So a sender gives only the place k of z on a
grid of step d *modulo 256*, and the receiver takes the k that is congruent to it and nearest to its own z / d. That is
right as long as the two differ by less than 127 d (Lu and De Sa 2020, "Moniqua", put into push-sum: here the sender
keeps what rounding took away, so the mean over ranks stays exact).

Numbers are taken in blocks of :data:`BLOCK`. Each block has its own theta = 128 d, and two check sums over the
multiples of 256 that were left out: a receiver that took a wrong one sees it.

Pure functions on arrays of shape (blocks, BLOCK), the same for numpy and torch: ``xp`` is the module. All whole numbers
in here stay below 2^24, so float32 holds them exactly, and the order of summing does not matter. What costs is the
number of passes over an array, some 0.2 ns for each element: so each pass writes to memory that is there already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "BLOCK",
    "ROWS",
    "Scratch",
    "add_times",
    "are_far",
    "bounds_after",
    "check_weights",
    "decode",
    "encode",
    "largest",
    "largest_difference",
    "steps_of",
    "theta_of",
]

Array = Any

BLOCK = 512
"""Elements that share a theta. It and the check sums cost 12 bytes for each block."""

ROWS = 128
"""Blocks that are worked on at a time: they and the scratch stay in the cache of a processor."""

LEVELS = 256.0
HALF = 128.0

SAFETY = 4.0
"""theta is so many times the largest difference that was seen lately."""

FAR = 1.75
"""A block that comes out wrong where this rank's own bound is above so many times its sender's: the ranks move apart
faster than news of it travels."""

LEAST_SHARE = 2.0**-7
"""theta is at least this fraction of the largest element of its block. A block which has not moved for long, such as a
row of an embedding, may then move by a usual step at once; and multiples of 256 stay within 64, which keeps check sums
below 2^24."""

LEAST_THETA = 2.0**-100
"""theta of a block of zeros: d and 1 / d are still normal numbers in float32."""

PRIME = 521  # the first one above BLOCK


@dataclass(frozen=True)
class Scratch:
    """What the functions below work in, for one dtype on one device; each of shape (ROWS, BLOCK)."""

    own: Array
    """For elements that do not lie together in one tensor."""
    places: Array
    multiples: Array
    work: Array
    integers: Array
    """Of int32."""
    weights: Array
    """Of shape (2, BLOCK): see :func:`check_weights`."""


def check_weights() -> tuple[list[float], list[float]]:
    """Return the weights of the two check sums, by position p in a block: p, and p^2 modulo a prime.

    Two sums of powers: they differ where one to three multiples are off by one, and where four are, two up and two
    down; of other patterns about one in 10^6 escapes.

    >>> [weights[:3] for weights in check_weights()]
    [[1.0, 2.0, 3.0], [1.0, 4.0, 9.0]]
    """
    positions = range(1, BLOCK + 1)
    return [float(p) for p in positions], [float(p * p % PRIME) for p in positions]


def theta_of(xp: Any, peaks: Array, bounds: Array) -> Array:
    """Return theta of each block, shape (blocks,); inf or nan where its peak is inf or nan.

    Args:
        peaks: the largest elements, as :func:`largest` gives them.
        bounds: the largest differences that were seen lately.
    """
    theta = xp.clip(xp.maximum(bounds * SAFETY, peaks * LEAST_SHARE), LEAST_THETA, None)
    return xp.where(xp.isfinite(peaks), theta, peaks)


def steps_of(theta: Array) -> tuple[Array, Array]:
    """Return d and 1 / d of each block, each of shape (blocks, 1)."""
    step = (theta / HALF)[:, None]
    return step, 1.0 / step


def encode(xp: Any, z: Array, step: Array, inverse: Array, scratch: Scratch) -> tuple[Array, Array, Array]:
    """Find the place of each element on its grid.

    Args:
        z: finite, shape (blocks, BLOCK).
        step, inverse: as :func:`steps_of` gives them, of finite thetas.

    Returns:
        (k, z - q, sums): places, not yet modulo 256, and what rounding takes away, both of the shape of z and in the
        scratch; and the check sums, of shape (2, blocks).
    """
    places, multiples, lost = (array[: len(z)] for array in (scratch.places, scratch.multiples, scratch.work))
    xp.multiply(z, inverse, out=places)
    xp.round(places, out=places)
    xp.multiply(places, 1.0 / LEVELS, out=multiples)
    xp.floor(multiples, out=multiples)
    sums = xp.matmul(scratch.weights, multiples.T)
    _minus_product(xp, z, places, step, out=lost)
    return places, lost, sums


def decode(xp: Any, places: Array, step: Array, inverse: Array, mine: Array, scratch: Scratch) -> tuple[Array, Array]:
    """Find the multiples of 256 that make what has come nearest to this rank's own elements.

    Args:
        places: k mod 256, shape (blocks, BLOCK); becomes q.
        step, inverse: of the sender.
        mine: z of this rank, shape (blocks, BLOCK).

    Returns:
        (sums, seen): the check sums, of shape (2, blocks); and the largest |q - z| of each block.
    """
    multiples, work = (array[: len(mine)] for array in (scratch.multiples, scratch.work))
    _minus_product(xp, places, mine, inverse, out=work)
    work *= -1.0 / LEVELS
    xp.round(work, out=multiples)
    sums = xp.matmul(scratch.weights, multiples.T)
    add_times(xp, places, multiples, LEVELS)
    places *= step
    return sums, largest_difference(xp, places, mine, scratch)


def _minus_product(xp: Any, one: Array, first: Array, second: Array, out: Array) -> None:
    """Write one - first x second to ``out``, in one pass where the module has it."""
    if hasattr(xp, "addcmul"):
        xp.addcmul(one, first, second, value=-1, out=out)
    else:
        xp.multiply(first, second, out=out)
        xp.subtract(one, out, out=out)


def add_times(xp: Any, target: Array, array: Array, factor: float) -> None:
    """Add ``factor`` x ``array`` to ``target``, in one pass if the module has it; otherwise ``array`` changes too."""
    if hasattr(xp, "addcmul"):
        target.add_(array, alpha=factor)
    else:
        array *= factor
        target += array


def largest(xp: Any, array: Array, scratch: Scratch) -> Array:
    """Return the largest absolute element of each block; nan where one is nan."""
    work = scratch.work[: len(array)]
    xp.absolute(array, out=work)
    return xp.amax(work, 1)


def largest_difference(xp: Any, one: Array, other: Array, scratch: Scratch) -> Array:
    """Return the largest absolute difference in each block; nan where one is nan."""
    work = scratch.work[: len(one)]
    xp.subtract(one, other, out=work)
    xp.absolute(work, out=work)
    return xp.amax(work, 1)


def bounds_after(xp: Any, bounds: Array, right: Array, seen: Array, theta: Array | None = None) -> Array:
    """Return the bounds after a message: the largest difference that is known, to this rank or to the sender.

    Where the sender's was too low, twice that. It travels on, with every message, to all ranks: those that send to this
    one have to know it. A rank that doubled its own bound again and again before they know would make only its own
    steps coarser, and what these take from its values would drive it away from the others.

    Args:
        right: for which blocks ``seen`` is the difference.
        theta: as it came; None: the message was whole, and blocks that are not right are not finite here.
    """
    known = xp.where(right, xp.maximum(bounds, seen), bounds)
    if theta is None:
        return known
    heard = theta / SAFETY
    return xp.maximum(known, xp.where(right, heard, 2.0 * heard))


def are_far(bounds: Array, theta: Array) -> Array:
    """Tell of blocks that came out wrong whether that is news to their sender alone; see :data:`FAR`.

    Args:
        bounds: of this rank, before the message.
        theta: as it came.
    """
    return bounds > FAR * (theta / SAFETY)
