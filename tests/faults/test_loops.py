"""Ranks die in whole training loops, with checkpoints, stops and uneven batches: the others stay in step."""

from __future__ import annotations

import math
import random
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch._dynamo  # the first optimizer would import it, and take longer than a timeout on a busy machine

import pushsum_opt as ps
from pushsum_opt.algorithms.activity import Activity
from pushsum_opt.checkpoint.memory_file import read_about
from pushsum_opt.checkpoint.memory_folder import MemoryFolder, name_of_run
from pushsum_opt.testing import Faults, Moment
from pushsum_opt.transport.loopback.injection import Killed

pytestmark = pytest.mark.filterwarnings("ignore::pushsum_opt.graphs.speed.SlowMixingWarning")

MODES = [0, 1, 2, "unbounded"]


class Loop:
    """One rank's training; what a killed process holds (locks of files) is freed, as the system does it."""

    def __init__(self, comm, folder, *, saver=None, algorithm=None, **options):
        self.me = comm.rank
        torch.manual_seed(self.me)
        self.z = torch.full((3,), float(self.me), requires_grad=True)
        wrapped = torch.optim.SGD([self.z], lr=0.01)
        self.optimizer = ps.PushSumOptimizer(
            wrapped, comm=comm, on_loss="continue", timeout=20, algorithm=algorithm, **options
        )
        self.saver = None
        if saver is not None:
            memory = {"memory_directory": folder / "memory", "memory_limit": 1.0}
            self.saver = ps.checkpoint.Saver(folder / "disk", self.optimizer, **memory, **saver)

    def steps(self, count, stop_at=None):
        for k in range(count):
            self.step()
            if k == stop_at:
                self.saver.request_stop()
            if self.saver is not None:
                self.saver.after_step(step=k + 1)

    def step(self):
        self.z.grad = torch.ones_like(self.z)
        self.optimizer.step()

    def said(self):
        return self.optimizer.members, self.optimizer.round, self.optimizer.push_weight


@contextmanager
def sets(event):
    """Set an event where this rank is killed."""
    try:
        yield
    except Killed:
        event.set()
        raise


def each(size, folder, train, faults, **options):
    """Run a loop on each rank; return its exit code and what it said, None for those that died."""
    (folder / "memory").mkdir(exist_ok=True)
    seed = options.pop("seed", None)

    def rank(comm):
        loop, code = None, 0
        try:
            loop = Loop(
                comm, folder, **{name: value() if callable(value) else value for name, value in options.items()}
            )
            train(loop)
            loop.optimizer.close()
        except SystemExit as stop:
            code = stop.code
        except Killed:
            if loop is not None and loop.saver is not None and loop.saver._memory is not None:
                loop.saver._memory._release()
            raise
        return code, *loop.said()

    return ps.testing.run(size, rank, faults=faults, seed=seed, timeout=60)


def loads(folder, size, round, **options):
    """Load what is on disk on some ranks."""

    def rank(comm):
        loop = Loop(comm, folder, **options)
        with loop.optimizer:
            return ps.checkpoint.load(folder / "disk", loop.optimizer).round

    assert ps.testing.run(size, rank, timeout=60) == [round] * size


@pytest.mark.parametrize("staleness", MODES)
def test_survivors_stop_in_the_same_round_and_save_themselves(staleness, tmp_path):
    """Rank 0, which is asked to stop, lives; rank 2 dies when it casts its vote."""
    faults = Faults({2: Moment(what="a vote", count=2)})
    saver = {"check_every": 4, "every": 5}

    def train(loop):
        loop.steps(100_000, 5 if loop.me == 0 else None)

    said = each(4, tmp_path, train, faults, staleness=staleness, saver=saver)
    assert faults.died == [2]
    left = [one for one in said if one is not None]
    assert [one[:2] for one in left] == [(75, (0, 1, 3))] * 3
    newest = max(one[2] for one in left)
    assert staleness == "unbounded" or {one[2] for one in left} == {newest}
    if staleness != "unbounded":
        loads(tmp_path, 3, newest, staleness=staleness)


@pytest.mark.parametrize("staleness", MODES)
def test_a_block_of_uneven_batches_ends_for_all_survivors(staleness, tmp_path):
    """The rank with the most batches dies in the block; the others had waited for it."""

    def train(loop):
        with loop.optimizer.join(divide_by_active=staleness != "unbounded"):
            for _ in range(1000 if loop.me == 2 else 7 + 3 * loop.me):
                loop.step()
        loop.optimizer.drain()

    faults = Faults({2: Moment(call="step()", count=160)})
    said = each(4, tmp_path, train, faults, staleness=staleness)
    left = [one for one in said if one is not None]
    assert [one[1] for one in left] == [(0, 1, 3)] * 3
    assert staleness == "unbounded" or len({one[2] for one in left}) == 1
    assert math.fsum(one[3] for one in left) == pytest.approx(3.0, abs=1e-12)


def test_a_count_that_one_survivor_has_read_is_told_to_the_others():
    """Rank 0 has read the first count, of three ranks; rank 1 has not when rank 2 dies, and is told."""
    read = threading.Event()

    def rank(comm):
        push_sum = ps.PushSum([np.zeros(3)], comm=comm, staleness=1, on_loss="continue", timeout=20)
        activity = Activity(push_sum)
        push_sum.member.followers.append(activity)
        activity.here = comm.rank == 2
        activity.count()
        if comm.rank != 1:
            activity.count()
        if comm.rank == 0:
            read.set()
        assert read.wait(20)
        if comm.rank == 2:
            comm.world.kill(2)
            raise Killed(2)
        while not push_sum.losses or push_sum.round < push_sum.losses[0].round:
            push_sum.mix()
        if push_sum.rank == 1:
            activity.count()
        told = activity.scale
        activity.count()
        push_sum.close()
        return told, activity.none

    said = ps.testing.run(3, rank, faults=Faults({}), timeout=60)
    assert said == [(3.0, True), (3.0, True), None]


def test_the_last_rank_ends_its_block_alone(tmp_path):
    def train(loop):
        with loop.optimizer.join():
            for _ in range(5 if loop.me == 1 else 40):
                loop.step()

    faults = Faults({rank: Moment(call="step()", count=60 + 20 * rank) for rank in (0, 2)})
    said = each(3, tmp_path, train, faults)
    assert said[0] is said[2] is None
    assert said[1][1] == (1,)


def test_what_a_run_was_resumed_from_stays_until_survivors_have_all_written_something_newer(tmp_path):
    """Rank 2 dies in the first save after resume(), which all do together; the others do it again."""
    saver = {"memory_every": 4, "check_every": 2}

    def begin(loop):
        loop.steps(9)
        loop.saver._end(well=False)  # the job dies

    each(3, tmp_path, begin, None, saver=saver)
    kept = []
    wrote = [threading.Event(), threading.Event()]

    def go_on(loop):
        assert loop.saver.resume() == {"step": 8}
        memory = loop.saver._memory
        write, written = memory._write, []

        def write_and_die(*parts):
            written.append(write(*parts))
            if loop.me == 2:
                assert all(event.wait(20) for event in wrote)
                loop.optimizer.push_sum.comm.world.kill(2)
                raise Killed(2)
            wrote[loop.me].set()
            return written[-1]

        memory._write = write_and_die
        loop.steps(5)
        assert len(written) == 2
        held = [read_about(file.path) for file in memory._files]
        kept.append(sorted((about.run == memory._used[0], about.round, about.size) for about in held))

    said = each(3, tmp_path, go_on, Faults({}), saver=saver)
    assert [one[1] for one in said if one is not None] == [(0, 1)] * 2
    assert kept == [[(False, 12, 2), (True, 8, 3)]] * 2


@pytest.mark.parametrize("staleness", [0, 1, "unbounded"])
def test_what_survivors_keep_in_memory_is_whole_and_of_one_set_of_ranks(staleness, tmp_path, monkeypatch):
    """After the loss three parts of a later round are there, whose masses sum to three; at a good end nothing is."""
    seen, died = {}, threading.Event()
    (tmp_path / "notes").mkdir()
    monkeypatch.setenv("PUSHSUM_PROGRESS", str(tmp_path / "notes"))

    def train(loop):
        with sets(died), loop.saver:
            for k in range(60):
                if staleness == "unbounded" and k == 20 and loop.me != 3:
                    assert died.wait(20)  # asynchronous ranks could be far ahead of the one that dies
                loop.step()
                loop.saver.after_step(step=k + 1)
            loop.saver._votes.finish(together=False) if staleness != "unbounded" else None
            folder = MemoryFolder(tmp_path / "memory", name_of_run(tmp_path / "disk"), tmp_path / "disk")
            if loop.optimizer.rank == 0:
                seen["parts"] = [about for _, about in folder.parts()]

    count = 3 if staleness == "unbounded" else 20  # posts: a rank that gets nothing soon has nothing to give
    faults = Faults({3: Moment(call="step()", what="header", operation="post", count=count)})
    said = each(4, tmp_path, train, faults, staleness=staleness, saver={"memory_every": 4, "check_every": 2})
    assert [one[1] for one in said if one is not None] == [(0, 1, 2)] * 3
    after = [about for about in seen["parts"] if about.size == 3]
    assert after
    if staleness != "unbounded":
        generations = {}
        for about in after:
            generations.setdefault(about.generation, []).append(about)
        whole = [parts for parts in generations.values() if len(parts) == 3]
        assert whole
        for parts in whole:
            assert len({about.round for about in parts}) == 1
            assert math.fsum(about.weight for about in parts) == pytest.approx(3.0, abs=1e-12)
    assert list((tmp_path / "memory").iterdir()) == []
    for_the_launcher = {
        path.name for path in (tmp_path / "notes").iterdir() if path.suffix in (".begun", ".ended", ".lost")
    }
    assert for_the_launcher == {"0.ended", "1.ended", "2.ended", "3.lost"}


@pytest.mark.parametrize("seed", range(40))
def test_loops_stay_in_step_whoever_dies_at_whatever_moment(seed, tmp_path):
    draw = random.Random(1000 + seed)
    size, staleness = draw.randint(2, 5), draw.choice(MODES)
    in_step = staleness != "unbounded"
    dying = draw.sample(range(size), draw.randint(1, size - 1) if draw.random() < 0.4 else 1)
    calls = ["", "", "step()", "join()", "recovery", "Saver", "checkpoint", "close()"]
    faults = Faults(
        {rank: Moment(call=draw.choice(calls), count=draw.randint(1, 150)) for rank in dying},
        seed=seed,
        spread=draw.choice([0.0, 1e-3, 3e-3]),
    )
    saver = {
        "every": draw.choice([None, 3, 5]),
        "memory_every": draw.choice([None, 2, 4]),
        "check_every": draw.choice([1, 2, 5]),
    }
    with_saver, with_join = draw.random() < 0.8, draw.random() < 0.4
    algorithm = (lambda: ps.algorithms.PeriodicAverage(4)) if in_step and draw.random() < 0.3 else None
    count, lengths = draw.randint(5, 25), [draw.randint(3, 30) for _ in range(size)]
    stop_at, stopper, block = draw.choice([None, None, 4, 9]), draw.randrange(size), draw.random() < 0.5

    def train(loop):
        if loop.saver is not None:
            loop.saver.resume()
        loop.steps(count, stop_at if with_saver and loop.me == stopper else None)
        if loop.saver is not None and block:
            loop.saver.close()
        if with_join and (loop.saver is None or in_step):  # asynchronous ranks may still save
            with loop.optimizer.join(divide_by_active=in_step and seed % 2 == 0):
                for _ in range(lengths[loop.me]):
                    loop.step()
            loop.steps(3) if loop.saver is None or not block else None
        if in_step or loop.saver is None or block:
            loop.optimizer.drain()

    said = each(
        size, tmp_path, train, faults, seed=seed if seed % 3 == 0 else None, staleness=staleness, algorithm=algorithm,
        saver=saver if with_saver else None,
    )  # fmt: skip
    left = [one for one in said if one is not None]
    assert len({one[0] for one in left}) == 1
    assert not in_step or len({one[2] for one in left}) == 1
    drained = in_step or (left[0][0] == 0 and (block or not with_saver))
    if len(left) == len(left[0][1]) and drained:  # otherwise a rank died after the last account
        assert math.fsum(one[3] for one in left) == pytest.approx(len(left), abs=1e-12)
    assert list((tmp_path / "memory").iterdir()) == []
    if with_saver and saver["every"] and in_step and (tmp_path / "disk").exists():
        rounds = [path for path in (tmp_path / "disk").iterdir() if (path / "manifest.json").exists()]
        if rounds:
            loads(tmp_path, 2, max(int(path.name.split("-")[-1]) for path in rounds), staleness=staleness,
                  algorithm=algorithm() if algorithm else None)  # fmt: skip
