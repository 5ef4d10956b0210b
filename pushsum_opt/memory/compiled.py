"""The passes in eight bits over host memory, compiled by numba; imported only where that is installed.

A pass of torch reads and writes whole arrays, and eight bits need some ten of them each way. Compiled, a block is read
once and stays in registers and the nearest cache: a sixth of the processor time. What goes over the wire, z, bounds and
residuals have the bits that torch gives them (``modulo.py``; ``coded_kernels.py`` has the same for GPUs). Only elements
of ours that are inf, in a block that is kept, stay inf here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import modulo

__all__ = ["Compiled", "compile_passes"]

OnHost = npt.NDArray[Any]


class Compiled(NamedTuple):
    """The passes for one work dtype. They begin with a table of this rank's z, and let go of the interpreter lock.

    The table is where runs of elements lie, one after the other: addresses and numbers of elements, both int64. Other
    arrays are flat and contiguous: bounds, of the work dtype, for each block; theta and two check sums, float32, for
    each block; places, uint8, for each element.
    """

    encode: Callable[[OnHost, OnHost, OnHost, bool, float, OnHost, OnHost, OnHost, OnHost, OnHost], None]
    """``encode(addresses, counts, residual, has_residual, keep, bounds, theta, first, second, places)`` writes what
    travels. ``keep`` times what rounding takes away is added to z, or to the residual (float32) if there is one."""

    merge: Callable[[OnHost, OnHost, float, OnHost, OnHost, OnHost, OnHost, OnHost], tuple[int, bool]]
    """``merge(addresses, counts, fraction, bounds, theta, first, second, places)`` moves z by a fraction of the way to
    what has come, and bounds after it. Thetas are finite. Returns how many blocks came out wrong, and whether one of
    these was far."""


def compile_passes(work: str) -> Compiled:
    """Compile the passes for a work dtype, float32 or float64: a second or two.

    The result is not kept on disk. numba's cache would mix up what processes write at once, on hosts of several kinds.
    """
    return _compile(np.dtype(work).type)


def _inline(function: Callable[..., Any]) -> Any:
    return numba.njit(function)


# ---------------------------------------------------------------------- operations for which numba has no name


def _one_to_one(name: str) -> Any:
    """Return an operation of LLVM on one real number, which processors do to many at a time."""

    def operation(_: Any, number: Any) -> Any:
        def build(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
            return builder.call(builder.module.declare_intrinsic(name, [arguments[0].type]), arguments)

        return number(number), build

    return intrinsic(operation)


def _plus_product(_: Any, one: Any, other: Any, added: Any) -> Any:
    def build(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        if isinstance(added, types.Integer):  # of 32 bits, where numba would go on in 64
            return builder.add(builder.mul(arguments[0], arguments[1]), arguments[2])
        return builder.fma(*arguments)

    return added(one, other, added), build


def _larger_size(_: Any, size: Any, number: Any) -> Any:
    def build(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        bits = builder.and_(builder.bitcast(arguments[1], kind), ir.Constant(kind, 2 ** (kind.width - 1) - 1))
        return builder.select(builder.icmp_signed(">", bits, arguments[0]), bits, arguments[0])

    return size(size, number), build


def _real_of(_: Any, size: Any) -> Any:
    real = types.float64 if size.bitwidth == 64 else types.float32

    def build(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(real))

    return real(size), build


nearest = _one_to_one("llvm.rint")
"""To the nearest whole number, ties to even."""

below = _one_to_one("llvm.floor")
"""The largest whole number that is not above."""

plus_product: Any = intrinsic(_plus_product)
"""``plus_product(x, y, sum)``: x y + sum, rounded once."""

larger_size: Any = intrinsic(_larger_size)
"""``larger_size(size, x)``: the larger of a size and that of x. A size is an integer, the bits of a number without its
sign: they are in the order of the numbers, with nan above inf, and processors compare many at a time."""

real_of: Any = intrinsic(_real_of)
"""The number that a size stands for."""


def _pointer_to(_: Any, address: Any, like: Any) -> Any:
    def build(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    pointer: Any = types.CPointer(like.dtype)  # type: ignore[no-untyped-call]
    return pointer(address, like), build


pointer_to: Any = intrinsic(_pointer_to)
"""``pointer_to(address, array)``: a pointer to elements of the dtype of an array."""


# ---------------------------------------------------------------------- a block and the runs that it lies in


@_inline
def elements_at(address: int, count: int, like: OnHost) -> OnHost:
    """Return the elements at an address, of the dtype of an array."""
    return numba.carray(pointer_to(address, like), (count,))  # type: ignore[attr-defined]


@_inline
def copy_block(block: OnHost, addresses: OnHost, counts: OnHost, run: int, at: int, back: bool) -> tuple[int, int]:
    """Gather a block of elements, the first one at a place in a run, or write it back; return where it ends."""
    done = 0
    while done < len(block):
        taken = min(len(block) - done, counts[run] - at)
        elements, part = elements_at(addresses[run], counts[run], block)[at : at + taken], block[done : done + taken]
        for i in range(taken):
            if back:
                elements[i] = part[i]
            else:
                part[i] = elements[i]
        done, at = done + taken, at + taken
        if at == counts[run]:
            run, at = run + 1, 0
    return run, at


@_inline
def take_block(room: OnHost, addresses: OnHost, counts: OnHost, run: int, at: int) -> tuple[OnHost, int, int, bool]:
    """Return a block of as many elements as there is room for: where it lies, if that is in one run, or gathered into
    the room; where it ends; and whether it was gathered."""
    length, left = len(room), counts[run] - at
    if length > left:
        run, at = copy_block(room, addresses, counts, run, at, False)
        return room, run, at, True
    own = elements_at(addresses[run], counts[run], room)[at : at + length]
    return (own, run + 1, 0, False) if length == left else (own, run, at + length, False)


# ---------------------------------------------------------------------- the passes


def _compile(real: Any) -> Compiled:
    """Compile them. What they take from here becomes part of them."""
    block = modulo.BLOCK
    levels, half, share = real(modulo.LEVELS), real(modulo.HALF), real(1 / modulo.LEVELS)
    safety, far, least_share, least = (
        real(number) for number in (modulo.SAFETY, modulo.FAR, modulo.LEAST_SHARE, modulo.LEAST_THETA)
    )
    zero, one, two, middle, most, nan = (real(number) for number in (0, 1, 2, 0.5, 8192, np.nan))
    integer = np.int64 if real is np.float64 else np.int32
    infinite = integer(np.array(np.inf, real).view(integer))
    limit = np.float32(np.inf)
    first_weights, second_weights = (np.array(weights, np.int32) for weights in modulo.check_weights())

    def encode(
        addresses: OnHost,
        counts: OnHost,
        residual: OnHost,
        has_residual: bool,
        keep: float,
        bounds: OnHost,
        theta: OnHost,
        first: OnHost,
        second: OnHost,
        places: OnHost,
    ) -> None:
        room, lost = np.empty(block, bounds.dtype), np.empty(block, bounds.dtype)
        run, at = 0, 0
        for number in range(len(bounds)):
            start = number * block
            length = min(block, len(places) - start)
            this_run, this_at = run, at
            own, run, at, gathered = take_block(room[:length], addresses, counts, run, at)
            sent = places[start : start + length]
            largest = integer(0)
            for i in range(length):
                largest = larger_size(largest, own[i])
            peak = real_of(largest)
            wanted = max(max(bounds[number] * safety, peak * least_share), least)
            theta[number] = wanted if largest < infinite else peak if largest == infinite else nan
            if not abs(theta[number]) < limit:  # sent as zeros; theta tells of it
                first[number] = second[number] = 0
                sent[:] = 0
                continue
            step = real(theta[number]) / half
            inverse = one / step
            sum_1, sum_2 = np.int32(0), np.int32(0)
            for i in range(length):
                k = nearest(own[i] * inverse)
                multiple = np.int32(below(k * share))
                sum_1 = plus_product(first_weights[i], multiple, sum_1)
                sum_2 = plus_product(second_weights[i], multiple, sum_2)
                sent[i] = np.uint8(np.int32(k))
                lost[i] = plus_product(-k, step, own[i])
            first[number], second[number] = sum_1, sum_2
            if has_residual:
                kept = residual[start : start + length]
                for i in range(length):
                    kept[i] = plus_product(np.float32(lost[i]), np.float32(keep), kept[i])
            elif keep != zero:
                for i in range(length):
                    own[i] = plus_product(lost[i], keep, own[i])
                if gathered:
                    copy_block(own, addresses, counts, this_run, this_at, True)

    def merge(
        addresses: OnHost,
        counts: OnHost,
        fraction: float,
        bounds: OnHost,
        theta: OnHost,
        first: OnHost,
        second: OnHost,
        places: OnHost,
    ) -> tuple[int, bool]:
        room, theirs = np.empty(block, bounds.dtype), np.empty(block, bounds.dtype)
        run, at = 0, 0
        missed, one_is_far = 0, False
        for number in range(len(bounds)):
            start = number * block
            length = min(block, len(places) - start)
            this_run, this_at = run, at
            own, run, at, gathered = take_block(room[:length], addresses, counts, run, at)
            came = places[start : start + length]
            step = real(theta[number]) / half
            inverse = one / step
            largest = integer(0)
            sum_1, sum_2 = np.int32(0), np.int32(0)
            for i in range(length):
                place = real(np.int32(came[i]))
                multiple = nearest(plus_product(-own[i], inverse, place) * -share)
                # No finite block has more: larger ones, and nan, count as this many.
                counted = multiple if multiple > -most else -most
                whole = np.int32(counted if counted < most else most)
                sum_1 = plus_product(first_weights[i], whole, sum_1)
                sum_2 = plus_product(second_weights[i], whole, sum_2)
                theirs[i] = (place + multiple * levels) * step
                largest = larger_size(largest, theirs[i] - own[i])
            heard = real(theta[number]) / safety
            if largest < infinite and np.float32(sum_1) == first[number] and np.float32(sum_2) == second[number]:
                bounds[number] = max(max(bounds[number], real_of(largest)), heard)
                if fraction < middle:  # from the nearer end, as torch does
                    for i in range(length):
                        own[i] = plus_product(fraction, theirs[i] - own[i], own[i])
                else:
                    for i in range(length):
                        own[i] = plus_product(fraction - one, theirs[i] - own[i], theirs[i])
                if gathered:
                    copy_block(own, addresses, counts, this_run, this_at, True)
            else:
                missed += 1
                one_is_far = one_is_far or bounds[number] > far * heard
                bounds[number] = max(bounds[number], two * heard)
        return missed, one_is_far

    element, whole_numbers, single = numba.from_dtype(np.dtype(real)), types.int64[::1], types.float32[::1]
    table = (whole_numbers, whole_numbers)
    coded = (element[::1], single, single, single, types.uint8[::1])  # bounds, theta, first, second, places
    found: Any = types.Tuple((types.int64, types.boolean))  # type: ignore[no-untyped-call]
    compiled = functools.partial(numba.njit, nogil=True, error_model="numpy")
    return Compiled(
        compiled(types.void(*table, single, types.boolean, element, *coded))(encode),
        compiled(found(*table, element, *coded))(merge),
    )
