"""The baselines do what their authors wrote: each runs on real ranks, and is held to the same in plain numpy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.ports import free_ports
from warm.python import warm_python

ROOT = Path(__file__).resolve().parents[2]
RANKS, STEPS, SHAPE = 4, 8, (12, 16)
RATE, MOMENTUM = 0.005, 0.9

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What four ranks found, in one start of mpirun."""
    result = tmp_path_factory.mktemp("baselines") / "result.npz"
    program = str(ROOT / "tests" / "examples" / "programs" / "baselines.py")
    words = ["-m", "pushsum_opt", "run", "-np", str(RANKS), *warm_python(), program, str(result), str(STEPS)]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_ports()),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    with np.load(result) as arrays:
        return dict(arrays)


def gradient(weight: np.ndarray, rank: int, step: int) -> np.ndarray:
    """Of half the square of the error on the sample of this rank and step, as the program has it."""
    random = np.random.default_rng([rank, step])
    inputs, wanted = random.standard_normal(SHAPE[1]), random.standard_normal(SHAPE[0])
    return np.outer(weight @ inputs - wanted, inputs)


def trained(size: int, mix, gradients=lambda grads, step: grads) -> np.ndarray:
    """Return the models of all ranks after each step of SGD with momentum, in float64.

    Args:
        mix: what makes the models of a step from (the models before it, the updates, the step).
        gradients: what makes of all ranks' gradients what the optimizers see.
    """
    models, speed, found = np.full((size, *SHAPE), 0.1), np.zeros((size, *SHAPE)), []
    for step in range(STEPS):
        grads = np.stack([gradient(models[rank], rank, step) for rank in range(size)])
        speed = MOMENTUM * speed + gradients(grads, step)
        models = mix(models, -RATE * speed, step)
        found.append(models)
    return np.stack(found)


def everybody(values: np.ndarray) -> np.ndarray:
    return np.broadcast_to(values.mean(0), values.shape)


def pairs(size: int, step: int) -> np.ndarray:
    """The mixing matrix of D-PSGD, written down rank by rank."""
    with_whom = {
        4: [[1, 0, 3, 2], [2, 3, 0, 1]],
        3: [[1, 0, 2], [2, 1, 0]],  # the last of four is missing: its partner keeps its own
    }[size][step % 2]
    matrix = np.zeros((size, size))
    for rank, other in enumerate(with_whom):
        matrix[rank, rank] += 0.5
        matrix[rank, other] += 0.5
    return matrix


@pytest.mark.parametrize("size", [4, 3])
def test_d_psgd_is_algorithm_1_with_a_gradient_of_before_the_exchange(ran, size):
    for step in range(2):
        np.testing.assert_array_equal(pairs(size, step), pairs(size, step).T)
        np.testing.assert_array_equal(pairs(size, step).sum(0), 1.0)
    expected = trained(size, lambda x, dx, step: np.tensordot(pairs(size, step), x, 1) + dx)
    np.testing.assert_allclose(ran[f"d-psgd {size}"], expected, atol=2e-6)
    np.testing.assert_allclose(ran[f"d-psgd {size} average"], expected[-1].mean(0), atol=2e-6)
    assert np.ptp(expected[-1], 0).max() > 1e-2, "the ranks differ, or the exchange would not be seen"


def test_partners_are_mutual_and_a_power_of_two_of_ranks_averages_exactly_in_its_logarithm_of_steps():
    sys.path.insert(0, str(ROOT / "examples" / "benchmarks"))
    try:
        from baselines.d_psgd import partner
    finally:
        del sys.path[0]
    for size in range(1, 18):
        for step in range(10):
            for rank in range(size):
                other = partner(rank, size, step)
                assert other is None or partner(other, size, step) == rank != other
    for size, steps in {2: 1, 8: 3, 16: 4}.items():
        product = np.eye(size)
        for step in range(steps):
            matrix = 0.5 * np.eye(size)
            matrix[range(size), [partner(rank, size, step) for rank in range(size)]] = 0.5
            product = matrix @ product
        np.testing.assert_array_equal(product, 1.0 / size)


def test_ad_psgd_moves_the_mean_by_the_updates_alone(ran):
    np.testing.assert_allclose(ran["ad-psgd average"], 0.1 + ran["ad-psgd updates"].mean(0), atol=2e-6)
    assert np.abs(ran["ad-psgd updates"]).max() > 1e-2
    np.testing.assert_allclose(ran["ad-psgd average later"], ran["ad-psgd average"], atol=2e-6)


def test_averages_of_ad_psgd_bring_the_ranks_together_and_are_made_by_pairs_of_one_that_asks_and_one_that_answers(ran):
    apart = ran["ad-psgd apart"]
    assert apart[0] > 1e-3
    assert apart[-1] < 0.1 * apart[0]
    asked, answered = ran["ad-psgd averages"][::2], ran["ad-psgd averages"][1::2]
    assert asked.sum() == answered.sum()
    assert (asked >= 13).all()  # 12 of them one by one
    assert (asked <= STEPS + 12).all()


def test_local_sgd_averages_every_third_step(ran):
    def mix(models, updates, step):
        return everybody(models + updates) if step % 3 == 2 else models + updates

    np.testing.assert_allclose(ran["local sgd"], trained(4, mix), atol=2e-6)


def alone(models, updates, step):
    return models + updates


def test_ddp_sees_the_mean_gradient(ran):
    expected = trained(4, alone, lambda grads, step: everybody(grads))
    np.testing.assert_allclose(ran["ddp plain"], expected, atol=2e-6)


def test_ddp_in_half_precision_rounds_what_it_sends(ran):
    def rounded(grads, step):
        total = np.float16(0)
        for one in grads:
            total = total + (one.astype(np.float16) / np.float16(4)).astype(np.float16)
        return np.broadcast_to(total.astype(float), grads.shape)

    difference = np.abs(ran["ddp fp16"] - trained(4, alone, rounded)).max()
    assert difference < 2e-4  # in which order it adds is gloo's affair
    exact = np.abs(ran["ddp fp16"] - ran["ddp plain"]).max()
    assert 1e-7 < exact < 1e-3


def test_powersgd_begins_exactly_and_then_sends_products_of_thin_matrices(ran):
    found = ran["ddp powersgd"]
    np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1], found.shape))  # all ranks have the same
    np.testing.assert_allclose(found[:2], ran["ddp plain"][:2], atol=1e-6)
    # What the optimizers have seen: from SGD with momentum, solved for the gradient.
    updates = np.diff(np.concatenate([np.full((1, *SHAPE), 0.1), found[:, 0]]), axis=0)
    before = np.concatenate([np.zeros((1, *SHAPE)), updates[:-1]])
    seen = (updates - MOMENTUM * before) / -RATE
    assert [np.linalg.matrix_rank(one, tol=1e-3) for one in seen] == [4, 4] + (STEPS - 2) * [2]


def test_post_local_sgd_averages_models_after_its_warm_up(ran):
    def gradients(grads, step):
        return everybody(grads) if step < 4 else grads

    def mix(models, updates, step):
        return everybody(models + updates) if step >= 4 and (step - 4) % 3 == 0 else models + updates

    np.testing.assert_allclose(ran["ddp post-local"], trained(4, mix, gradients), atol=2e-6)
