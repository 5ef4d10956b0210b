"""Synchronous rounds that are seen to wait say once what overlap would gain."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import pushsum_opt as ps
from pushsum_opt.observe.advice import MEASURED_ROUNDS, WARM_UP_ROUNDS, OverlapAdvice
from pushsum_opt.push_sum import place


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run(listener, clock, rounds, *, compute, wait):
    for k in range(rounds):
        clock.now += compute
        listener.round_begins(k)
        clock.now += wait
        listener.waited(wait)
        listener.round_ends(k, 1.0)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "pushsum_opt")
    return lambda: [record.getMessage() for record in caplog.records if "staleness=1" in record.getMessage()]


def test_the_measured_part_of_waiting_is_said_once(lines):
    clock = Clock()
    run(OverlapAdvice(clock), clock, 3 * (WARM_UP_ROUNDS + MEASURED_ROUNDS), compute=3.0, wait=1.0)
    assert len(lines()) == 1
    assert "25 %" in lines()[0]
    assert "0.75 times" in lines()[0]


def test_little_waiting_is_not_worth_a_line(lines):
    clock = Clock()
    run(OverlapAdvice(clock), clock, WARM_UP_ROUNDS + MEASURED_ROUNDS, compute=19.0, wait=1.0)
    assert lines() == []


def test_the_first_rounds_and_waits_outside_rounds_do_not_count(lines):
    clock = Clock()
    listener = OverlapAdvice(clock)
    run(listener, clock, WARM_UP_ROUNDS, compute=0.0, wait=1.0)
    for _ in range(MEASURED_ROUNDS):
        clock.now += 1.0
        listener.waited(1.0)  # an average over ranks, for example
        run(listener, clock, 1, compute=0.0, wait=0.0)
    assert lines() == []


@pytest.mark.parametrize(("staleness", "watched"), [(0, [0, 1, 2]), (1, [])])
def test_only_synchronous_rounds_of_rank_0_are_watched(monkeypatch, staleness, watched):
    ended = []

    class Watching(OverlapAdvice):
        def round_ends(self, round, push_weight):
            ended.append(round)

    def rank(comm):
        with ps.PushSum([np.zeros(1)], graph=ps.graphs.Complete(), staleness=staleness, comm=comm) as push_sum:
            for _ in range(3):
                push_sum.mix()

    monkeypatch.setattr(place, "OverlapAdvice", Watching)
    ps.testing.run(3, rank)
    assert ended == watched
