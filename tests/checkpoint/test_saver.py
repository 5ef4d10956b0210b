"""A run that saves itself, stops in one round on all ranks when one is asked to, and goes on."""

from __future__ import annotations

import itertools
import os
import signal
import threading

import pytest
from checkpoint.common import SIZES, Run, running

import pushsum_opt as ps
from pushsum_opt.checkpoint import REQUEUE, Saver

STEPS = 14


def run_until_stopped(comm, directory, asked=None, *, check_every=2, every=None, steps=STEPS, **options):
    """Train to the end, or until stopped; ``asked(rank, k)`` asks this rank to stop after step k."""
    run = Run(comm, **options)
    saver = Saver(directory, run.optimizer, every=every, check_every=check_every, **run.beside)
    start = (saver.resume() or {"step": 0})["step"]
    for k in range(start, steps):
        run.steps(k, k + 1)
        if asked is not None and asked(comm.rank, k):
            saver.request_stop()
        try:
            saver.after_step(step=k + 1)
        except SystemExit as stop:
            assert stop.code == REQUEUE == 75
            assert run.optimizer.push_sum.closed
            return "stopped", k + 1, None
    run.close()
    return "finished", start, run.everything()


@pytest.mark.parametrize(("size", "staleness"), list(itertools.product(SIZES, (0, 1, 2, 3))))
def test_all_ranks_stop_after_the_same_step_and_the_resumed_run_has_the_same_bits(tmp_path, size, staleness):
    asked = lambda rank, k: rank == size - 1 and k == 4  # noqa: E731
    stopped = ps.testing.run(size, lambda c: run_until_stopped(c, tmp_path, asked, staleness=staleness), seed=1)
    assert len(set(stopped)) == 1
    assert stopped[0][0] == "stopped"
    assert 5 < stopped[0][1] <= 5 + 2 * 2
    resumed = ps.testing.run(size, lambda c: run_until_stopped(c, tmp_path, staleness=staleness), seed=2)
    assert {start for _, start, _ in resumed} == {stopped[0][1]}
    undisturbed = ps.testing.run(size, lambda c: run_until_stopped(c, tmp_path / "none", staleness=staleness), seed=3)
    assert [one[2] for one in resumed] == [one[2] for one in undisturbed]
    assert {start for _, start, _ in undisturbed} == {0}


@pytest.mark.parametrize("check_every", [1, 2, 3, 5])
@pytest.mark.parametrize("who", ["one", "all", "all at different times"])
def test_it_takes_at_most_twice_check_every_steps_to_stop(tmp_path, check_every, who):
    def asked(rank, k):
        return {"one": rank == 1 and k == 1, "all": k == 1, "all at different times": k == 1 + rank}[who]

    stopped = ps.testing.run(3, lambda c: run_until_stopped(c, tmp_path, asked, check_every=check_every), seed=4)
    assert len(set(stopped)) == 1
    assert stopped[0][0] == "stopped"
    assert stopped[0][1] <= 2 + 2 * check_every


def test_run_that_nobody_asks_to_stop_ends_as_if_there_were_no_saver(tmp_path):
    def plain(comm):
        run = Run(comm, staleness=1)
        run.steps(0, STEPS)
        run.close()
        return "finished", 0, run.everything()

    with_saver = ps.testing.run(3, lambda c: run_until_stopped(c, tmp_path, staleness=1, check_every=1))
    assert with_saver == ps.testing.run(3, plain)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("staleness", [0, 2])
def test_periodic_saves_are_of_rounds_that_every_divides_also_after_a_resume(tmp_path, staleness):
    def rank(comm, steps):
        return run_until_stopped(comm, tmp_path, every=3, steps=steps, staleness=staleness)[1]

    assert ps.testing.run(2, lambda comm: rank(comm, 5)) == [0, 0]
    assert ps.testing.run(2, lambda comm: rank(comm, 8)) == [3, 3]
    assert ps.testing.run(2, lambda comm: rank(comm, 10)) == [6, 6]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["save-000001-round-3", "save-000002-round-6", "save-000003-round-9"]


def test_periodic_saves_of_a_run_stopped_by_a_vote_in_the_same_round_are_not_in_the_way(tmp_path):
    asked = lambda rank, k: k == 0  # noqa: E731
    stopped = ps.testing.run(2, lambda c: run_until_stopped(c, tmp_path, asked, check_every=1, every=2))
    assert stopped == [("stopped", 2, None)] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["save-000001-round-2"]


# ---------------------------------------------------------------------- asynchronous ranks


@pytest.mark.parametrize("size", SIZES)
def test_asynchronous_ranks_in_different_rounds_stop_and_keep_all_mass(tmp_path, size):
    """Ranks have different numbers of steps to do; one is asked to stop in the middle."""

    def rank(comm, asks):
        run = Run(comm, staleness="unbounded")
        saver = Saver(tmp_path, run.optimizer, check_every=2, **run.beside)
        step = (saver.resume() or {"step": 0})["step"]
        loaded = run.optimizer.push_weight
        try:
            while step < (10_000 if asks else step + 1):
                run.steps(step, step + 1)
                step += 1
                if asks and comm.rank == 0 and step == 5:
                    saver.request_stop()
                saver.after_step(step=step)
                if not asks:
                    break
            run.close()
        except SystemExit as stop:
            return "stopped", stop.code, step, loaded
        return "finished", 0, step, loaded

    stopped = ps.testing.run(size, lambda comm: rank(comm, True), seed=6)
    assert [one[:2] for one in stopped] == [("stopped", 75)] * size
    resumed = ps.testing.run(size, lambda comm: rank(comm, False), seed=7)
    assert [one[2] for one in resumed] == [one[2] + 1 for one in stopped], "each goes on from its own step"
    assert sum(one[3] for one in resumed) == pytest.approx(size, rel=1e-12)


@pytest.mark.parametrize("closes", ["the saver", "the optimizer"])
def test_asynchronous_ranks_that_finish_early_take_part_in_what_others_save(tmp_path, closes):
    over = threading.Event()

    def rank(comm):
        run = Run(comm, staleness="unbounded")
        saver = Saver(tmp_path, run.optimizer, every=4, check_every=1, keep=None, **run.beside)
        step, was_over_in = 0, None
        # The others go on until they have saved once more after that, however late rank 0 is.
        while step < 5 if comm.rank == 0 else was_over_in is None or saver._wishes.saved_round <= was_over_in:
            run.steps(step, step + 1)
            step += 1
            saver.after_step(step=step)
            if was_over_in is None and over.is_set():
                was_over_in = run.optimizer.round
        if comm.rank == 0:
            over.set()
        if closes == "the saver":
            saver.close()
        run.close()
        return run.optimizer.push_weight

    assert sum(ps.testing.run(3, rank, seed=8)) == pytest.approx(3, rel=1e-12)
    assert len(list(tmp_path.glob("save-*/manifest.json"))) >= 1

    def resume(comm):
        with running(comm, staleness="unbounded") as run:
            found = ps.checkpoint.load(tmp_path, run.optimizer, **run.beside)
            return found.extra["step"], run.optimizer.push_weight

    results = ps.testing.run(3, resume)
    assert sum(weight for _, weight in results) == pytest.approx(3, rel=1e-12)
    assert results[0][0] == 5, "the last save was after rank 0 had finished, or in its last step"


def test_asynchronous_rank_that_has_finished_is_stopped_with_the_others(tmp_path):
    def rank(comm):
        run = Run(comm, staleness="unbounded")
        saver = Saver(tmp_path, run.optimizer, check_every=1, **run.beside)
        try:
            for k in range(3 if comm.rank == 0 else 10_000):
                run.steps(k, k + 1)
                if comm.rank == 1 and k == 8:
                    saver.request_stop()
                saver.after_step(step=k + 1)
            run.close()
        except SystemExit as stop:
            return stop.code
        return 0

    assert ps.testing.run(2, rank) == [75, 75]


# ---------------------------------------------------------------------- signals


def alone(function):
    """Run a rank on the main thread, where python takes signals."""
    from pushsum_opt.transport.loopback import LoopbackComm
    from pushsum_opt.transport.loopback.world import LoopbackWorld

    return function(LoopbackComm(LoopbackWorld(1), 0))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signal_stops_the_run_with_75_after_saving_and_handlers_are_put_back(tmp_path, number):
    called = []
    before = signal.signal(number, lambda *arguments: called.append(arguments[0]))
    mine = signal.getsignal(number)
    try:

        def rank(comm):
            with Run(comm).optimizer as optimizer, Saver(tmp_path, optimizer, check_every=1) as saver:
                assert signal.getsignal(number) is not mine
                for k in range(5):
                    optimizer.gossip()
                    if k == 1:
                        os.kill(os.getpid(), number)
                    saver.after_step(step=k + 1)

        with pytest.raises(SystemExit) as stop:
            alone(rank)
        assert stop.value.code == 75
        assert called == [number], "a handler that was there before still hears of it"
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, before)
    assert [path.name for path in tmp_path.iterdir()] == ["save-000001-round-3"]


@pytest.mark.parametrize("ending", ["close", "error", "optimizer"])
def test_handlers_are_put_back_however_the_saver_ends(tmp_path, ending):
    before = signal.getsignal(signal.SIGUSR1)

    def rank(comm):
        optimizer = Run(comm).optimizer
        saver = Saver(tmp_path, optimizer)
        assert signal.getsignal(signal.SIGUSR1) is not before
        if ending == "close":
            saver.close()
            saver.close()
        elif ending == "error":
            with pytest.raises(ZeroDivisionError), saver:
                1 / 0  # noqa: B018
        optimizer.close()

    alone(rank)
    assert signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.parametrize(
    "wrong",
    [
        {"every": 0}, {"check_every": 0}, {"check_every": None}, {"keep": 0}, {"signals": [signal.SIGKILL]},
        {"signals": [signal.SIGTERM, 0]}, {"signals": ["SIGTERM"]},
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused_and_leave_nothing_open(tmp_path, wrong):
    def rank(comm):
        with running(comm) as run:
            before = list(run.optimizer.push_sum.member.followers)
            with pytest.raises(ps.errors.ConfigurationError, match=next(iter(wrong))):
                Saver(tmp_path, run.optimizer, **wrong)
            assert run.optimizer.push_sum.member.followers == before

    ps.testing.run(1, rank)
