"""Places on a grid modulo 256: what the receiver gets back, and whether it sees where that is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pushsum_opt.memory import modulo
from pushsum_opt.memory.modulo import BLOCK, ROWS, Scratch

BLOCKS = 7


def scratch(xp, dtype):
    tiles = [xp.zeros((ROWS, BLOCK), dtype=getattr(xp, dtype)) for _ in range(4)]
    weights = np.array(modulo.check_weights(), dtype)
    integers = xp.zeros((ROWS, BLOCK), dtype=xp.int32)
    return Scratch(*tiles, integers, weights if xp is np else torch.from_numpy(weights))


def sent(z, theta, work=None):
    """Return places modulo 256, what is lost and check sums as new arrays."""
    places, lost, sums = modulo.encode(np, z, *modulo.steps_of(theta), work or scratch(np, str(z.dtype)))
    return places.astype(np.int32).astype(np.uint8).astype(z.dtype), lost.copy(), sums.copy()


def got(places, theta, sums, mine):
    """Return (q, right, seen)."""
    q = places.copy()
    found, seen = modulo.decode(np, q, *modulo.steps_of(theta), mine, scratch(np, str(mine.dtype)))
    return q, (found == sums).all(0) & np.isfinite(seen), seen


def theta_for(z, bounds):
    return modulo.theta_of(np, modulo.largest(np, z, scratch(np, str(z.dtype))), bounds)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("apart", [0.0, 0.3, 0.99])
def test_receiver_that_is_near_enough_gets_what_was_sent_to_half_a_step(dtype, scale, apart):
    rng = np.random.default_rng(0)
    z = (scale * rng.normal(size=(BLOCKS, BLOCK))).astype(dtype)
    z[3] = 0
    theta = theta_for(z, np.full(BLOCKS, scale / 100, dtype))
    places, lost, sums = sent(z, theta)
    step = theta[:, None] / 128
    assert (np.abs(lost) <= 0.501 * step).all()
    mine = (z + apart * 127 / 128 * theta[:, None] * rng.uniform(-1, 1, z.shape)).astype(dtype)
    q, right, seen = got(places, theta, sums, mine)
    assert right.all()
    np.testing.assert_allclose(q, z, rtol=1e-6, atol=0.501 * step.max())
    np.testing.assert_array_equal(z - lost, q.astype(dtype), "both know the same q, to the last bit" if apart else "")
    np.testing.assert_allclose(seen, np.abs(q - mine).max(1), rtol=1e-6)


@pytest.mark.parametrize("wrong", [1, 2, 3, 4, 20, BLOCK])
def test_block_with_elements_too_far_away_is_seen(wrong):
    """Every element may be off in either direction; here 2000 random choices of them."""
    rng = np.random.default_rng(wrong)
    z = rng.normal(size=(2000, BLOCK)).astype(np.float32)
    theta = np.full(2000, 0.05, np.float32)
    tiles = [np.zeros((2000, BLOCK), dtype) for dtype in ("f4", "f4", "f4", "f4", "i4")]
    work = Scratch(*tiles, np.array(modulo.check_weights(), "f4"))
    places, _, sums = sent(z, theta, work)
    mine = z.copy()
    for row in mine:
        where = rng.choice(BLOCK, wrong, replace=False)
        row[where] += rng.choice([-0.1, 0.1], wrong)
    q = places.copy()
    found, _ = modulo.decode(np, q, *modulo.steps_of(theta), mine, work)
    assert not (found == sums).all(0).any()


def test_a_shift_of_all_elements_by_the_same_amount_is_seen():
    z = np.random.default_rng(1).normal(size=(BLOCKS, BLOCK)).astype(np.float32)
    theta = np.full(BLOCKS, 0.05, np.float32)
    for shift in (0.1, -0.1, 0.3, 1e10, np.inf, np.nan):
        with np.errstate(invalid="ignore"):
            places, _, sums = sent(z, theta)
            assert not got(places, theta, sums, z + np.float32(shift))[1].any()


def test_numpy_and_torch_give_the_same_bits():
    rng = np.random.default_rng(2)
    z = rng.normal(size=(BLOCKS, BLOCK)).astype(np.float32)
    mine = (z + rng.normal(size=z.shape) * 1e-3).astype(np.float32)
    bounds = rng.uniform(0, 1e-2, BLOCKS).astype(np.float32)
    here, there = scratch(np, "float32"), scratch(torch, "float32")
    tz, tmine, tbounds = (torch.from_numpy(array.copy()) for array in (z, mine, bounds))
    theta = modulo.theta_of(np, modulo.largest(np, z, here), bounds)
    ttheta = modulo.theta_of(torch, modulo.largest(torch, tz, there), tbounds)
    np.testing.assert_array_equal(theta, ttheta)
    steps, tsteps = modulo.steps_of(theta), modulo.steps_of(ttheta)
    one, other = modulo.encode(np, z, *steps, here), modulo.encode(torch, tz, *tsteps, there)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-7)  # torch rounds z - k d once, and not twice
    q, tq = one[0] % 256, other[0] % 256
    for a, b in zip(
        modulo.decode(np, q, *steps, mine, here),
        modulo.decode(torch, tq, *tsteps, tmine, there),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(q, tq)


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_theta_tells_of_an_element_that_is_not_finite(poison):
    z = np.ones((3, BLOCK), np.float32)
    z[1, 77] = poison
    theta = theta_for(z, np.zeros(3, np.float32))
    assert np.isfinite(theta).tolist() == [True, False, True]


def test_smallest_numbers_and_zeros_have_a_grid():
    z = np.zeros((2, BLOCK), np.float32)
    z[1] = 1e-45  # subnormal
    theta = theta_for(z, np.zeros(2, np.float32))
    assert (theta > 0).all()
    places, lost, sums = sent(z, theta)
    assert got(places, theta, sums, z)[1].all()
    np.testing.assert_array_equal(lost, z)


def test_bounds_are_the_largest_that_is_known_and_twice_the_senders_where_that_was_too_small():
    bounds, seen = np.array([1.0, 3.0, 1.0, 1.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0, 9.0, np.nan, 9.0])
    theta = modulo.SAFETY * np.array([1.5, 1.5, 2.5, 1.2, 0.7, 0.3])
    right = np.array([True, True, True, False, False, False])
    after = modulo.bounds_after(np, bounds, right, seen, theta)
    assert after.tolist() == pytest.approx([2.0, 3.0, 2.5, 2.4, 1.4, 1.0])
    assert modulo.are_far(bounds, theta).tolist() == [False, True, False, False, False, True]
    assert modulo.bounds_after(np, bounds, right, seen).tolist() == [2.0, 3.0, 2.0, 1.0, 1.0, 1.0]
