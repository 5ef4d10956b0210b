"""What a torch optimizer has and does, the wrapper has and does: schedulers, hooks, closures, groups, compilation."""

from __future__ import annotations

import collections
import copy
import pickle
import warnings

import pytest
import torch
from optimizer.common import (
    FIRST_ORDER,
    KINDS,
    alone,
    batch,
    bits,
    closure_of,
    flat,
    network,
    ring,
    star,
    train,
    values,
)
from torch import nn
from torch.optim import lr_scheduler, swa_utils

import pushsum_opt as ps
from pushsum_opt.errors import ClosedError, LayoutError, MismatchError

pytestmark = pytest.mark.filterwarnings("ignore:LBFGS on")
every_kind = pytest.mark.parametrize("kind", list(KINDS))
first_order = pytest.mark.parametrize("kind", FIRST_ORDER)


# ---------------------------------------------------------------------- schedulers

SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=20),  # looks into defaults for the momentum
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=4),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
    ),
}


@first_order
@pytest.mark.parametrize("schedule", list(SCHEDULERS))
@pytest.mark.parametrize("made", ["before wrapping", "after wrapping", "before loading", "after loading"])
def test_a_scheduler_drives_the_rate_and_momentum_that_are_used(kind, schedule, made):
    def rank(comm):
        bare_model, model = network(), network()
        bare, inner = KINDS[kind](bare_model.parameters()), KINDS[kind](model.parameters())
        expected = SCHEDULERS[schedule](bare)
        found = SCHEDULERS[schedule](inner) if made == "before wrapping" else None
        wrapped = ps.PushSumOptimizer(inner, model, comm=comm)
        if made == "before loading":
            found = SCHEDULERS[schedule](wrapped)
            wrapped.load_state_dict(copy.deepcopy(wrapped.state_dict()))
        elif made == "after loading":
            wrapped.load_state_dict(copy.deepcopy(wrapped.state_dict()))
        found = found or SCHEDULERS[schedule](wrapped)
        rates = set()
        for step in range(7):
            bare.step(closure_of(bare_model, step))
            wrapped.step(closure_of(model, step))
            expected.step()
            found.step()
            assert flat([{k: v for k, v in group.items() if k != "params"} for group in wrapped.param_groups]) == flat(
                [{k: v for k, v in group.items() if k != "params"} for group in bare.param_groups]
            )
            rates.add(wrapped.param_groups[0]["lr"])
        assert len(rates) > 1, "the schedule did something"
        assert bits(values(model)) == bits(values(bare_model))
        assert found.state_dict()["last_epoch"] == 7

    with warnings.catch_warnings():
        if schedule == "SequentialLR":  # torch's own: it steps its parts with an epoch
            warnings.filterwarnings("ignore", message="The epoch parameter")
        alone(rank)


def test_a_scheduler_on_plateaus_drives_the_rate_that_is_used():
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm)
        scheduler = lr_scheduler.ReduceLROnPlateau(wrapped, factor=0.5, patience=0)
        for _ in range(3):
            wrapped.step(closure_of(model, 0))
            scheduler.step(1.0)
        assert wrapped.optimizer.param_groups[0]["lr"] == 0.1 * 0.25

    alone(rank)


@pytest.mark.parametrize("made", ["before wrapping", "after wrapping"])
def test_a_scheduler_sees_that_the_optimizer_has_stepped(made):
    """No warning that the scheduler came first; torch finds out by patching step()."""

    def rank(comm):
        model = network()
        inner = KINDS["SGD"](model.parameters())
        scheduler = SCHEDULERS["StepLR"](inner) if made == "before wrapping" else None
        wrapped = ps.PushSumOptimizer(inner, model, comm=comm)
        scheduler = scheduler or SCHEDULERS["StepLR"](wrapped)
        with pytest.warns(UserWarning, match=r"lr_scheduler.step\(\)` before `optimizer.step"):
            scheduler.step()
        wrapped.step(closure_of(model, 0))

    alone(rank)


# ---------------------------------------------------------------------- state, hooks, closures


@every_kind
def test_state_from_before_wrapping_survives(kind):
    def rank(comm):
        bare_model, model = network(), network()
        bare, inner = KINDS[kind](bare_model.parameters()), KINDS[kind](model.parameters())
        train(bare, bare_model, 6)
        train(inner, model, 3)
        state = inner.state
        wrapped = ps.PushSumOptimizer(inner, model, comm=comm)
        assert wrapped.optimizer is inner
        assert wrapped.state is state
        train(wrapped, model, 3, start=3)
        assert bits(values(bare_model)) == bits(values(model))
        assert flat(bare.state_dict()) == flat(inner.state_dict())

    alone(rank)


@every_kind
def test_hooks_of_wrapper_and_wrapped_fire_once_per_step_in_order(kind):
    def rank(comm):
        model = network()
        inner = KINDS[kind](model.parameters())
        seen = []

        def says(word):
            return lambda optimizer, *_: seen.append((word, optimizer))

        inner.register_step_pre_hook(says("inner before"))
        inner.register_step_post_hook(says("inner after"))
        wrapped = ps.PushSumOptimizer(inner, model, comm=comm)
        wrapped.register_step_pre_hook(says("before"))
        handle = wrapped.register_step_post_hook(says("after"))
        train(wrapped, model, 2)
        names = [("before", wrapped), ("inner before", inner), ("inner after", inner), ("after", wrapped)]
        assert seen == 2 * names
        handle.remove()
        seen.clear()
        train(wrapped, model, 1)
        assert seen == names[:3]

    alone(rank)


def test_hooks_on_saving_and_loading_fire_once_and_may_replace_the_state():
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm)
        seen = []
        for optimizer, name in ((wrapped, "outer"), (wrapped.optimizer, "inner")):
            optimizer.register_state_dict_pre_hook(lambda o, name=name: seen.append(f"{name} before saving"))
            optimizer.register_state_dict_post_hook(lambda o, s, name=name: {**s, name: 1})
            optimizer.register_load_state_dict_pre_hook(lambda o, s, name=name: seen.append(f"{name} before loading"))
            optimizer.register_load_state_dict_post_hook(lambda o, name=name: seen.append(f"{name} after loading"))
        state = wrapped.state_dict()
        assert (state["outer"], state["inner"]) == (1, 1)
        wrapped.load_state_dict(state)
        before, after = ["outer before", "inner before"], ["inner after loading", "outer after loading"]
        assert seen == [f"{who} saving" for who in before] + [f"{who} loading" for who in before] + after

    alone(rank)


@every_kind
@pytest.mark.parametrize("size", [1, 2])
def test_the_wrapped_step_is_called_once_with_the_closure_and_its_loss_comes_back(kind, size):
    def rank(comm):
        model = network()
        inner = KINDS[kind](model.parameters())
        calls, step = [], inner.step

        def counted(*arguments, **keywords):
            calls.append((*arguments, *keywords.values()))
            return step(*arguments, **keywords)

        inner.step = counted
        with ps.PushSumOptimizer(inner, model, comm=comm) as wrapped:
            closure = closure_of(model, 0, comm.rank)
            expected = closure().item()
            assert wrapped.step(closure).item() == expected
            assert calls == [(closure,)]
            assert wrapped.step(closure=closure) is not None
            assert len(calls) == 2
            if kind != "LBFGS":
                assert wrapped.step() is None
                assert calls[2:] == [()]

    ps.testing.run(size, rank)


def test_an_exception_in_the_closure_comes_out_and_ends_the_other_ranks():
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm) as wrapped:
            train(wrapped, model, 1, comm.rank)
            wrapped.step((lambda: 1 / 0) if comm.rank == 1 else closure_of(model, 1, comm.rank))

    with pytest.raises(ps.testing.RankErrors) as caught:
        ps.testing.run(3, rank, timeout=30)
    assert {rank: type(error) for rank, error in caught.value.errors.items()} == {1: ZeroDivisionError}


# ---------------------------------------------------------------------- groups, gradients, copies


@every_kind
def test_zero_grad_does_as_the_wrapped_optimizer_does(kind):
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, comm=comm)
        closure_of(model, 0)()
        wrapped.zero_grad(set_to_none=False)
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
        wrapped.zero_grad(True)
        assert all(p.grad is None for p in model.parameters())
        closure_of(model, 0)()
        wrapped.zero_grad()
        assert all(p.grad is None for p in model.parameters())

    alone(rank)


@every_kind
def test_rebinding_groups_state_and_defaults_reaches_the_wrapped_optimizer(kind):
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, comm=comm)
        groups, defaults = [dict(wrapped.param_groups[0], lr=0.0)], dict(wrapped.defaults)
        state = collections.defaultdict(dict)
        wrapped.param_groups, wrapped.state, wrapped.defaults = groups, state, defaults
        assert wrapped.optimizer.param_groups is wrapped.param_groups is groups
        assert wrapped.optimizer.state is wrapped.state is state
        assert wrapped.optimizer.defaults is wrapped.defaults is defaults
        before = values(model)
        wrapped.step(closure_of(model, 0))
        assert bits(values(model)) == bits(before), "the new rate, 0, is the one that is used"

    alone(rank)


def test_only_the_first_optimizer_holds_anything():
    """No copy that could go stale: the wrapper's own dict has none of the wrapped optimizer's attributes."""

    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm)
        assert isinstance(wrapped, torch.optim.Optimizer)
        assert not {"param_groups", "state", "defaults"} & set(wrapped.__dict__)
        with pytest.raises(AttributeError):
            wrapped.no_such_name  # noqa: B018
        with pytest.raises(TypeError, match="wrapped already"):
            ps.PushSumOptimizer(wrapped, model, comm=comm)

    alone(rank)


@every_kind
def test_repr_shows_the_wrapped_optimizer_and_the_graph(kind):
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, graph=ps.graphs.Ring(), comm=comm) as wrapped:
            wrapped.param_groups[0]["lr"] = 0.625
            text = repr(wrapped)
            assert "PushSumOptimizer" in text
            assert repr(wrapped.optimizer) in text
            assert "lr: 0.625" in text
            assert "Ring()" in text
            assert "staleness=0" in text

    ps.testing.run(2, rank)


@every_kind
@pytest.mark.parametrize("copier", [pickle.dumps, copy.deepcopy, copy.copy])
def test_copying_is_a_type_error_that_points_to_state_dict(kind, copier):
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, comm=comm)
        with pytest.raises(TypeError, match=r"state_dict\(\)"):
            copier(wrapped)

    alone(rank)


# ---------------------------------------------------------------------- LBFGS


def test_lbfgs_runs_on_three_ranks_conserves_mass_and_lowers_the_loss():
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(
            KINDS["LBFGS"](model.parameters()), model, graph=star, data_weight=1.0 + comm.rank, comm=comm
        ) as wrapped:
            losses, weights = [], []
            for _ in range(8):
                losses.append(wrapped.step(closure_of(model, 0, comm.rank)).item())
                weights.append(wrapped.push_weight)
        return losses, weights

    results = ps.testing.run(3, rank)
    for weights in zip(*[weights for _, weights in results], strict=True):
        assert sum(weights) == pytest.approx(3, rel=1e-13)
    means = [sum(losses) for losses in zip(*[losses for losses, _ in results], strict=True)]
    assert means[-1] < 0.9 * means[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1, 2])
def test_lbfgs_warns_once_and_only_beyond_one_rank(size):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")

        def rank(comm):
            model = network()
            ps.PushSumOptimizer(KINDS["LBFGS"](model.parameters()), model, comm=comm).close()

        ps.testing.run(size, rank)
    warned = [one for one in seen if "LBFGS on 2 ranks" in str(one.message)]
    assert len(warned) == len(seen) == (size > 1)
    assert all(one.filename == __file__ for one in warned), "it points to the line that wraps"


# ---------------------------------------------------------------------- a group added later


@first_order  # torch's LBFGS takes one parameter group only
def test_an_added_group_is_optimized_and_gets_rank_0s_values(kind):
    def rank(comm):
        model = network()
        head = nn.Linear(2, 3)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.fill_(comm.rank + 1.0)
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, graph=ring, comm=comm) as wrapped:
            train(wrapped, model, 3, comm.rank)
            model.append(head)
            wrapped.add_param_group({"params": list(head.parameters()), "lr": 0.0, "weight_decay": 0.0})
            assert all((p == 1.0).all() for p in head.parameters())
            assert wrapped.optimizer.param_groups[1]["lr"] == 0.0
            with torch.no_grad():
                for parameter in head.parameters():
                    parameter.fill_(4.0 * comm.rank)
            wrapped.step()
            return [p.unique().tolist() for p in head.parameters()], wrapped.push_weight

    # With a third of the mass each and halves given along a ring: (z_r + z_(r-1)) / 2.
    for (found, weight), expected in zip(ps.testing.run(3, rank), [4.0, 2.0, 6.0], strict=True):
        assert found == [[expected], [expected]]
        assert weight == pytest.approx(1.0)


def test_an_added_group_that_differs_between_ranks_is_refused_on_every_rank():
    said = {}

    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm)
        with pytest.raises(MismatchError) as caught:
            wrapped.add_param_group({"params": [nn.Parameter(torch.zeros(3 + (comm.rank == 2)))]})
        said[comm.rank] = str(caught.value)
        with pytest.raises(ClosedError):
            train(wrapped, model, 1)

    ps.testing.run(3, rank, timeout=30)
    assert all("group 1 parameter 0" in text and "[4]" in text and "rank 2" in text for text in said.values())
    assert len(said) == 3


def test_adding_a_group_after_different_numbers_of_rounds_is_refused():
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm)
        train(wrapped, model, 2, comm.rank)
        if comm.rank == 0:
            wrapped.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
        else:
            wrapped.consensus = ps.consensus_distance(wrapped)

    with pytest.raises(ps.testing.RankErrors) as caught:
        ps.testing.run(2, rank, timeout=30)
    assert any(isinstance(error, MismatchError) for error in caught.value.errors.values())
    assert "add_param_group()" in str(caught.value)


# ---------------------------------------------------------------------- torch.compile, two optimizers, parameters lost


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # these are torch's own
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@first_order
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_training_step_does_what_the_plain_one_does(kind, backend):
    """Rank 0 compiles, rank 1 does not: dynamo is not made for several threads at once."""

    def rank(comm, compiled):
        model = network()
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, graph=star, comm=comm) as wrapped:

            def step(inputs, targets):
                wrapped.zero_grad()
                loss = (model(inputs) - targets).square().mean()
                loss.backward()
                wrapped.step()
                return loss.detach()

            run = torch.compile(step, backend=backend) if compiled and comm.rank == 0 else step
            losses = [run(*batch(k, comm.rank)).item() for k in range(4)]
            return losses, values(model), wrapped.round, wrapped.push_weight

    torch._dynamo.reset()
    found = ps.testing.run(2, lambda comm: rank(comm, True))
    expected = ps.testing.run(2, lambda comm: rank(comm, False))
    for one, other in zip(found, expected, strict=True):
        assert one[2:] == other[2:]
        assert one[2] == 4
        if kind == "AdamW":  # torch computes its bias corrections in another way when it is compiled
            torch.testing.assert_close(one[:2], other[:2], rtol=1e-4, atol=1e-6)
        elif torch.__version__.startswith("2.4."):  # its compiled SGD rounds otherwise
            torch.testing.assert_close(one[:2], other[:2], rtol=1e-5, atol=1e-7)
        else:
            assert (one[0], bits(one[1])) == (other[0], bits(other[1]))


@pytest.mark.parametrize("staleness", [0, 2])
def test_two_optimizers_in_one_program_do_not_mix_their_messages(staleness):
    """Generator and discriminator take turns; messages are late and overtake each other."""

    def rank(comm, together):
        sizes = {"generator": (6, 5), "discriminator": (6, 5)}  # alike, so that a mix-up would not be noticed by shape
        models = {name: nn.Linear(*size) for name, size in sizes.items()}
        for seed, model in enumerate(models.values()):
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator)
        wrapped = {
            name: ps.PushSumOptimizer(
                KINDS["SGD"](model.parameters()), model, graph=ring, staleness=staleness, comm=comm
            )
            for name, model in models.items()
        }

        def step(name, k):
            for parameter in models[name].parameters():
                generator = torch.Generator().manual_seed(100 * k + comm.rank + len(name))
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            wrapped[name].step()

        if together:
            for k in range(6):
                for name in models:
                    step(name, k)
        else:
            for name in models:
                for k in range(6):
                    step(name, k)
        for optimizer in wrapped.values():
            optimizer.close()
        return [bits(values(model)) for model in models.values()]

    apart = ps.testing.run(3, lambda comm: rank(comm, False))
    assert ps.testing.run(3, lambda comm: rank(comm, True), seed=5) == apart


@pytest.mark.parametrize("size", [1, 2])
def test_parameters_that_the_model_lost_by_assignment_are_named(size):
    said = {}

    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict({name: value for name, value in state.items() if name.startswith("2")}, strict=False)
        train(wrapped, model, 1, comm.rank)  # loading without assign is no problem
        lost = {name: nn.Parameter(value) for name, value in state.items() if name.startswith("2")}
        model.load_state_dict(lost, strict=False, assign=True)
        with pytest.raises(LayoutError, match="no longer holds") as caught:
            wrapped.step(closure_of(model, 1, comm.rank))
        said[comm.rank] = str(caught.value)
        for call in (wrapped.step, wrapped.gossip):
            with pytest.raises((LayoutError, ClosedError)):
                call()

    ps.testing.run(size, rank, timeout=30)
    assert len(said) == size
    assert all("2.weight" in text and "2.bias" in text and "0.weight" not in text for text in said.values())


def test_gossip_is_a_round_without_an_update():
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, graph=ring, comm=comm) as wrapped:
            closure_of(model, 0, comm.rank)()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(8.0 * comm.rank)
            wrapped.gossip()
            assert not wrapped.state
            assert wrapped.round == 1
            return [p.unique().tolist() for p in model.parameters()]

    assert ps.testing.run(3, rank) == [[[8.0]] * 4, [[4.0]] * 4, [[12.0]] * 4]


def test_after_close_it_refuses_to_step_and_close_may_be_repeated():
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm)
        train(wrapped, model, 1, comm.rank)
        wrapped.drain()
        wrapped.drain()
        wrapped.close()
        wrapped.close()
        for call in (wrapped.step, wrapped.gossip, wrapped.drain, lambda: wrapped.averaged().__enter__()):
            with pytest.raises(ClosedError, match="already closed"):
                call()
        assert wrapped.state_dict()["push_sum"]["round"] == 1, "saving after the end still works"

    ps.testing.run(2, rank)
