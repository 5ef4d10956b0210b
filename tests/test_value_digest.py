"""Two states have one digest exactly where they hold the same, wherever their tensors lie."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch

from pushsum_opt.value_digest import digest


@pytest.fixture
def saved_on(monkeypatch):
    """Let torch.save believe that host tensors lie on another device; whatever is already on the host says so too."""

    def use(device):
        monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: device)

    return use


def test_equal_states_on_different_gpus_have_equal_digests(saved_on):
    digests = set()
    for device in ("cuda:0", "cuda:1"):
        saved_on(device)
        digests.add(digest({"exp_avg": torch.zeros(3), "step": torch.tensor(1.0), "lr": torch.tensor(1e-3)}))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (0.0, -0.0),
        ([1, 2], (1, 2)),
        ({"a": 1}, {"a": None}),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.tensor([0.0, 1e-45])),
        (np.zeros(2), np.ones(2)),
        ([[], []], [[[]]]),
        (deque([1, 2]), deque([2, 1])),
        ({1, 2}, {1, 3}),
        (torch.eye(3).to_sparse(), torch.zeros(3, 3).to_sparse()),
        (torch.zeros(2, device="meta"), torch.zeros(3, device="meta")),
        (torch.zeros(2, dtype=torch.complex64), torch.tensor([0, 1j])),
    ],
    ids=repr,
)
def test_digests_tell_values_dtypes_shapes_and_structure_apart(one, other):
    assert digest(one) != digest(other)
    assert digest(one) == digest(one)


def test_functions_and_devices_and_the_order_of_keys_count_nothing():
    one = {"f": lambda x: x, "device": torch.device("cuda:0"), "lr": 1.0}
    other = {"lr": 1.0, "device": torch.device("cuda:1"), "f": lambda x: 2 * x}
    assert digest(one) == digest(other)


def test_equal_values_in_other_memory_have_equal_digests():
    """Strides, sharing, the order of entries of a sparse tensor and of a set are no values."""
    twice = torch.sparse_coo_tensor([[1, 1]], [1.0, 2.0], (3,), check_invariants=True)
    once = torch.sparse_coo_tensor([[1]], [3.0], (3,), check_invariants=True)
    assert digest(twice) == digest(once)
    assert digest(torch.arange(6.0).view(2, 3).t()) == digest(torch.arange(6.0).view(2, 3).t().contiguous())
    z = torch.tensor([1j, 2.0])
    assert digest(z.conj()) == digest(z.conj().resolve_conj())
    assert digest({3, 1, 2}) == digest({2, 3, 1})
    circle = []
    circle.append(circle)
    assert digest(circle) == digest(circle)


def test_what_cannot_be_pickled_counts_by_its_type():
    class Stubborn:
        def __reduce__(self):
            raise RuntimeError("no")

    assert digest([Stubborn()]) == digest([Stubborn()]) != digest([None])
