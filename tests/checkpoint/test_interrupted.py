"""Whatever happens while a run saves, the checkpoints before it are whole."""

from __future__ import annotations

import io
import os
import shutil

import pytest
import torch
from checkpoint.common import running

import pushsum_opt as ps
from pushsum_opt.checkpoint import files
from pushsum_opt.errors import CallOrderError, CheckpointError
from pushsum_opt.push_sum import rounds

SIZE = 3


class Killed(BaseException):
    """Stands for the end of a process: no handler of an Exception sees it."""


def save_twice(directory, before_second=lambda: None):
    """Save in round 2 and again in round 4, and return what every rank held in round 2."""

    def rank(comm):
        with running(comm, staleness=1) as run:
            run.steps(0, 2)
            ps.checkpoint.save(directory, run.optimizer, extra=2, **run.beside)
            held.append((comm.rank, run.everything()))
            run.steps(2, 4)
            if comm.rank == 0:
                before_second()
            rounds.meet(run.optimizer.push_sum.member, "all wait for rank 0")
            ps.checkpoint.save(directory, run.optimizer, extra=4, **run.beside)

    held: list = []
    try:
        ps.testing.run(SIZE, rank)
    except ps.testing.RankErrors as error:
        return dict(held), error
    return dict(held), None


def resume(directory):
    def rank(comm):
        with running(comm, staleness=1) as run:
            found = ps.checkpoint.load(directory, run.optimizer, **run.beside)
            return found.extra, run.everything()

    return ps.testing.run(SIZE, rank)


def operations(monkeypatch, tmp_path):
    """Count the steps at which a save can be interrupted."""
    counted = []
    with monkeypatch.context() as patch:
        interrupt(patch, lambda name: counted.append(name) or False)
        save_twice(tmp_path / "counted", lambda: counted.clear())
    return len(counted)


def interrupt(patch, dies, error=Killed):
    """Have ``dies(name)`` asked before every rename, flush to the disk and directory that is made."""
    for name in ("replace", "fsync", "mkdir"):
        real = getattr(os, name)

        def one(*arguments, real=real, name=name, **options):
            if dies(name):
                raise error(f"at {name}")
            return real(*arguments, **options)

        patch.setattr(os, name, one)


@pytest.mark.parametrize("eighth", range(8))
def test_run_that_is_killed_between_any_two_steps_of_saving_resumes_from_the_checkpoint_before(
    tmp_path, monkeypatch, eighth
):
    total = operations(monkeypatch, tmp_path)
    assert total >= 8
    for number in range(eighth, total, 8):
        directory = tmp_path / str(number)
        seen, armed = [], []

        def dies(name, seen=seen, armed=armed, number=number):
            if armed:
                seen.append(name)
            return len(seen) > number  # and so does everything after it: the process is gone

        with monkeypatch.context() as patch:
            interrupt(patch, dies)
            held, error = save_twice(directory, lambda armed=armed: armed.append(True))
        assert error is not None
        for rank, (extra, everything) in enumerate(resume(directory)):
            if extra == 2:
                assert everything == held[rank]
            else:  # killed after the manifest had its name: then the new one is complete
                assert (extra, number) in [(4, k) for k in range(total - 4, total)]


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_run_that_is_killed_in_the_middle_of_a_file_resumes_from_the_checkpoint_before(tmp_path, monkeypatch, part):
    armed, sizes = [], []

    class Dying(io.BufferedWriter):
        """A file that takes so many bytes and no more."""

        def write(self, data):
            if armed and self.tell() + memoryview(data).nbytes > part * sizes[0]:
                super().write(memoryview(data)[: len(data) // 2])
                raise Killed
            return super().write(data)

    def opened(path, mode):
        return Dying(io.FileIO(path, mode.replace("b", ""))) if mode == "wb" else open(path, mode)

    def arm():
        sizes.append(next(tmp_path.glob("runs/*/rank-00000.pt")).stat().st_size)
        armed.append(True)

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", opened, raising=False)
        held, error = save_twice(tmp_path / "runs", arm)
    assert isinstance(next(iter(error.errors.values())), Killed)
    assert list(tmp_path.glob("runs/*/*.partial")), "something was left behind"
    assert [(2, held[rank]) for rank in range(SIZE)] == resume(tmp_path / "runs")


def test_what_an_interrupted_save_left_behind_is_removed_by_the_next_one(tmp_path):
    left = tmp_path / "save-000001-round-9"
    left.mkdir()
    (left / "rank-00000.pt").write_bytes(b"half")
    (tmp_path / "save-000007-of-mine").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    save_twice(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.txt",
        "save-000002-round-2",
        "save-000003-round-4",
        "save-000007-of-mine",
    ]
    assert {path.name for path in (tmp_path / "save-000003-round-4").iterdir()} == {
        "manifest.json",
        *(f"rank-0000{rank}.pt" for rank in range(SIZE)),
    }


@pytest.mark.parametrize("failing", [0, 2])
def test_full_disk_on_one_rank_is_the_same_error_on_all_and_training_goes_on(tmp_path, monkeypatch, failing):
    full = []
    real = files.save_tensors

    def save_tensors(path, value):
        if full and value["rank"] == failing:
            raise OSError(28, "No space left on device")
        return real(path, value)

    monkeypatch.setattr("pushsum_opt.checkpoint.saving.save_tensors", save_tensors)

    def rank(comm):
        with running(comm, staleness=2) as run:
            run.steps(0, 3)
            ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
            full.append(True)
            run.optimizer.drain()
            with pytest.raises(CheckpointError) as error:
                ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
            run.optimizer.drain()
            full.clear()
            run.steps(3, 5)
            path = ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
            assert ps.checkpoint.load(tmp_path, run.optimizer, **run.beside).path == path
        return str(error.value), run.optimizer.push_weight

    results = ps.testing.run(SIZE, rank)
    assert {text for text, _ in results} == {results[0][0]}
    assert f"rank {failing}: OSError: [Errno 28] No space left on device" in results[0][0]
    assert sum(weight for _, weight in results) == pytest.approx(SIZE, rel=1e-12)
    assert len(list(tmp_path.glob("save-*"))) == 2


def test_rank_that_does_not_see_the_directory_is_named(tmp_path, monkeypatch):
    """As on a host with a disk of its own."""
    real = type(tmp_path).is_dir
    elsewhere = []

    def is_dir(self):
        return not (elsewhere and elsewhere.pop()) and real(self) if self.name.startswith("save-") else real(self)

    def rank(comm):
        with running(comm) as run:
            if comm.rank == 0:
                elsewhere.append(True)
            run.optimizer.drain()
            with pytest.raises(CheckpointError, match="does not see it"):
                ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)

    monkeypatch.setattr(type(tmp_path), "is_dir", is_dir)
    ps.testing.run(2, rank)


@pytest.mark.parametrize("what", [{"extra": io.StringIO("open file")}, {"extra": {"f": torch.nn.Linear(1, 1)}}])
def test_what_could_not_be_read_back_is_refused_when_it_is_saved(tmp_path, what):
    def rank(comm):
        with running(comm) as run:
            mine = what if comm.rank == 1 else {"extra": None}
            with pytest.raises(CheckpointError, match="rank 1"):
                ps.checkpoint.save(tmp_path, run.optimizer, **mine, **run.beside)
            run.steps(0, 1)

    ps.testing.run(2, rank)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("keep", "expected"), [(1, [4]), (2, [3, 4]), (3, [2, 3, 4]), (None, [1, 2, 3, 4])])
def test_newest_checkpoints_are_kept(tmp_path, keep, expected):
    def rank(comm):
        with running(comm) as run:
            for k in range(4):
                run.steps(k, k + 1)
                ps.checkpoint.save(tmp_path, run.optimizer, keep=keep, **run.beside)

    ps.testing.run(2, rank)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"save-{k:06d}-round-{k}" for k in expected]


def test_two_saves_in_one_round_are_two_checkpoints_and_the_later_one_is_loaded(tmp_path):
    def rank(comm):
        with running(comm) as run:
            run.steps(0, 1)
            first = ps.checkpoint.save(tmp_path, run.optimizer, extra="first", **run.beside)
            ps.checkpoint.save(tmp_path, run.optimizer, extra="second", **run.beside)
            newest = ps.checkpoint.load(tmp_path, run.optimizer, **run.beside).extra
            return newest, ps.checkpoint.load(first, run.optimizer, **run.beside).extra

    assert ps.testing.run(2, rank) == [("second", "first")] * 2


def test_checkpoint_may_be_copied_elsewhere(tmp_path):
    held, _ = save_twice(tmp_path / "here")
    shutil.copytree(tmp_path / "here" / "save-000001-round-2", tmp_path / "there")
    assert [(2, held[rank]) for rank in range(SIZE)] == resume(tmp_path / "there")


@pytest.mark.parametrize("keep", [0, -1, True, 2.0])
def test_keep_that_makes_no_sense_is_refused(tmp_path, keep):
    def rank(comm):
        with running(comm) as run, pytest.raises(ps.errors.ConfigurationError, match="keep="):
            ps.checkpoint.save(tmp_path, run.optimizer, keep=keep)

    ps.testing.run(1, rank)


def test_saving_inside_averaged_is_refused_on_all_ranks(tmp_path):
    def rank(comm):
        with running(comm) as run:
            with run.optimizer.averaged(), pytest.raises(CallOrderError, match=r"inside averaged\(\)"):
                ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
            run.steps(0, 1)

    ps.testing.run(2, rank)


def test_ranks_that_do_not_all_save_are_told_so(tmp_path):
    def rank(comm):
        with running(comm) as run:
            run.steps(0, 2)
            if comm.rank == 0:
                ps.checkpoint.save(tmp_path, run.optimizer)
            else:
                run.optimizer.drain()

    with pytest.raises(ps.testing.RankErrors, match=r"save\(\) in round 2 while rank 1 calls drain\(\)"):
        ps.testing.run(2, rank)
