"""Checkpoints in the memory of each host: what is left of them, and how a run goes on from that."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint.common import Run

import pushsum_opt as ps
from pushsum_opt.checkpoint.memory_file import MemoryFile, read_about
from pushsum_opt.errors import CheckpointError, ConfigurationError

EVERY = 4
STALENESS = (0, 1, 2)


class Lost(Exception):
    """Stands for the death of a rank: the others end too, and nobody closes anything."""


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The directory of checkpoints, and a memory for each rank's host."""
    (tmp_path / "memory").mkdir()
    return tmp_path


def train(
    comm,
    folders,
    stop,
    *,
    dies=None,
    hosts=None,
    every=None,
    enough=0.5,
    limit=1.0,
    finish=False,
    breaks=None,
    finished=(),
    **options,
):
    """Train to step ``stop`` and die there, or finish; return (first step, state at the start, state at the end).

    Args:
        hosts: whose memory each rank has; None: all share one.
        dies: the step in which rank 1 dies, before it saves.
        breaks: the step after which something is passed that cannot be saved.
        finished: a set that all ranks share: those that have come to step ``stop`` and have saved in memory.
    """
    if options.pop("slow", False):
        options["algorithm"] = ps.algorithms.SlowMomentum(every=3)
    run = Run(comm, **options)
    memory = folders / "memory" if hosts is None else folders / "memory" / str(hosts[comm.rank])
    memory.mkdir(exist_ok=True)
    saver = ps.checkpoint.Saver(
        folders / "disk", run.optimizer, every=every, memory_every=EVERY, memory_directory=memory, memory_limit=limit,
        **run.beside,
    )  # fmt: skip
    resumed = saver.resume(enough=enough)
    begin = 0 if resumed is None else resumed["step"]
    start = {
        "begin": begin,
        "w": run.optimizer.push_weight,
        "round": run.optimizer.round,
        "model": {key: wide(value.clone()) for key, value in run.model.state_dict().items()},
        "r": run.optimizer.push_sum.state()["residuals"],
    }
    seen = []
    for k in range(begin, stop):
        run.steps(k, k + 1)
        if k == dies and comm.rank == 1:
            raise Lost
        saver.after_step(step=k + 1, **({"open": io.StringIO()} if k == breaks else {}))
        own = run.optimizer.state_dict()["push_sum"]
        z = {name: wide(p.detach().clone()) for name, p in run.model.named_parameters()}
        seen.append({"w": own["push_weight"], "z": z, "r": own["residuals"]})
    if run.optimizer.staleness == "unbounded":
        # The first save waits for all ranks: each takes steps until all have been in it.
        while len(finished) < comm.size:
            if saver._memory._generation > 0:
                finished.add(comm.rank)
            run.steps(stop, stop + 1)
            saver.after_step(step=stop)
    end = run.everything()
    if finish:
        run.close()
    else:
        saver._end(well=False)
        run.optimizer.push_sum.member.give_up()
    return start, end, seen


def wide(tensor):
    """Half-precision values in float32, in which their residuals are."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def start(size, folders, stop, **options):
    """Run until it dies or finishes."""
    dies = options.get("dies")
    options["finished"] = set()
    if dies is None:
        return ps.testing.run(size, lambda comm: train(comm, folders, stop, **options), timeout=60)
    with pytest.raises((Lost, ps.testing.RankErrors)):
        ps.testing.run(size, lambda comm: train(comm, folders, stop, **options), timeout=60)
    return None


def lose(folders, host):
    """Lose the memory of a host."""
    for path in (folders / "memory" / str(host)).rglob("*.[ab]"):
        path.unlink()


def test_synchronous_run_that_dies_goes_on_from_memory_with_the_same_bits(folders):
    start(3, folders, 12, dies=10)
    resumed = start(3, folders, 14, finish=True)
    (folders / "none" / "memory").mkdir(parents=True)
    undisturbed = start(3, folders / "none", 14, finish=True)
    assert [one["begin"] for one, _, _ in resumed] == [8] * 3
    assert [end for _, end, _ in resumed] == [end for _, end, _ in undisturbed]


@pytest.mark.parametrize(("size", "staleness"), [(2, 0), (3, 1), (5, 2)])
def test_all_mass_is_there_after_a_resume_though_messages_were_in_flight(folders, staleness, size):
    start(size, folders, 11, staleness=staleness)
    resumed = start(size, folders, 9, staleness=staleness)
    assert [one["begin"] for one, _, _ in resumed] == [8] * size
    assert sum(one["w"] for one, _, _ in resumed) == pytest.approx(size, rel=1e-14)


class Sent(ps.Listener):
    """Remembers what was given: (round, mass, z at that moment)."""

    def __init__(self, run):
        self._run = run
        self.given = []
        run.optimizer.push_sum.subscribe(self)

    def message_posted(self, round, peer, nbytes, mass):
        self.given.append((round, mass, {name: p.detach().clone() for name, p in self._run.model.named_parameters()}))


@pytest.mark.parametrize("staleness", [1, 3])
def test_mean_moves_by_what_senders_moved_while_their_messages_were_in_flight_and_by_no_more(folders, staleness):
    """x_i = w z + sum of m z_sent becomes (w + sum of m) z."""
    options = {"staleness": staleness, "dtype": torch.float64}

    def before(comm):
        run = Run(comm, **options)
        sent = Sent(run)
        saver = ps.checkpoint.Saver(
            folders / "disk", run.optimizer, memory_every=EVERY, memory_directory=folders / "memory", memory_limit=1.0,
            **run.beside,
        )  # fmt: skip
        for k in range(8):
            run.steps(k, k + 1)
            saver.after_step(step=k + 1)
        z = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        w = run.optimizer.push_weight
        saver._end(well=False)
        run.optimizer.push_sum.member.give_up()
        return w, z, [one for one in sent.given if one[0] >= 8 - staleness]

    held = ps.testing.run(3, before)
    resumed = start(3, folders, 8, **options)
    assert sum(w + sum(m for _, m, _ in given) for w, _, given in held) == pytest.approx(3, rel=1e-14)
    some = 0.0
    for name in held[0][1]:
        exact = sum(w * z[name] + sum(m * sent[name] for _, m, sent in given) for w, z, given in held)
        moved = sum(m * (z[name] - sent[name]) for _, z, given in held for _, m, sent in given)
        found = sum(one["w"] * one["model"][name] for one, _, _ in resumed)
        some = max(some, float(moved.abs().max()))
        assert torch.allclose(found, exact + moved, **close(found)), name
    assert some > 1e-4


@pytest.mark.parametrize(
    ("hosts", "staleness"), [((0, 2), 0), ((0, 2, 2), 1), ((0, 0, 2, 2), 1), ((0, 0, 1, 1, 2, 2), 0)]
)
def test_lost_host_is_left_out_of_the_exact_weighted_average(folders, staleness, hosts, caplog):
    """Six ranks on three hosts; host 1 is lost, with its two ranks."""
    options = {"staleness": staleness, "dtype": torch.float64}
    before = start(6, folders, 9, hosts=(0, 0, 1, 1, 2, 2), **options)
    parts = held(folders, 8)
    assert len(parts) == 6
    lose(folders, 1)
    with caplog.at_level("INFO", "pushsum_opt"):
        after = start(len(hosts), folders, 8, hosts=hosts, **options)
    assert [one["begin"] for one, _, _ in after] == [8] * len(hosts)
    left = [rank for rank in range(6) if rank not in (2, 3)]
    mass = sum(parts[rank].weight for rank in left)
    for name, value in before[0][2][7]["z"].items():
        expected = sum(parts[rank].weight * before[rank][2][7]["z"][name] for rank in left) / mass
        for one, _, _ in after:
            assert torch.allclose(one["model"][name], expected, **close(value)), name
    assert sum(one["w"] for one, _, _ in after) == pytest.approx(len(hosts), rel=1e-12)
    line = next(record.message for record in caplog.records if "resumed from" in record.message)
    assert "the parts of ranks 2, 3 of 6 are missing" in line
    assert f"with {1 - mass / 6:.4g} of the mass" in line


def close(tensor):
    """One parameter is complex64 whatever the others are."""
    return {"rtol": 1e-13, "atol": 1e-14} if tensor.dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}


def held(folders, round):
    found = {}
    for path in (folders / "memory").rglob("*.[ab]"):
        about = read_about(path)
        if about is not None and about.round == round:
            found[about.rank] = about
    return found


def test_newest_round_that_all_hosts_have_is_taken_where_one_was_killed_while_it_wrote(folders):
    start(3, folders, 9)
    newest = [path for path in (folders / "memory").rglob("*.[ab]") if read_about(path).round == 8]
    data = bytearray(newest[1].read_bytes())
    data[:8] = bytes(8)
    newest[1].write_bytes(data)
    resumed = start(3, folders, 4)
    assert [one["begin"] for one, _, _ in resumed] == [4] * 3


def test_what_the_run_was_resumed_from_stays_until_all_ranks_have_something_newer(folders):
    start(2, folders, 9)
    start(2, folders, 11)  # dies before it has saved anything
    resumed = start(2, folders, 13)  # has saved round 12 over round 4, not over round 8
    assert [one["begin"] for one, _, _ in resumed] == [8] * 2
    assert {about.round for about in map(read_about, (folders / "memory").rglob("*.[ab]"))} == {8, 12}
    resumed = start(2, folders, 12)
    assert [one["begin"] for one, _, _ in resumed] == [12] * 2


def test_disk_is_taken_where_it_has_a_newer_round_and_memory_where_that_has(folders):
    start(2, folders, 11, every=10)
    assert start(2, folders, 10, every=10)[0][0]["begin"] == 10
    start(2, folders, 14, every=10)
    assert start(2, folders, 12, every=10)[0][0]["begin"] == 12


def test_too_little_is_never_taken_silently(folders):
    """Data weights are 1, 2, 3, 4: host 3 alone stands for 0.4 of all."""
    start(4, folders, 9, hosts=range(4))
    for host in (0, 1, 2):
        lose(folders, host)
    said = r"0\.4 of the data weight is left, expected at least 0\.5"
    with pytest.raises(ps.testing.RankErrors, match=said) as error:
        start(4, folders, 8, hosts=range(4))
    assert all(isinstance(one, CheckpointError) for one in error.value.errors.values())
    assert start(4, folders, 8, enough=0.4, hosts=range(4))[0][0]["begin"] == 8


def test_with_too_little_in_memory_the_run_goes_on_from_the_disk_and_says_so(folders, caplog):
    start(4, folders, 14, every=9, hosts=range(4))
    for host in (1, 2, 3):
        lose(folders, host)
    with caplog.at_level("WARNING", "pushsum_opt"):
        assert start(4, folders, 9, every=9, hosts=range(4))[0][0]["begin"] == 9
    assert any("less than enough=0.5, so the run goes on from the disk" in one.message for one in caplog.records)


def test_host_without_any_part_gets_one_from_another(folders):
    """Host 1 is replaced by an empty one: its ranks get optimizer state, scheduler and extra over the network."""
    start(4, folders, 9, hosts=(0, 0, 1, 1), weighted=False)
    lose(folders, 0)
    resumed = start(4, folders, 10, hosts=(0, 0, 1, 1), weighted=False)
    assert [one["begin"] for one, _, _ in resumed] == [8] * 4
    assert [one["round"] for one, _, _ in resumed] == [8] * 4


def test_nothing_is_left_in_memory_after_a_clean_end_and_everything_after_another(folders):
    start(3, folders, 6, finish=True)
    assert list((folders / "memory").rglob("*")) == []
    assert list((folders / "disk").iterdir()) == []
    start(3, folders, 6)
    assert len(list((folders / "memory").rglob("*.a"))) == 3


def test_run_that_is_told_to_stop_saves_to_the_disk_and_leaves_nothing_in_memory(folders):
    def rank(comm):
        run = Run(comm)
        saver = ps.checkpoint.Saver(
            folders / "disk", run.optimizer, memory_every=2, memory_directory=folders / "memory", memory_limit=1.0,
            **run.beside,
        )  # fmt: skip
        with pytest.raises(SystemExit):
            for k in range(20):
                run.steps(k, k + 1)
                if k == 5:
                    saver.request_stop()
                saver.after_step(step=k + 1)

    ps.testing.run(2, rank)
    assert list((folders / "memory").iterdir()) == []
    assert len(list((folders / "disk").glob("save-*/manifest.json"))) == 1


def test_memory_of_a_run_whose_directory_was_deleted_is_not_taken_for_that_of_a_new_one(folders):
    start(2, folders, 9)
    shutil.rmtree(folders / "disk")
    assert start(2, folders, 5)[0][0]["begin"] == 0
    assert len(list((folders / "memory").iterdir())) == 1, "what the first run had left is removed"


@pytest.mark.parametrize("size", [2, 3])
def test_asynchronous_run_goes_on_from_memory_with_all_mass(folders, size):
    start(size, folders, 30, staleness="unbounded")
    resumed = start(size, folders, 31, staleness="unbounded")
    assert all(one["begin"] > 0 for one, _, _ in resumed)
    assert sum(one["w"] for one, _, _ in resumed) == pytest.approx(size, rel=1e-12)
    fewer = start(1, folders, 31, staleness="unbounded")
    assert fewer[0][0]["begin"] > 0
    assert fewer[0][0]["w"] == pytest.approx(1.0, rel=1e-12)


def test_asynchronous_ranks_that_finish_early_keep_what_others_want_to_keep_and_leave_nothing(folders):
    def rank(comm):
        run = Run(comm, staleness="unbounded")
        saver = ps.checkpoint.Saver(
            folders / "disk", run.optimizer, memory_every=3, memory_directory=folders / "memory", memory_limit=1.0,
            check_every=1, **run.beside,
        )  # fmt: skip
        for k in range(6 + 20 * comm.rank):
            run.steps(k, k + 1)
            saver.after_step(step=k + 1)
        run.close()
        return run.optimizer.push_weight

    assert sum(ps.testing.run(3, rank, seed=8)) == pytest.approx(3, rel=1e-12)
    assert list((folders / "memory").iterdir()) == []


def test_trajectory_is_the_same_with_and_without_checkpoints_in_memory(folders):
    for staleness in STALENESS:

        def plain(comm, staleness=staleness):
            run = Run(comm, staleness=staleness)
            run.steps(0, 9)
            end = run.everything()
            run.close()
            return end

        kept = start(3, folders, 9, staleness=staleness, finish=True)
        assert [end for _, end, _ in kept] == ps.testing.run(3, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_residuals_of_half_precision_count_in_the_average_of_what_is_left(folders, dtype):
    options = {"hosts": range(3), "dtype": dtype}
    before = start(3, folders, 9, **options)
    parts = held(folders, 8)
    lose(folders, 2)
    resumed = start(2, folders, 8, enough=0.4, **options)
    assert [one["begin"] for one, _, _ in resumed] == [8] * 2
    for name, value in before[0][2][7]["z"].items():
        numerators = [
            parts[rank].weight * before[rank][2][7]["z"][name] + before[rank][2][7]["r"].get(name, 0) for rank in (0, 1)
        ]
        mean = sum(numerators) / sum(parts[rank].weight for rank in (0, 1))
        for one, _, _ in resumed:
            x = one["w"] * one["model"][name] + one["r"].get(name, 0)
            assert torch.allclose(x, one["w"] * mean, **close(value)), name


def test_state_is_complete_again_some_rounds_after_a_checkpoint_with_messages_in_flight(folders):
    """Their senders are gone, so what they gave is not known: the save in memory waits until it is merged."""
    start(3, folders, 8, every=7, staleness=2)
    for path in (folders / "memory").rglob("*.[ab]"):
        path.unlink()
    start(3, folders, 13, every=50, staleness=2)
    assert held(folders, 8) == {}, "messages that were sent before 7 are in flight"
    found = held(folders, 9)
    assert sum(about.weight for about in found.values()) == pytest.approx(3, rel=1e-14)


def test_no_room_in_memory_is_the_same_error_on_all_ranks_in_the_first_save(folders, monkeypatch):
    with pytest.raises(ps.testing.RankErrors, match="memory_limit") as error:
        start(3, folders, 9, limit=1e-9)
    assert len({str(one) for one in error.value.errors.values()}) == 1
    assert all(isinstance(one, CheckpointError) for one in error.value.errors.values())
    assert list((folders / "memory").rglob("*.[ab]")) == []


def test_after_a_first_save_without_room_another_one_says_that_the_folder_is_gone(folders):
    def rank(comm):
        run = Run(comm)
        how = {"memory_every": EVERY, "memory_directory": folders / "memory", "memory_limit": 1e-9}
        saver = ps.checkpoint.Saver(folders / "disk", run.optimizer, **how, **run.beside)
        for said in ("memory_limit", "this folder was removed when the first save in memory failed"):
            with pytest.raises(CheckpointError, match=said):
                saver._keep_in_memory()
        saver.close()
        run.close()

    ps.testing.run(2, rank)
    assert not (folders / "memory").exists() or list((folders / "memory").iterdir()) == []


def test_a_first_save_that_fails_leaves_what_the_run_was_resumed_from_to_the_next_start(folders, monkeypatch):
    start(2, folders, 9)
    real = MemoryFile.write

    def write(file, apart, about, **how):
        if about.rank == 1:
            raise OSError(28, "No space left on device")
        return real(file, apart, about, **how)

    with monkeypatch.context() as patched, pytest.raises(ps.testing.RankErrors, match="No space left"):
        patched.setattr(MemoryFile, "write", write)
        start(2, folders, 14)
    assert [one["begin"] for one, _, _ in start(2, folders, 9)] == [8, 8]


def test_a_run_that_goes_on_after_a_first_save_that_failed_does_not_write_over_what_it_was_resumed_from(
    folders,
):
    start(2, folders, 9)

    def refuse(nbytes):
        raise OSError(28, "No space left on device")

    def rank(comm):
        run = Run(comm)
        how = {"memory_every": EVERY, "memory_directory": folders / "memory", "memory_limit": 1.0, "check_every": 2}
        saver = ps.checkpoint.Saver(folders / "disk", run.optimizer, **how, **run.beside)
        assert saver.resume()["step"] == 8
        for file in saver._memory._files:
            file.reserve = refuse
        with pytest.raises(CheckpointError, match="No space left"):
            saver._keep_in_memory()
        for file in saver._memory._files:
            del file.reserve
        saver._keep_in_memory()
        held = sorted(read_about(file.path).run == saver._memory._used[0] for file in saver._memory._files)
        saver._end(well=False)
        run.close()
        return held

    assert ps.testing.run(2, rank) == [[False, True]] * 2


def test_value_that_could_not_be_read_back_is_refused_in_any_save_and_the_ones_before_are_whole(folders, caplog):
    with caplog.at_level("WARNING", "pushsum_opt"):
        start(2, folders, 20, breaks=19)
    assert any("extra=, at ['open'], holds a _io.StringIO" in one.message for one in caplog.records)
    assert start(2, folders, 17)[0][0]["begin"] == 16


def test_later_save_that_fails_on_one_rank_is_a_warning_and_the_others_do_not_wait(folders, monkeypatch, caplog):
    real = MemoryFile.write

    def write(file, apart, about, **how):
        if about.rank == 1 and about.round == 8:
            raise OSError(28, "No space left on device")
        return real(file, apart, about, **how)

    monkeypatch.setattr(MemoryFile, "write", write)
    with caplog.at_level("WARNING", "pushsum_opt"):
        start(3, folders, 10)
    assert any("rank 1, round 8: no checkpoint in memory was written" in one.message for one in caplog.records)
    assert start(3, folders, 4)[0][0]["begin"] == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"memory_every": 1}, "memory_every=1: expected an int of at least 2"),
        ({"memory_every": 2.0}, "memory_every=2.0"),
        ({"memory_every": 2, "memory_directory": "/nowhere"}, "memory_directory='/nowhere': expected a directory"),
        ({"memory_every": 2, "memory_limit": 0}, "memory_limit=0: expected a fraction"),
    ],
)
def test_argument_that_makes_no_sense_is_refused(folders, arguments, said):
    def rank(comm):
        run = Run(comm)
        with pytest.raises(ConfigurationError, match=said):
            ps.checkpoint.Saver(folders / "disk", run.optimizer, **arguments)
        run.close()

    ps.testing.run(1, rank)


def test_folder_of_another_user_is_refused(folders, monkeypatch):
    start(1, folders, 9)
    real = os.getuid()
    for path in list((folders / "memory").iterdir()):
        path.rename(Path(str(path).replace(f"pushsum-{real}-", f"pushsum-{real + 1}-")))
    monkeypatch.setattr(os, "getuid", lambda: real + 1)
    with pytest.raises(ps.testing.RankErrors, match="expected a directory of this user"):
        start(1, folders, 9)


# ---------------------------------------------------------------------- hosts of several ranks, and other optimizers


@pytest.fixture
def two_per_host(monkeypatch):
    monkeypatch.setenv("PUSHSUM_RANKS_PER_HOST", "2")
    monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", "64")  # so that the lanes of a host share the small model


HOSTED = {"within_host": "gradients", "graph": ps.graphs.Ring()}


def test_hosts_of_two_ranks_go_on_from_memory_with_the_same_bits(folders, two_per_host):
    start(4, folders, 11, **HOSTED)
    resumed = start(4, folders, 14, finish=True, **HOSTED)
    (folders / "none" / "memory").mkdir(parents=True)
    undisturbed = start(4, folders / "none", 14, finish=True, **HOSTED)
    assert [one["begin"] for one, _, _ in resumed] == [8] * 4
    assert [end for _, end, _ in resumed] == [end for _, end, _ in undisturbed]


@pytest.mark.parametrize("staleness", [0, 2])
def test_host_of_which_one_part_is_lost_is_left_out_as_a_whole(folders, two_per_host, staleness):
    options = {**HOSTED, "staleness": staleness, "dtype": torch.float64}
    before = start(6, folders, 9, hosts=(0, 0, 1, 1, 2, 2), **options)
    parts = held(folders, 8)
    assert sum(about.weight for about in parts.values() if about.place[1] == 0) == pytest.approx(3, rel=1e-14)
    next((folders / "memory" / "1").rglob("*.a")).unlink()
    next((folders / "memory" / "1").rglob("*.b")).unlink()
    after = start(4, folders, 8, hosts=(0, 0, 2, 2), **options)
    assert sum(one["w"] for one, _, _ in after[::2]) == pytest.approx(2, rel=1e-12)
    mass = parts[0].weight + parts[4].weight
    for name, value in before[0][2][7]["z"].items():
        expected = sum(parts[rank].weight * before[rank][2][7]["z"][name] for rank in (0, 4)) / mass
        for one, _, _ in after:
            assert torch.allclose(one["model"][name], expected, **close(value)), name


@pytest.mark.parametrize(
    "options",
    [
        {"adaptive": "corrected", "kind": torch.optim.AdamW, "staleness": 1},
        {"slow": True},
        {"gossip_every": 2, "staleness": 1},
        {"wire_dtype": torch.bfloat16, "staleness": 1},
        {"wire_dtype": "int8", "staleness": 1},
        {"buffers": "average"},
        {"buffers": "gossip", "staleness": 2},
    ],
    ids=str,
)
def test_other_optimizers_go_on_from_memory_with_all_mass_also_after_a_loss(folders, options):
    stop = 18 if "gossip_every" in options else 11
    start(3, folders, stop, hosts=range(3), **options)
    resumed = start(3, folders, stop, hosts=range(3), **options)
    assert all(one["round"] == 8 for one, _, _ in resumed)
    assert sum(one["w"] for one, _, _ in resumed) == pytest.approx(3, rel=1e-13)
    lose(folders, 2)
    fewer = start(2, folders, stop, hosts=(0, 1), enough=0.4, **options)
    assert all(one["round"] == 8 for one, _, _ in fewer)
    assert sum(one["w"] for one, _, _ in fewer) == pytest.approx(2, rel=1e-12)
