"""Ranks that meet in a store of torch.distributed are not misled by what others have left there."""

from __future__ import annotations

import pytest
from torch.distributed import HashStore

from pushsum_opt.transport.torch_distributed import meeting
from pushsum_opt.transport.torch_distributed.meeting import Meeting


@pytest.fixture(autouse=True)
def _look_at_every_call(monkeypatch):
    monkeypatch.setattr(meeting, "LOOK_EVERY_S", 0.0)


def look(ranks):
    """Let each rank look once; return which of them say that all are there."""
    return [rank for rank in ranks if rank.all_here()]


def look_until_all_are_here(ranks, most=10):
    assert any(len(look(ranks)) == len(ranks) for _ in range(most)), f"they did not meet in {most} looks"


@pytest.mark.parametrize("size", [1, 2, 5])
def test_ranks_that_meet_have_one_token(size):
    store = HashStore()
    ranks = [Meeting(store, rank, size) for rank in range(size)]
    look_until_all_are_here(ranks)
    assert len({rank.token for rank in ranks}) == 1


def test_nobody_goes_before_the_last_rank_has_come():
    store = HashStore()
    ranks = [Meeting(store, rank, 3) for rank in (0, 1)]
    for _ in range(5):
        assert look(ranks) == []
    look_until_all_are_here([*ranks, Meeting(store, 2, 3)])


def test_a_meeting_in_a_store_that_was_used_waits_for_the_ranks_of_its_own_time():
    store = HashStore()
    before = [Meeting(store, rank, 3) for rank in range(3)]
    look_until_all_are_here(before)
    after = [Meeting(store, rank, 3) for rank in (1, 2)]
    for _ in range(5):
        assert look(after) == []
    after.append(Meeting(store, 0, 3))
    look_until_all_are_here(after)
    assert len({rank.token for rank in after}) == 1
    assert after[0].token != before[0].token


def test_a_rank_that_was_answered_by_a_rank_0_that_died_meets_the_next_one():
    store = HashStore()
    died, waits = Meeting(store, 0, 3), Meeting(store, 1, 3)
    for _ in range(3):
        look([died, waits])
    assert waits.token == died.token
    ranks = [Meeting(store, 0, 3), waits, Meeting(store, 2, 3)]
    look_until_all_are_here(ranks)
    assert {rank.token for rank in ranks} == {ranks[0].token}
