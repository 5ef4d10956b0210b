"""state_dict and load_state_dict: local, without side effects, readable by torch alone."""

from __future__ import annotations

import copy
import io
import itertools
import logging

import pytest
import torch
from optimizer.common import FIRST_ORDER, KINDS, alone, bits, closure_of, flat, network, ring, star, train, values
from torch.distributed.checkpoint import state_dict as dcp

import pushsum_opt as ps

pytestmark = pytest.mark.filterwarnings("ignore:LBFGS on")
every_kind = pytest.mark.parametrize("kind", list(KINDS))


def saved(state):
    """Return a state as it comes out of a file; torch must read it without running code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def halves(model):
    return model.to(torch.bfloat16)


# ---------------------------------------------------------------------- saving


@every_kind
@pytest.mark.parametrize("size", [1, 3])
def test_a_state_holds_the_inner_one_and_this_ranks_mass_and_loads_with_weights_only(kind, size):
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, graph=star, comm=comm) as wrapped:
            train(wrapped, model, 3, comm.rank)
            state = saved(wrapped.state_dict())
            mass = state.pop("push_sum")
            assert flat(state) == flat(wrapped.optimizer.state_dict())
            assert {"run", "rank", "size", "round", "push_weight"} <= set(mass)
            assert (mass["rank"], mass["size"], mass["round"]) == (comm.rank, size, 3)
            return mass["run"], mass["push_weight"], wrapped.push_weight

    results = ps.testing.run(size, rank)
    assert len({run for run, *_ in results}) == 1
    assert [weight for _, weight, _ in results] == [weight for *_, weight in results]


def test_a_state_without_a_format_is_of_the_first_and_one_of_a_newer_format_is_refused_unloaded():
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm) as wrapped:
            train(wrapped, model, 2, comm.rank)
            state = saved(wrapped.state_dict())
            train(wrapped, model, 1, comm.rank)
            newer = {**state, "push_sum": {**state["push_sum"], "format": state["push_sum"]["format"] + 1}}
            newer["param_groups"] = [{**group, "lr": 7.0} for group in state["param_groups"]]
            with pytest.raises(ps.errors.CheckpointError, match=f"rank {comm.rank}: .* has format 2, .* reads up to 1"):
                wrapped.load_state_dict(newer)
            assert wrapped.round == 3, "nothing of a refused state is loaded"
            assert wrapped.param_groups[0]["lr"] != 7.0
            old = {**state, "push_sum": {key: v for key, v in state["push_sum"].items() if key != "format"}}
            wrapped.load_state_dict(old)
            return wrapped.round

    assert ps.testing.run(2, rank) == [2, 2]


@pytest.mark.parametrize(("kind", "staleness"), [*itertools.product(FIRST_ORDER, (0, 2)), ("LBFGS", 0)])
@pytest.mark.parametrize("make", [network, lambda: halves(network())], ids=["float32", "bfloat16"])
def test_saving_and_evaluating_every_third_step_never_change_the_trajectory(kind, staleness, make):
    def rank(comm, looks):
        model = make()
        dtype = next(model.parameters()).dtype
        options = {"graph": star, "staleness": staleness, "data_weight": 1.0 + comm.rank, "comm": comm}
        path = []
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, **options) as wrapped:
            for step in range(8):

                def closure(step=step):
                    wrapped.zero_grad()
                    generator = torch.Generator().manual_seed(1000 * comm.rank + step)
                    inputs = torch.randn(8, 6, generator=generator).to(dtype)
                    loss = (model(inputs) - 1).square().mean()
                    loss.backward()
                    return loss

                wrapped.step(closure)
                if looks and step % 3 == 0:
                    with wrapped.averaged():
                        flat(model.state_dict())
                    saved(wrapped.state_dict())
                    wrapped.stats(), repr(wrapped), wrapped.push_weight
                    ps.consensus_distance(wrapped)
                    ps.average(1.0, comm=comm)
                path.append((bits(values(model)), wrapped.push_weight, flat(wrapped.optimizer.state_dict())))
        return path

    assert ps.testing.run(3, lambda comm: rank(comm, True)) == ps.testing.run(3, lambda comm: rank(comm, False))


def test_a_state_stays_what_it_was_while_training_goes_on():
    """push_sum's part, residuals included, is a copy; the inner part is torch's and shares its tensors as always."""

    def rank(comm):
        model = halves(network())
        with ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), 0.1), model, graph=star, comm=comm) as wrapped:
            for _ in range(3):
                for parameter in model.parameters():
                    parameter.grad = torch.full_like(parameter, 0.1 + comm.rank)
                wrapped.step()
            mass = wrapped.state_dict()["push_sum"]
            before = flat(mass)
            assert any(residual.any() for residual in mass["residuals"].values())
            wrapped.gossip()
            return before == flat(mass)

    assert ps.testing.run(3, rank) == [True] * 3


# ---------------------------------------------------------------------- loading


@every_kind
def test_a_saved_state_continues_the_plain_optimizer(kind):
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, comm=comm)
        train(wrapped, model, 3)
        twin = copy.deepcopy(model)
        plain = KINDS[kind](twin.parameters(), lr=0.5)
        plain.load_state_dict(saved(wrapped.state_dict()))
        train(plain, twin, 3, start=3)
        train(wrapped, model, 3, start=3)
        assert bits(values(twin)) == bits(values(model))

    alone(rank)


@every_kind
@pytest.mark.parametrize("make", [network, lambda: halves(network())], ids=["float32", "bfloat16"])
def test_a_run_on_a_regular_graph_that_every_rank_saved_continues_with_the_same_bits(kind, make):
    """A synchronous run stopped after 4 of 8 steps and resumed in a new wrapper; w is a_i between its rounds."""

    def step(wrapped, model, k, rank):
        def closure():
            wrapped.zero_grad()
            generator = torch.Generator().manual_seed(1000 * rank + k)
            inputs = torch.randn(8, 6, generator=generator).to(next(model.parameters()).dtype)
            loss = (model(inputs) - 1).square().mean()
            loss.backward()
            return loss

        wrapped.step(closure)

    def wrap(comm):
        model = make()
        return model, ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, graph=ring, comm=comm)

    def rank(comm, stops):
        model, wrapped = wrap(comm)
        for k in range(8):
            if stops and k == 4:
                weights, state = copy.deepcopy(model.state_dict()), saved(wrapped.state_dict())
                wrapped.close()
                model, wrapped = wrap(comm)
                model.load_state_dict(weights)
                wrapped.load_state_dict(state)
            step(wrapped, model, k, comm.rank)
        wrapped.close()
        return bits(values(model)), wrapped.push_weight, wrapped.round, flat(wrapped.optimizer.state_dict())

    assert ps.testing.run(3, lambda comm: rank(comm, True)) == ps.testing.run(3, lambda comm: rank(comm, False))


@every_kind
def test_load_state_dict_takes_its_argument_by_keyword_and_leaves_it_alone(kind):
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, comm=comm)
        train(wrapped, model, 2)
        state = saved(wrapped.state_dict())
        before = flat(state)
        train(wrapped, model, 2)
        wrapped.load_state_dict(state_dict=state)
        assert wrapped.round == 2
        assert flat(wrapped.state_dict()) == before
        train(wrapped, model, 1)
        assert set(state) == {"state", "param_groups", "push_sum"}

    alone(rank)


@pytest.mark.parametrize("kind", FIRST_ORDER)
@pytest.mark.parametrize("foreign", ["missing", "rank 0's", "of a larger run"])
def test_without_this_ranks_mass_it_restarts_at_its_data_weight_with_one_warning(kind, foreign, caplog):
    data_weights = [1.0, 2.0, 5.0]

    def rank(comm):
        model = network()
        options = {"graph": star, "data_weight": data_weights[comm.rank], "comm": comm}
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, **options) as wrapped:
            train(wrapped, model, 3, comm.rank)
            state = ps.broadcast_object(wrapped.state_dict(), comm=comm)
            if foreign == "missing":
                del state["push_sum"]
            elif foreign == "of a larger run":
                state["push_sum"] = dict(state["push_sum"], size=4)
            before = wrapped.push_weight
            wrapped.load_state_dict(state)
            loaded = wrapped.push_weight
            train(wrapped, model, 1, comm.rank)  # all go on together
            return before, loaded, wrapped.round

    with caplog.at_level(logging.WARNING, "pushsum_opt"):
        results = ps.testing.run(3, rank)
    warned = [r.getMessage() for r in caplog.records if "starts with push weight" in r.getMessage()]
    assert len(warned) == 3
    for r, (before, loaded, rounds) in enumerate(results):
        assert loaded == pytest.approx(3 * data_weights[r] / 8, rel=1e-14)
        assert before != pytest.approx(3 * data_weights[r] / 8), "the test can tell them apart"
        assert rounds == 4
        assert any(f"rank {r}:" in text for text in warned)
    assert sum(loaded for _, loaded, _ in results) == pytest.approx(3, rel=1e-14)


@pytest.mark.parametrize("own", [True, False], ids=["its own file", "rank 0's file"])
@pytest.mark.parametrize(("graph", "staleness"), [(star, 0), (ring, 0), (ring, 1), (star, 3), (ring, "unbounded")])
def test_mass_sums_to_n_whichever_file_each_rank_loads(graph, staleness, own):
    """In the middle of a run, too: what is in flight then belongs to what is given up."""

    def rank(comm):
        model = network()
        options = {"graph": graph, "staleness": staleness, "data_weight": 1.0 + comm.rank, "comm": comm}
        with ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, **options) as wrapped:
            train(wrapped, model, 4, comm.rank)
            if staleness == "unbounded":
                wrapped.drain()  # asynchronous messages come when they come
            state = saved(wrapped.state_dict()) if own else ps.broadcast_object(wrapped.state_dict(), comm=comm)
            train(wrapped, model, 0 if staleness == "unbounded" else 2, comm.rank, start=4)
            wrapped.load_state_dict(state)
            loaded, rounds = wrapped.push_weight, wrapped.round
            train(wrapped, model, 5, comm.rank, start=4)
        return loaded, rounds, wrapped.push_weight

    results = ps.testing.run(4, rank, timeout=30, seed=1)
    assert sum(loaded for loaded, *_ in results) == pytest.approx(4, rel=1e-13)
    assert sum(end for *_, end in results) == pytest.approx(4, rel=1e-13)
    assert {rounds for _, rounds, _ in results} == {4}


def test_a_plain_optimizers_state_loads_with_one_warning(caplog):
    def rank(comm):
        model = network()
        plain = KINDS["AdamW"](model.parameters())
        train(plain, model, 2)
        twin = copy.deepcopy(model)
        wrapped = ps.PushSumOptimizer(KINDS["AdamW"](twin.parameters()), twin, comm=comm)
        wrapped.load_state_dict(saved(plain.state_dict()))
        train(plain, model, 2, start=2)
        train(wrapped, twin, 2, start=2)
        assert bits(values(model)) == bits(values(twin))

    with caplog.at_level(logging.WARNING, "pushsum_opt"):
        alone(rank)
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


# ---------------------------------------------------------------------- torch.distributed.checkpoint


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_the_helpers_of_torch_distributed_checkpoint_save_and_load_it(kind):
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, graph=star, comm=comm) as wrapped:
            train(wrapped, model, 2, comm.rank)
            rounds, expected = wrapped.round, flat(wrapped.optimizer.state_dict())
            state = copy.deepcopy(dcp.get_optimizer_state_dict(model, wrapped)) if comm.rank == 0 else None
            assert wrapped.round == rounds, "reading is no step"
            train(wrapped, model, 1, comm.rank)
            if comm.rank == 0:
                assert set(state["state"]) == {name for name, _ in model.named_parameters()}
                dcp.set_optimizer_state_dict(model, wrapped, state)
                assert wrapped.round == 3, "a state in that form knows nothing of rounds"
                found = flat(wrapped.optimizer.state_dict())
                assert [x for x in found if isinstance(x, tuple)] == [x for x in expected if isinstance(x, tuple)]
            train(wrapped, model, 1, comm.rank)

    ps.testing.run(2, rank, timeout=30)


@every_kind
def test_closures_after_loading_use_the_loaded_groups(kind):
    """What load_state_dict puts in place of the groups is what the next step reads."""

    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, comm=comm)
        state = saved(wrapped.state_dict())
        state["param_groups"][0]["lr"] = 0.0
        wrapped.load_state_dict(state)
        before = values(model)
        wrapped.step(closure_of(model, 0))
        assert bits(before) == bits(values(model))
        assert wrapped.param_groups[0]["lr"] == 0.0

    alone(rank)


@pytest.mark.parametrize("staleness", [1, 2])
def test_a_run_with_messages_in_flight_that_every_rank_saved_goes_on_with_all_of_its_mass(staleness):
    """One rank alone cannot put messages in flight back: each starts at w = a_i, and says so."""

    def rank(comm):
        model = network()

        def wrap():
            options = {"graph": star, "staleness": staleness, "comm": comm}
            return ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, **options)

        wrapped = wrap()
        train(wrapped, model, 5, comm.rank)
        weights, state = copy.deepcopy(model.state_dict()), saved(wrapped.state_dict())
        wrapped.close()
        wrapped = wrap()
        model.load_state_dict(weights)
        wrapped.load_state_dict(state)
        train(wrapped, model, 4, comm.rank, start=5)
        wrapped.close()
        return wrapped.push_weight

    weights = ps.testing.run(3, rank, timeout=30)
    assert sum(weights) == pytest.approx(3, rel=1e-13)
    assert min(weights) > 0
