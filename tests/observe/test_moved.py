"""How far a model moves is estimated from a sample of it, which is looked at now and then."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pushsum_opt as ps
from pushsum_opt.observe.metrics.moved import LOOK_EVERY, LOOKS_KEPT, PLACES, RUN, Moved, _flat


def test_the_distance_is_that_of_all_elements():
    generator = np.random.default_rng(0)
    begin = [generator.normal(size=shape) for shape in ((300, 200), (64,), (7, 5, 3), (1,))]
    now = [one.copy() for one in begin]
    moved = Moved(lambda: now)
    assert moved.since_then(0) == {}
    for one in now:
        one += generator.normal(size=one.shape)
    truth = np.sqrt(sum(np.square(a - b).sum() for a, b in zip(begin, now, strict=True)))
    found = moved.since_then(LOOK_EVERY)
    assert found == {"distance": pytest.approx(truth, rel=0.05), "rounds": LOOK_EVERY}


def test_of_a_small_model_it_is_exact_whatever_the_dtype():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.complex64):
        parameter = torch.nn.Parameter(torch.ones(20, dtype=dtype))
        moved = Moved(lambda parameter=parameter: [parameter])
        moved.since_then(0)
        with torch.no_grad():
            parameter += 0.5
        assert moved.since_then(1000)["distance"] == pytest.approx(0.5 * 20**0.5)


@pytest.mark.parametrize("size", [20, 60_000])
def test_tensors_that_are_not_contiguous_are_not_copied_and_count(size):
    torch = pytest.importorskip("torch")
    last = torch.zeros(4, 5, 1, size // 20).to(memory_format=torch.channels_last)
    turned = np.zeros((size // 20, 20)).T
    for value in (last, turned):
        moved = Moved(lambda value=value: [value])
        moved.since_then(0)
        value += 0.5
        assert moved.since_then(1000)["distance"] == pytest.approx(0.5 * size**0.5)
        assert np.shares_memory(_flat(value), value) if value is turned else _flat(value).data_ptr() == value.data_ptr()


def test_it_looks_seldom_and_back_for_so_many_looks():
    value = np.zeros(3)
    moved = Moved(lambda: [value])
    for round in range(5000):
        value[:] = round
        found = moved.since_then(round)
    last = 4999 // LOOK_EVERY * LOOK_EVERY
    assert found == {"distance": pytest.approx(LOOKS_KEPT * LOOK_EVERY * 3**0.5), "rounds": LOOKS_KEPT * LOOK_EVERY}
    value[:] = -1e9
    assert moved.since_then(last + 1) == found


def test_after_parameters_were_added_it_begins_anew():
    held = [np.zeros(3)]
    moved = Moved(lambda: held)
    moved.since_then(0)
    held.append(np.ones(2))
    assert moved.since_then(LOOK_EVERY) == {}
    assert moved.since_then(2 * LOOK_EVERY) == {"distance": 0.0, "rounds": LOOK_EVERY}


def test_a_model_that_is_not_finite_has_no_distance():
    value = np.zeros(PLACES * RUN)
    moved = Moved(lambda: [value])
    moved.since_then(0)
    value[0] = np.inf
    assert moved.since_then(LOOK_EVERY) == {}


def test_metrics_write_how_far_the_parameters_moved(tmp_path):
    torch = pytest.importorskip("torch")

    def rank(comm):
        parameter = torch.nn.Parameter(torch.zeros(4))
        parameter.grad = torch.ones(4)
        with ps.PushSumOptimizer(torch.optim.SGD([parameter], lr=0.01), comm=comm) as optimizer:
            ps.observe.Metrics(optimizer, jsonl=tmp_path, every=50)
            for _ in range(200):
                optimizer.step()

    ps.testing.run(2, rank)
    for file in tmp_path.iterdir():
        rows = [line for line in map(json.loads, file.read_text().splitlines()) if "round" in line]
        assert [row["moved"].get("rounds") for row in rows[:4]] == [None, None, 100.0, 100.0]
        assert rows[3]["moved"]["distance"] == pytest.approx(100 * 0.01 * 2, rel=1e-3)
