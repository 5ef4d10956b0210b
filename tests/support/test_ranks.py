"""A test on ranks fails where one rank does, and gets its parameters and fixtures."""

from __future__ import annotations

import pytest

import pushsum_opt as ps
from support.ranks import on_ranks


@pytest.fixture
def seen():
    return []


@pytest.mark.parametrize("number", [3, 4])
@on_ranks(2, local_size=1)
def test_every_rank_gets_the_parameters_and_fixtures_of_the_test(comm, number, seen):
    seen.append(comm.rank)
    assert number in (3, 4)
    assert ps.average(float(comm.rank), comm=comm) == 0.5
    assert set(seen) == {0, 1}


def test_an_error_of_one_rank_fails_the_test():
    @on_ranks(2)
    def wrong(comm):
        assert comm.rank == 0

    with pytest.raises(ps.testing.RankErrors):
        wrong()
