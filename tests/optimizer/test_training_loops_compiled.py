"""torch.compile, of the model and of the optimizer's step, in every mode."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from optimizer.common import batch, bits, network, ring, values
from optimizer.training_loops import (
    BOUNDED,
    DATA_WEIGHTS,
    MODES,
    ROUNDS,
    SIZE,
    A,
    expected,
    loss_of,
    one_at_a_time,
    train,
    vector,
)
from support.problems import Irregular

import pushsum_opt as ps

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),  # these are torch's own
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
INDUCTOR = pytest.param(
    "inductor",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler on the PATH"),
    ],
)
BACKENDS = ["eager", pytest.param("aot_eager", marks=pytest.mark.slow), INDUCTOR]


def with_backends(staleness):
    """Parametrize with all modes on the quickest backend, and some on the others: none knows of the other."""
    aot_eager, inductor = BACKENDS[1:]
    pairs = [("eager", mode) for mode in staleness]
    pairs += [pytest.param(*aot_eager.values, 1, marks=aot_eager.marks)]
    pairs += [pytest.param(*inductor.values, mode, marks=inductor.marks) for mode in (0, 2)]
    return pytest.mark.parametrize(("backend", "staleness"), pairs)


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def plain(model):
    def step(optimizer, k, rank):
        optimizer.zero_grad()
        loss_of(model, k, rank).backward()
        optimizer.step()

    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), step


def compiled_model(backend):
    def recipe(model):
        compiled = torch.compile(model, backend=backend)

        def step(optimizer, k, rank):
            optimizer.zero_grad()
            with one_at_a_time:
                loss_of(compiled, k, rank).backward()
            optimizer.step()

        return torch.optim.SGD(compiled.parameters(), lr=0.1, momentum=0.9), step

    return recipe


# ---------------------------------------------------------------------- the model


@with_backends(BOUNDED)
def test_a_compiled_model_follows_the_papers_algorithm(backend, staleness):
    oracle = expected(plain, staleness)
    for rank, run in enumerate(train(compiled_model(backend), staleness)):
        np.testing.assert_allclose(run.path, oracle.z[:, rank], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_model_moves_the_sum_of_all_models_when_asynchronous(backend):
    runs = train(compiled_model(backend), "unbounded")
    total = sum(a * (run.path[0] + run.moved.sum(0)) for a, run in zip(A, runs, strict=True))
    np.testing.assert_allclose(sum(run.numerator for run in runs), total, rtol=0, atol=1e-10)


def test_gossip_makes_nothing_compile_again_and_averages_reach_the_compiled_model():
    """Parameters change in place: a rank compiles its model once, and what it has compiled sees the average."""
    compilations = [0] * 2

    def rank(comm):
        def backend(graph, inputs):
            compilations[comm.rank] += 1
            return graph.forward

        model = network()
        compiled = torch.compile(model, backend=backend)
        inputs, _ = batch(0)
        inner = torch.optim.SGD(compiled.parameters(), lr=0.1)
        with ps.PushSumOptimizer(inner, compiled, graph=ring, staleness=1, comm=comm) as optimizer:
            for k in range(ROUNDS):
                optimizer.zero_grad()
                with one_at_a_time:
                    loss_of(compiled, k, comm.rank).backward()
                optimizer.step()
            with optimizer.averaged():
                with one_at_a_time:
                    found = compiled(inputs).detach()
                expected = model(inputs).detach()
                everywhere = bits(values(model))
            with one_at_a_time:
                assert not torch.equal(compiled(inputs), found), "afterwards it has its own parameters again"
            assert bits([found]) == bits([expected])
            return everywhere

    one, other = ps.testing.run(2, rank)
    assert one == other
    assert compilations == [1, 1]


# ---------------------------------------------------------------------- the step


def run_steps(comm, staleness, backend=None, rounds=ROUNDS, after_step=lambda: None):
    """Rank 0 compiles its step. The others wait for its messages inside theirs, so no lock can be held there."""
    model = network().double()
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options = {"graph": Irregular(3), "data_weight": DATA_WEIGHTS[comm.rank], "comm": comm}
    with ps.PushSumOptimizer(inner, model, staleness=staleness, **options) as optimizer:
        step = optimizer.step
        if backend is not None and comm.rank == 0:
            step = torch.compile(step, backend=backend)
        for k in range(rounds):
            optimizer.zero_grad()
            loss_of(model, k, comm.rank).backward()
            step()
            if comm.rank == 0:
                after_step()
        path = vector(model)
    return path, optimizer.round, optimizer.push_weight


@with_backends(MODES)
def test_a_compiled_step_does_what_the_plain_one_does(backend, staleness):
    found = ps.testing.run(SIZE, lambda comm: run_steps(comm, staleness, backend))
    assert [rounds for _, rounds, _ in found] == [ROUNDS] * SIZE
    assert sum(weight for *_, weight in found) == pytest.approx(SIZE, rel=1e-12)
    if staleness != "unbounded":
        plain_runs = ps.testing.run(SIZE, lambda comm: run_steps(comm, staleness))
        for (one, *_), (other, *_) in zip(found, plain_runs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)  # inductor fuses multiply and add


@pytest.mark.parametrize("staleness", BOUNDED)
def test_a_compiled_step_is_compiled_and_stops_compiling(staleness):
    """The round and the push weight change in every step, and are no reason to compile again."""
    graphs, history = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    ps.testing.run(SIZE, lambda comm: run_steps(comm, staleness, backend, 24, lambda: history.append(len(graphs))))
    assert history[0] > 0
    assert history[12] == history[23]
