"""Tests that pytest runs on every rank: one of them fails on rank 1 alone, while the others wait for it."""

import pytest
import torch

import pushsum_opt as ps


def train(fail=False):
    model = torch.nn.Linear(2, 1)
    optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, timeout=300.0)
    for k in range(3):
        if fail and ps.rank() == 1 and k == 1:
            raise AssertionError("only here")
        optimizer.step()
    optimizer.close()


def test_one_rank_fails_while_others_wait_for_its_message():
    train(fail=True)


def test_one_rank_fails_while_others_wait_in_an_average():
    assert ps.rank() != 1, "before the average"
    ps.average(1.0)


def test_one_rank_fails_before_others_wait_for_it_to_wrap():
    assert ps.rank() != 1, "nothing wrapped here"
    train()


def test_one_rank_skips_what_the_others_wait_in():
    if ps.rank() == 1:
        pytest.skip("left out here")
    train()


def test_one_rank_fails_and_nobody_waits():
    assert ps.rank() != 1, "alone"


def test_what_follows_is_sound():
    train()
    assert ps.average(float(ps.rank())) == (ps.size() - 1) / 2


def test_skipped_on_some_ranks():
    if ps.rank() != 0:
        pytest.skip("only on rank 0")
