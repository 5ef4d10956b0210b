"""Algorithms, buffers that travel, several steps per round, hosts of several ranks: all of it is saved and goes on."""

from __future__ import annotations

import itertools

import pytest
import torch
from checkpoint.common import Network, Run, running
from optimizer.common import flat, ring

import pushsum_opt as ps
from pushsum_opt.algorithms import DiLoCo, NoLoCo, PeriodicAverage, SlowMomentum
from pushsum_opt.checkpoint import Saver
from pushsum_opt.push_sum import rounds

STEPS = 10
CASES = {
    "a round every second step": {"gossip_every": 2},
    "slow momentum": {"algorithm": lambda: SlowMomentum(every=3)},
    "periodic average": {"algorithm": lambda: PeriodicAverage(3)},
    "buffers that travel": {"buffers": "gossip"},
    "local buffers": {"buffers": "local"},
}
OUTER_STEPS = {
    "noloco": {"algorithm": lambda: NoLoCo(every=3, outer_momentum=0.5)},
    "noloco rounded on the wire": {"algorithm": lambda: NoLoCo(every=3), "wire_dtype": "bfloat16"},
    "diloco": {"algorithm": lambda: DiLoCo(every=3)},
}  # with staleness=0 only


def run_with_a_break(comm, directory, at, **options):
    """Train; stop after ``at`` steps and go on in a new run, unless ``at`` is None."""

    def make():
        made = {key: value() if key == "algorithm" else value for key, value in options.items()}
        return Run(comm, **made)

    run = make()
    if at is not None:
        run.steps(0, at)
        ps.checkpoint.save(directory, run.optimizer, **run.beside)
        run.close()
        run = make()
        assert ps.checkpoint.load(directory, run.optimizer, **run.beside).exact
    run.steps(at or 0, STEPS)
    run.close()
    return run.everything()


@pytest.mark.parametrize(("name", "staleness", "at"), list(itertools.product(CASES, (0, 2), (4, 5))))
def test_resumed_run_has_the_same_bits_with(tmp_path, name, staleness, at):
    options = {**CASES[name], "staleness": staleness}
    broken, whole = (ps.testing.run(3, lambda c, k=k: run_with_a_break(c, tmp_path, k, **options)) for k in (at, None))
    assert broken == whole


@pytest.mark.parametrize(("name", "at"), list(itertools.product(OUTER_STEPS, (4, 6))))
def test_a_run_with_outer_steps_resumes_with_the_same_bits(tmp_path, name, at):
    options = {**OUTER_STEPS[name], "graph": None}
    broken, whole = (ps.testing.run(3, lambda c, k=k: run_with_a_break(c, tmp_path, k, **options)) for k in (at, None))
    assert broken == whole


def test_buffers_that_travel_are_averaged_by_mass_as_averaged_does(tmp_path):
    def rank(comm):
        with running(comm, dtype=torch.float64, staleness=2, buffers="gossip") as run:
            run.steps(0, 5)
            ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
            with run.optimizer.averaged():
                return run.model.norm.running_mean.clone()

    mean = ps.testing.run(3, rank)[0]
    torch.testing.assert_close(ps.checkpoint.consolidate(tmp_path)["norm.running_mean"], mean, rtol=1e-14, atol=1e-16)


def test_local_buffers_are_rank_0s_or_of_rank_modulo_old_size(tmp_path):
    def rank(comm, loads):
        with running(comm, buffers="local") as run:
            if loads:
                ps.checkpoint.load(tmp_path, run.optimizer, **run.beside)
            else:
                run.steps(0, 3)
                ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
            return flat(run.model.norm.running_mean)

    saved = ps.testing.run(2, lambda comm: rank(comm, False))
    assert saved[0] != saved[1]
    assert ps.testing.run(3, lambda comm: rank(comm, True)) == [saved[0], saved[1], saved[0]]
    assert flat(ps.checkpoint.consolidate(tmp_path)["norm.running_mean"]) == saved[0]


def test_ranks_with_different_numbers_of_batches_save_and_stop_between_their_epochs(tmp_path):
    def rank(comm):
        run = Run(comm)
        saver = Saver(tmp_path, run.optimizer, every=3, check_every=2, **run.beside)
        try:
            for epoch in range(4):
                with run.optimizer.join():
                    for k in range(2 + 3 * comm.rank):
                        run.steps(k, k + 1)
                        if (epoch, comm.rank, k) == (1, 0, 0):
                            saver.request_stop()
                        saver.after_step()
                saver.after_step(epoch=epoch + 1)
        except SystemExit as stop:
            return (stop.code, epoch), run.optimizer.round
        return None, run.optimizer.round

    results = ps.testing.run(3, rank, timeout=60)
    assert len(set(results)) == 1
    assert results[0][0] == (75, 3), "asked in epoch 1, voted in 1, seen in 3"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("kind", [SlowMomentum, NoLoCo, DiLoCo])
def test_slow_weights_resume_on_another_number_of_ranks(tmp_path, kind):
    def rank(comm, loads):
        with running(comm, algorithm=kind(every=3)) as run:
            if loads:
                ps.checkpoint.load(tmp_path, run.optimizer, **run.beside)
            run.steps(0, 5)
            ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
            return flat(run.optimizer.state_dict()["push_sum"]["algorithm"]), run.optimizer.push_weight

    ps.testing.run(3, lambda comm: rank(comm, False))
    results = ps.testing.run(2, lambda comm: rank(comm, True))
    assert results[0][0] != []
    assert results[0][0] == results[1][0] or kind is NoLoCo, "only its ranks have slow weights of their own"
    assert sum(weight for _, weight in results) == pytest.approx(2, rel=1e-12)


# ---------------------------------------------------------------------- hosts of several ranks


@pytest.fixture
def two_per_host(monkeypatch):
    monkeypatch.setenv("PUSHSUM_RANKS_PER_HOST", "2")
    monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", "64")  # so that the lanes of a host share the small model


def hosted(**options):
    return {"within_host": "gradients", "graph": ring, **options}


@pytest.mark.parametrize(("size", "staleness"), [(2, 0), (4, 0), (4, 2), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hosts_of_two_ranks_resume_with_the_same_bits(tmp_path, two_per_host, size, staleness, dtype):
    options = hosted(staleness=staleness, dtype=dtype)
    if dtype is torch.bfloat16:
        options["kind"] = lambda p: torch.optim.SGD(p, lr=0.01)
    broken, whole = (
        ps.testing.run(size, lambda c, k=k: run_with_a_break(c, tmp_path, k, **options)) for k in (5, None)
    )
    assert broken == whole


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_hosts_are_averaged_as_averaged_does_and_ranks_without_hosts_start_from_that(
    tmp_path, two_per_host, staleness, dtype
):
    kind = lambda p: torch.optim.SGD(p, lr=0.01)  # noqa: E731

    def save(comm):
        with running(comm, dtype=dtype, kind=kind, **hosted(staleness=staleness)) as run:
            run.steps(0, 5)
            ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
            with run.optimizer.averaged():
                return {key: value.clone() for key, value in run.model.state_dict().items()}

    def load(comm, **options):
        with running(comm, dtype=dtype, kind=kind, **options) as run:
            found = ps.checkpoint.load(tmp_path, run.optimizer, **run.beside)
            assert not found.exact
            start = {key: value.clone() for key, value in run.model.state_dict().items()}
            weight = run.optimizer.push_weight
            run.steps(5, 7)
        return start, weight

    mean = ps.testing.run(4, save)[0]
    without_hosts = ps.testing.run(3, load)
    fewer_hosts = ps.testing.run(2, lambda comm: load(comm, **hosted()))
    same_number = ps.testing.run(4, load)
    assert [weight for _, weight in fewer_hosts] == [1.0, 1.0], "one host: all of its ranks have its weight"
    assert sum(weight for _, weight in without_hosts) == pytest.approx(3, rel=1e-13)
    near = {"rtol": 1e-2, "atol": 1e-2} if dtype is torch.bfloat16 else {"rtol": 1e-13, "atol": 1e-15}
    for start in [ps.checkpoint.consolidate(tmp_path), *(s for s, _ in without_hosts + fewer_hosts + same_number)]:
        for key in set(mean) - {"wave", "norm.num_batches_tracked"}:
            torch.testing.assert_close(start[key], mean[key], **near)
        torch.testing.assert_close(start["wave"], mean["wave"])


def test_ranks_of_hosts_stop_together_when_one_is_asked_to(tmp_path, two_per_host):
    def rank(comm, asks):
        run = Run(comm, **hosted(staleness=1))
        saver = Saver(tmp_path, run.optimizer, check_every=2, **run.beside)
        start = (saver.resume() or {"step": 0})["step"]
        for k in range(start, STEPS):
            run.steps(k, k + 1)
            if asks and comm.rank == 3 and k == 3:
                saver.request_stop()
            try:
                saver.after_step(step=k + 1)
            except SystemExit as stop:
                return stop.code, k + 1
        run.close()
        return run.everything()

    stopped = ps.testing.run(4, lambda comm: rank(comm, True))
    assert len(set(stopped)) == 1
    assert stopped[0][0] == 75
    resumed = ps.testing.run(4, lambda comm: rank(comm, False))
    assert resumed == ps.testing.run(4, lambda comm: run_with_a_break(comm, tmp_path, None, **hosted(staleness=1)))


def test_damage_to_the_file_of_any_lane_is_the_same_error_on_all_ranks(tmp_path, two_per_host):
    def rank(comm):
        with running(comm, **hosted()) as run:
            path = ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
            if comm.rank == 0:
                (path / "rank-00003.pt").unlink()
            rounds.meet(run.optimizer.push_sum.member, "the file to be gone")
            rounds.reassemble(run.optimizer.push_sum.member)
            with pytest.raises(ps.errors.CheckpointError) as error:
                ps.checkpoint.load(tmp_path, run.optimizer, **run.beside)
            return str(error.value)

    texts = ps.testing.run(4, rank)
    assert len(set(texts)) == 1
    assert "rank 3: " in texts[0]


def test_shards_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.Parameter, "to_local", lambda self: self, raising=False)

    def rank(comm):
        model = Network()
        refused = pytest.raises(ps.errors.CheckpointError, match=r"is a DTensor.*torch\.distributed\.checkpoint")
        with ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm) as optimizer, refused:
            ps.checkpoint.save(tmp_path, optimizer)

    ps.testing.run(1, rank)
