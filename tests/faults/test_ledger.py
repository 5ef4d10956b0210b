"""The account of one rank, and what survivors make of everybody's."""

from __future__ import annotations

import pytest

from pushsum_opt.faults import Account, Ledger, settle, surely_sent


def test_what_was_given_and_not_opened_is_known_by_its_order():
    ledger = Ledger(kept=4)
    ledger.begin(1.0)
    for round in range(3):
        ledger.give(7, round, 0.25 / (round + 1))
    assert ledger.weight == pytest.approx(1.0 - 0.25 * (1 + 1 / 2 + 1 / 3))
    assert ledger.unopened(7, opened=1) == [(1, 0.125), (2, 0.25 / 3)]
    assert ledger.unopened(8, opened=0) == []


def test_more_unopened_messages_than_are_kept_are_an_error_and_not_a_wrong_mass():
    ledger = Ledger(kept=2)
    for round in range(3):
        ledger.give(1, round, 0.1)
    with pytest.raises(AssertionError, match="3 messages to peer 1, 0 opened"):
        ledger.unopened(1, opened=0)


def test_of_a_rank_that_only_a_dead_rank_has_heard_survivors_know_by_that_one():
    """Ranks 1 and 2 of a ring have died. Only 2 has heard 1; 3 has opened what 2 sent in round 6."""

    def ring(rank, round):
        return ((rank - 1) % 4,)

    assert surely_sent({2: 6}, [1, 2], ring, staleness=0, first=0) == {1: 5, 2: 6}
    assert surely_sent({2: 6}, [1, 2], ring, staleness=2, first=0) == {1: 3, 2: 6}
    assert surely_sent({2: 6}, [1, 2], ring, staleness=2, first=4) == {1: -1, 2: 6}
    assert surely_sent({}, [1, 2], ring, staleness=0, first=0) == {1: -1, 2: -1}


def test_a_dead_peer_has_opened_what_it_surely_opened():
    ledger = Ledger(kept=8)
    for round in range(4):
        ledger.give(1, round, 0.1)
    assert [round for round, _ in ledger.perhaps_unopened(1, lambda sent_in: sent_in < 2)] == [2, 3]


def test_after_a_drain_of_all_ranks_nothing_that_was_given_can_come_back():
    ledger = Ledger(kept=8)
    for round in range(3):
        ledger.give(1, round, 0.1)
    ledger.all_opened()
    ledger.give(1, 3, 0.2)
    assert ledger.unopened(1, opened=3) == [(3, 0.2)]
    assert ledger.perhaps_unopened(1, lambda sent_in: False) == [(3, 0.2)]


def test_weights_of_survivors_sum_to_their_number_and_what_is_missing_is_lost():
    accounts = [Account(0.5, 1.0, 7, 1, 0.25), Account(1.25, 3.0, 9, 0, 0.0)]
    settlement = settle(accounts, before=3)
    assert sum(one.weight * settlement.factor for one in accounts) == pytest.approx(2.0, abs=1e-12)
    assert settlement.initial == (0.5, 1.5)
    assert (settlement.round, settlement.lost, settlement.taken_back) == (9, 1.25, 1)
