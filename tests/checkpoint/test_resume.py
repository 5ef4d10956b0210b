"""Saving never changes a run, and a resumed run goes on as if it had never stopped."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from checkpoint.common import BOUNDED, SIZES, Run, running
from optimizer.common import KINDS, flat, network, ring, star, train

import pushsum_opt as ps

STEPS = 7


@pytest.mark.parametrize(("size", "staleness"), list(itertools.product(SIZES, BOUNDED)))
def test_run_that_saves_every_third_step_has_the_same_bits_as_one_that_never_does(tmp_path, size, staleness):
    def rank(comm, saves):
        path = []
        with running(comm, staleness=staleness) as run:
            for k in range(STEPS):
                run.steps(k, k + 1)
                if saves and k % 3 == 0:
                    ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
                path.append(run.everything())
        return path

    with_saves = ps.testing.run(size, lambda comm: rank(comm, True), seed=1)
    assert with_saves == ps.testing.run(size, lambda comm: rank(comm, False), seed=2)


def resumed(tmp_path, size, at, steps=STEPS, *, changed=None, **options):
    """Return the end of a run that stopped after ``at`` steps, and of one that did not."""

    def rank(comm, stops):
        run = Run(comm, **options)
        run.steps(0, at)
        if stops:
            ps.checkpoint.save(tmp_path, run.optimizer, extra={"rank": comm.rank, "k": at}, **run.beside)
            run.steps(at, at + 2)  # lost
            run.close()
            run = Run(comm, **{**options, **(changed or {})})
            found = ps.checkpoint.load(tmp_path, run.optimizer, **run.beside)
            assert (found.exact, found.round, found.extra) == (True, at, {"rank": comm.rank, "k": at})
        run.steps(at, steps)
        run.close()
        return run.everything()

    return ps.testing.run(size, lambda c: rank(c, True), seed=3), ps.testing.run(size, lambda c: rank(c, False), seed=4)


@pytest.mark.parametrize(("size", "staleness"), list(itertools.product(SIZES, BOUNDED)))
def test_resumed_run_has_the_same_bits_as_one_that_never_stopped(tmp_path, size, staleness):
    after, undisturbed = resumed(tmp_path, size, 4, staleness=staleness)
    assert after == undisturbed


@pytest.mark.parametrize(("at", "staleness"), list(itertools.product((0, 1, 2), (0, 1, 2, 3))))
def test_start_up_of_an_overlapped_run_neither_begins_again_nor_is_left_out(tmp_path, at, staleness):
    """Saved while fewer than tau rounds are in flight."""
    after, undisturbed = resumed(tmp_path, 3, at, staleness=staleness)
    assert after == undisturbed


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.bfloat16},
        {"wire_dtype": torch.bfloat16},
        {"graph": ring, "weighted": False},
        {"kind": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True)},
        {"kind": lambda p: torch.optim.Adagrad(p, lr=0.05)},
    ],
    ids=[
        "half parameters",
        "half on the wire",
        "regular graph",
        "AdamW",
        "Adagrad",
    ],
)
def test_resumed_run_has_the_same_bits_with(tmp_path, options, staleness):
    if options.get("dtype") is torch.bfloat16:
        options = {**options, "kind": lambda p: torch.optim.SGD(p, lr=0.05)}
    after, undisturbed = resumed(tmp_path, 3, 4, staleness=staleness, **options)
    assert after == undisturbed


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", [2, 18])
def test_resumed_run_in_eight_bits_has_the_same_bits(tmp_path, staleness, dtype, at):
    """Saved while messages are whole, and when they are not."""
    sgd = {"kind": lambda p: torch.optim.SGD(p, lr=0.05), "weighted": False, "graph": ps.graphs.Ring()}
    options = {"wire_dtype": "int8", "staleness": staleness, "dtype": dtype, **sgd}
    after, undisturbed = resumed(tmp_path, 3, at, steps=at + 6, **options)
    assert after == undisturbed


def test_pieces_of_another_size_make_no_difference(tmp_path, monkeypatch):
    """Messages in flight are saved by tensor, not as they were cut."""

    def rank(comm, stops):
        monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", "64")
        run = Run(comm, staleness=2)
        run.steps(0, 4)
        if stops:
            ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
            run.close()
            monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", "4096")
            run = Run(comm, staleness=2)
            ps.checkpoint.load(tmp_path, run.optimizer, **run.beside)
        run.steps(4, STEPS)
        run.close()
        return run.everything()

    assert ps.testing.run(2, lambda comm: rank(comm, True)) == ps.testing.run(2, lambda comm: rank(comm, False))


def test_two_resumes_in_a_row_lose_nothing(tmp_path):
    def rank(comm, stops):
        run = Run(comm, staleness=3)
        for k in range(STEPS):
            if stops and k in (1, 2, 4):
                ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
                run.close()
                run = Run(comm, staleness=3)
                ps.checkpoint.load(tmp_path, run.optimizer, **run.beside)
            run.steps(k, k + 1)
        run.close()
        return run.everything()

    assert ps.testing.run(3, lambda comm: rank(comm, True)) == ps.testing.run(3, lambda comm: rank(comm, False))


@pytest.mark.parametrize("staleness", [0, 2])
def test_running_optimizer_goes_back_to_what_was_saved(tmp_path, staleness):
    """Loading into a run in the middle of its rounds drops what it has in flight."""

    def rank(comm, stops):
        with running(comm, staleness=staleness) as run:
            run.steps(0, 4)
            if stops:
                ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
                run.steps(4, 9)
                ps.checkpoint.load(tmp_path, run.optimizer, **run.beside)
            run.steps(4, STEPS)
        return run.everything()

    assert ps.testing.run(3, lambda comm: rank(comm, True)) == ps.testing.run(3, lambda comm: rank(comm, False))


@pytest.mark.parametrize(("before", "after"), [(2, 0), (2, 1), (1, 9), (0, 2), (3, "unbounded"), ("unbounded", 1)])
def test_resume_under_another_staleness_keeps_all_mass_and_the_mean(tmp_path, before, after):
    def rank(comm):
        with running(comm, staleness=before) as run:
            run.steps(0, 5)
            ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
            with run.optimizer.averaged():
                mean = [p.detach().clone() for p in run.model.parameters()]
        with running(comm, staleness=after) as run:
            ps.checkpoint.load(tmp_path, run.optimizer, **run.beside)
            with run.optimizer.averaged():
                for old, new in zip(mean, run.model.parameters(), strict=True):
                    torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-7)
            lowest = []
            for _ in range(14):
                run.optimizer.gossip()
                lowest.append(run.optimizer.push_weight)
        return run.optimizer.push_weight, min(lowest)

    results = ps.testing.run(3, rank)
    assert sum(weight for weight, _ in results) == pytest.approx(3, rel=1e-12)
    assert min(lowest for _, lowest in results) > 0


@pytest.mark.parametrize("size", SIZES)
def test_asynchronous_run_resumes_with_all_of_its_mass_and_its_mean(tmp_path, size):
    def rank(comm):
        with running(comm, staleness="unbounded") as run:
            run.steps(0, 3 + comm.rank)  # ranks are in different rounds
            ps.checkpoint.save(tmp_path, run.optimizer, extra=run.optimizer.round, **run.beside)
            with run.optimizer.averaged():
                mean = [p.detach().clone() for p in run.model.parameters()]
        with running(comm, staleness="unbounded") as run:
            found = ps.checkpoint.load(tmp_path, run.optimizer, **run.beside)
            assert found.extra == found.round == 3 + comm.rank
            loaded = run.optimizer.push_weight
            with run.optimizer.averaged():
                for old, new in zip(mean, run.model.parameters(), strict=True):
                    torch.testing.assert_close(new, old, rtol=1e-6, atol=1e-7)
            run.steps(3 + comm.rank, 6)
        return loaded, run.optimizer.push_weight

    results = ps.testing.run(size, rank, seed=5)
    assert sum(loaded for loaded, _ in results) == pytest.approx(size, rel=1e-12)
    assert sum(end for _, end in results) == pytest.approx(size, rel=1e-12)


# ---------------------------------------------------------------------- what else is saved


def test_random_generators_go_on_where_they_were(tmp_path):
    """One rank: the ranks of a test share the generators of their process."""

    def draw():
        ours = np.random.rand(3).tolist(), np.random.randn()  # noqa: NPY002  (what others draw from)
        return random.random(), ours, torch.rand(3).tolist()

    def rank(comm):
        with running(comm) as run:
            np.random.randn()  # noqa: NPY002  (numpy keeps the other half of a pair)
            ps.checkpoint.save(tmp_path, run.optimizer, **run.beside)
            expected = draw()
            assert draw() != expected
            ps.checkpoint.load(tmp_path, run.optimizer, **run.beside)
            assert draw() == expected

    ps.testing.run(1, rank)


def test_scaler_schedulers_and_other_objects_go_on_where_they_were(tmp_path):
    def rank(comm):
        model = network()
        optimizer = ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm)
        schedulers = [
            torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], 0.5),  # its milestones are a Counter
            torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
            torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 20),
        ]
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(torch.ones(()))  # it is made of nothing before
        ema = torch.optim.swa_utils.AveragedModel(model)
        beside = {"scaler": scaler, "scheduler": schedulers, "also": {"ema": ema}}
        train(optimizer, model, 2, comm.rank)
        schedulers[0].step(), schedulers[1].step(1.0), schedulers[2].step()
        scaler.update(new_scale=4.0)
        ema.update_parameters(model)
        before = flat([scaler.state_dict(), *[one.state_dict() for one in schedulers], ema.state_dict()])
        ps.checkpoint.save(tmp_path, optimizer, **beside)
        train(optimizer, model, 2, comm.rank)
        schedulers[0].step(), schedulers[1].step(2.0), schedulers[2].step()
        scaler.update(new_scale=2.0)
        ema.update_parameters(model)
        changed = flat([scaler.state_dict(), *[one.state_dict() for one in schedulers], ema.state_dict()])
        ps.checkpoint.load(tmp_path, optimizer, **beside)
        after = flat([scaler.state_dict(), *[one.state_dict() for one in schedulers], ema.state_dict()])
        optimizer.close()
        return before == after, before == changed

    assert ps.testing.run(2, rank) == [(True, False)] * 2


@pytest.mark.parametrize("with_model", [True, False])
def test_parameters_that_no_model_holds_are_saved_too(tmp_path, with_model):
    def rank(comm, stops):
        model = network()
        spare = torch.nn.Parameter(torch.ones(3))

        def wrap():
            inner = torch.optim.SGD([*model.parameters(), spare], lr=0.1)
            options = {"graph": star, "staleness": 1, "comm": comm}
            return ps.PushSumOptimizer(inner, model if with_model else None, **options)

        def steps(optimizer, start, stop):
            for k in range(start, stop):
                spare.grad = torch.full((3,), 0.1 * (1 + comm.rank + k))
                for parameter in model.parameters():
                    parameter.grad = torch.full_like(parameter, 0.01 * (k - comm.rank))
                optimizer.step()

        optimizer = wrap()
        steps(optimizer, 0, 3)
        if stops:
            ps.checkpoint.save(tmp_path, optimizer)
            steps(optimizer, 3, 5)
            optimizer.close()
            optimizer = wrap()
            ps.checkpoint.load(tmp_path, optimizer)
        steps(optimizer, 3, 6)
        optimizer.close()
        return flat([spare, list(model.parameters())]), optimizer.push_weight

    assert ps.testing.run(3, lambda comm: rank(comm, True)) == ps.testing.run(3, lambda comm: rank(comm, False))
