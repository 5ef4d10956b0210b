"""A transport that is not handed out is closed."""

from __future__ import annotations

import pytest
from support.ranks import on_ranks

from pushsum_opt import errors, transport
from pushsum_opt.transport import opening
from pushsum_opt.transport.calls import calling


@on_ranks(3)
def test_a_transport_over_which_ranks_made_different_calls_is_closed_on_each(comm, opened):
    call = "ps.average()" if comm.rank == 1 else "ps.barrier()"
    with pytest.raises(errors.MismatchError, match=r"All ranks must make the same collective calls"), calling(call):
        transport.connect(comm)
    assert opened[comm.rank].closed


@on_ranks(2)
def test_one_on_which_a_rank_has_died_is_left_to_the_recovery_which_revokes_it(comm, opened, monkeypatch):
    def lost(*_):
        raise errors.RanksLost("rank 2 has died")

    monkeypatch.setattr(opening, "compare_calls", lost)
    with pytest.raises(errors.RanksLost):
        transport.connect(comm)
    assert not opened[comm.rank].closed


@pytest.fixture
def opened(monkeypatch):
    """The transports that were opened, by rank."""
    by_rank = {}

    def keep(comm, timeout, report, before=opening._open):
        by_rank[comm.rank] = before(comm, timeout, report)
        return by_rank[comm.rank]

    monkeypatch.setattr(opening, "_open", keep)
    return by_rank
