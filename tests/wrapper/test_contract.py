"""The wrapper's contract: what a torch optimizer has, works; what push-sum adds, is local where it says so."""

from __future__ import annotations

import copy
import io
import logging
import pickle

import numpy as np
import pytest
import torch
from scenarios import shift
from torch import nn

import pushsum_opt as ps
from pushsum_opt.errors import ClosedError, ConfigurationError, LayoutError, MismatchError
from pushsum_opt.graphs import Ring

KINDS = {
    "sgd": lambda p, **kw: torch.optim.SGD(p, **{"lr": 0.1, "momentum": 0.9, **kw}),
    "adamw": lambda p, **kw: torch.optim.AdamW(p, **{"lr": 0.01, **kw}),
    "fused adamw": lambda p, **kw: torch.optim.AdamW(p, fused=True, **{"lr": 0.01, **kw}),
    "lbfgs": lambda p, **kw: torch.optim.LBFGS(p, **{"lr": 0.1, "max_iter": 3, **kw}),
}
every_kind = pytest.mark.parametrize("kind", list(KINDS))
first_order = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lbfgs"])
pytestmark = pytest.mark.filterwarnings("ignore:LBFGS on")


def network(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def batch(step, rank=0):
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(8, 6, generator=generator), torch.randn(8, 2, generator=generator)


def closure_of(model, step, rank=0):
    def closure():
        for parameter in model.parameters():
            parameter.grad = None
        inputs, targets = batch(step, rank)
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        return loss

    return closure


def train(optimizer, model, steps, rank=0, start=0):
    for step in range(start, start + steps):
        optimizer.step(closure_of(model, step, rank))


def values(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(one, other):
    return all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def alone(function):
    return ps.testing.run(1, function)[0]


# ---------------------------------------------------------------------- schedulers


SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=20),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
}


@first_order
@pytest.mark.parametrize("schedule", list(SCHEDULERS))
@pytest.mark.parametrize("made", ["before", "after", "after loading"])
def test_schedulers_drive_the_rate_that_is_used(kind, schedule, made):
    def rank(comm):
        bare_model, model = network(), network()
        bare = KINDS[kind](bare_model.parameters())
        inner = KINDS[kind](model.parameters())
        expected = SCHEDULERS[schedule](bare)
        scheduler = SCHEDULERS[schedule](inner) if made == "before" else None
        wrapped = ps.PushSumOptimizer(inner, model, comm=comm)
        if made == "after loading":
            scheduler = SCHEDULERS[schedule](wrapped)
            wrapped.load_state_dict(copy.deepcopy(wrapped.state_dict()))
        scheduler = scheduler or SCHEDULERS[schedule](wrapped)
        for step in range(8):
            bare.step(closure_of(bare_model, step))
            wrapped.step(closure_of(model, step))
            expected.step()
            scheduler.step()
            assert wrapped.param_groups[0]["lr"] == bare.param_groups[0]["lr"]
        assert equal(values(bare_model), values(model))
        wrapped.close()

    alone(rank)


# ---------------------------------------------------------------------- state, hooks, closures


@every_kind
def test_state_and_momentum_from_before_wrapping_survive(kind):
    def rank(comm):
        bare_model, model = network(), network()
        bare, inner = KINDS[kind](bare_model.parameters()), KINDS[kind](model.parameters())
        train(bare, bare_model, 6)
        train(inner, model, 3)
        wrapped = ps.PushSumOptimizer(inner, model, comm=comm)
        train(wrapped, model, 3, start=3)
        assert equal(values(bare_model), values(model))
        assert wrapped.state is inner.state

    alone(rank)


@every_kind
def test_hooks_on_the_wrapper_and_on_the_wrapped_fire_once_per_step(kind):
    def rank(comm):
        model = network()
        inner = KINDS[kind](model.parameters())
        seen = []
        inner.register_step_pre_hook(lambda *_: seen.append("inner before"))
        wrapped = ps.PushSumOptimizer(inner, model, comm=comm)
        wrapped.register_step_pre_hook(lambda *_: seen.append("before"))
        wrapped.register_step_post_hook(lambda *_: seen.append("after"))
        train(wrapped, model, 2)
        assert seen == ["before", "inner before", "after"] * 2

    alone(rank)


@every_kind
def test_the_closure_goes_to_the_wrapped_optimizer_once_and_its_loss_comes_back(kind):
    def rank(comm):
        model = network()
        inner = KINDS[kind](model.parameters())
        calls = []
        step = inner.step
        inner.step = lambda closure=None: calls.append(closure) or step(closure)
        wrapped = ps.PushSumOptimizer(inner, model, comm=comm)
        closure = closure_of(model, 0)
        expected = closure().item()
        assert wrapped.step(closure).item() == expected
        assert calls == [closure]

    alone(rank)


@first_order
def test_zero_grad_and_new_param_groups_reach_the_wrapped_optimizer(kind):
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, comm=comm)
        closure_of(model, 0)()
        wrapped.zero_grad(set_to_none=False)
        assert all(not p.grad.any() for p in model.parameters())
        wrapped.zero_grad()
        assert all(p.grad is None for p in model.parameters())
        groups = [dict(group, lr=0.5) for group in wrapped.param_groups]
        wrapped.param_groups = groups
        assert wrapped.optimizer.param_groups is groups
        assert wrapped.defaults is wrapped.optimizer.defaults
        assert "lr: 0.5" in repr(wrapped)
        assert "PushSumOptimizer" in repr(wrapped)

    alone(rank)


@every_kind
@pytest.mark.parametrize("copier", [pickle.dumps, copy.deepcopy, copy.copy])
def test_copying_is_refused_and_points_to_state_dict(kind, copier):
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, comm=comm)
        with pytest.raises(TypeError, match=r"state_dict\(\)"):
            copier(wrapped)

    alone(rank)


def test_it_is_a_torch_optimizer_that_has_the_users():
    def rank(comm):
        model = network()
        inner = KINDS["sgd"](model.parameters())
        wrapped = ps.PushSumOptimizer(inner, model, comm=comm)
        assert isinstance(wrapped, torch.optim.Optimizer)
        assert wrapped.optimizer is inner
        with pytest.raises(AttributeError):
            wrapped.no_such_name  # noqa: B018
        with pytest.raises(TypeError, match="wrapped already"):
            ps.PushSumOptimizer(wrapped, model, comm=comm)

    alone(rank)


@every_kind
def test_every_kind_trains_on_three_ranks_and_conserves_mass(kind):
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, comm=comm) as wrapped:
            train(wrapped, model, 6, comm.rank)
            return wrapped.push_weight

    assert sum(ps.testing.run(3, rank)) == pytest.approx(3, rel=1e-13)


@pytest.mark.filterwarnings("error")
def test_lbfgs_warns_beyond_one_rank():
    def rank(comm):
        model = network()
        inner = KINDS["lbfgs"](model.parameters())
        if comm.rank:
            ps.PushSumOptimizer(inner, model, comm=comm)
            return
        with pytest.warns(UserWarning, match="LBFGS on 2 ranks"):
            ps.PushSumOptimizer(inner, model, comm=comm)

    ps.testing.run(2, rank)


# ---------------------------------------------------------------------- saving and loading


@every_kind
def test_a_saved_state_loads_into_the_plain_optimizer_and_back(kind):
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, comm=comm)
        train(wrapped, model, 3)
        file = io.BytesIO()
        torch.save(wrapped.state_dict(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        twin = network()
        for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            mine.data.copy_(theirs.data)
        plain = KINDS[kind](twin.parameters())
        plain.load_state_dict(saved)
        train(plain, twin, 3, start=3)
        train(wrapped, model, 3, start=3)
        assert equal(values(twin), values(model))
        wrapped.load_state_dict(state_dict=saved)
        assert wrapped.round == 3

    alone(rank)


@pytest.mark.parametrize("foreign", ["missing", "rank 0's"])
def test_a_state_without_this_ranks_mass_restarts_it_with_one_warning(foreign, caplog):
    def rank(comm):
        model = network()
        graph = lambda r, n, k: (range(1, n) if r == 0 else (0,))  # noqa: E731
        with ps.PushSumOptimizer(KINDS["sgd"](model.parameters()), model, graph=graph, comm=comm) as wrapped:
            train(wrapped, model, 3, comm.rank)
            state = ps.broadcast_object(wrapped.state_dict(), comm=comm)
            if foreign == "missing":
                del state["push_sum"]
            wrapped.load_state_dict(state)
            return wrapped.push_weight, wrapped.round

    with caplog.at_level(logging.WARNING, "pushsum_opt"):
        results = ps.testing.run(3, rank)
    warned = [record for record in caplog.records if "starts with push weight" in record.getMessage()]
    assert len(warned) == (3 if foreign == "missing" else 2)
    assert all(weight == 1.0 for weight, _ in results[1:])


@pytest.mark.parametrize("staleness", [0, 2])
def test_saving_evaluating_and_looking_never_change_the_trajectory(staleness):
    def rank(comm, looks):
        model = network()
        options = {"graph": shift, "staleness": staleness, "data_weight": 1.0 + comm.rank, "comm": comm}
        with ps.PushSumOptimizer(KINDS["adamw"](model.parameters()), model, **options) as wrapped:
            for step in range(9):
                wrapped.step(closure_of(model, step, comm.rank))
                if looks and step % 3 == 0:
                    with wrapped.averaged():
                        copy.deepcopy(model.state_dict())
                    wrapped.state_dict(), wrapped.stats(), repr(wrapped)
                    ps.consensus_distance(wrapped)
            return [value.tolist() for value in values(model)], wrapped.push_weight

    assert ps.testing.run(4, lambda comm: rank(comm, True)) == ps.testing.run(4, lambda comm: rank(comm, False))


def test_what_is_local_may_be_called_on_rank_0_alone():
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS["sgd"](model.parameters()), model, comm=comm) as wrapped:
            train(wrapped, model, 2, comm.rank)
            if comm.rank == 0:
                state = wrapped.state_dict()
                wrapped.load_state_dict(state)
                wrapped.stats(), repr(wrapped), wrapped.push_weight, wrapped.round, wrapped.staleness
                wrapped.zero_grad()
                wrapped.register_step_post_hook(lambda *_: None)
                assert wrapped.param_groups
                assert wrapped.state
                assert wrapped.defaults
            train(wrapped, model, 2, comm.rank, start=2)

    ps.testing.run(3, rank, timeout=30)


# ---------------------------------------------------------------------- averaged, collectives


def test_averaged_holds_the_exact_weighted_mean_of_parameters_and_floating_buffers_and_puts_them_back():
    weights = [1.0, 2.0, 5.0]

    def rank(comm):
        model = nn.Sequential(network(), nn.BatchNorm1d(2))
        with ps.PushSumOptimizer(
            KINDS["sgd"](model.parameters()), model, graph=shift, data_weight=weights[comm.rank], comm=comm
        ) as wrapped:
            for step in range(4):
                inputs, targets = batch(step, comm.rank)
                wrapped.zero_grad()
                (model(inputs) - targets).square().mean().backward()
                wrapped.step()
            held = [tensor.clone() for tensor in model.state_dict().values()]
            weight = wrapped.push_weight
            with pytest.raises(KeyError), wrapped.averaged():
                average = [tensor.clone() for tensor in model.state_dict().values()]
                with pytest.raises(ClosedError, match=r"inside averaged\(\)"):
                    wrapped.step()
                raise KeyError("out of the block by an exception")
            assert equal(held, list(model.state_dict().values()))
        names = list(model.state_dict())
        return dict(zip(names, held, strict=True)), weight, dict(zip(names, average, strict=True))

    results = ps.testing.run(3, rank)
    for name in results[0][0]:
        if name.endswith("num_batches_tracked"):
            continue
        is_buffer = "running" in name
        masses = [v * 3 / 8 for v in weights] if is_buffer else [weight for _, weight, _ in results]
        mean = sum(mass * held[name].double() for mass, (held, *_) in zip(masses, results, strict=True)) / 3
        for _, _, average in results:
            torch.testing.assert_close(average[name].double(), mean, rtol=1e-6, atol=1e-6)
            assert torch.equal(average[name], results[0][2][name])


def test_collectives_equal_their_closed_forms():
    def rank(comm):
        r = comm.rank
        assert ps.average(float(r), comm=comm) == 1.0
        assert ps.average(float(r), data_weight=1.0 + r, comm=comm) == pytest.approx((0 + 2 + 6) / 6)
        tensor = ps.average(torch.full((2, 3), float(r), dtype=torch.float16), comm=comm)
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, torch.ones(2, 3, dtype=torch.float16))
        assert ps.average(np.full(4, r, np.float32), comm=comm).tolist() == [1.0] * 4
        assert ps.broadcast_object({"from": r}, root=2, comm=comm) == {"from": 2}
        model = nn.BatchNorm1d(3)
        for value in model.state_dict().values():
            value.fill_(r)
        ps.broadcast_parameters(model, root=1, comm=comm)
        assert all((value == 1).all() for value in model.state_dict().values())
        z = torch.tensor([float(r), 0.0])
        with ps.PushSum([z], data_weight=1.0 + r, comm=comm) as push_sum:
            assert ps.consensus_distance(push_sum) == pytest.approx(np.sqrt(2 / 3))
            assert ps.average(float(r), comm=comm) == pytest.approx((0 + 2 + 6) / 6), "the data weights of the run"

    ps.testing.run(3, rank)


# ---------------------------------------------------------------------- the start


def test_rank_0s_parameters_buffers_and_optimizer_state_reach_every_rank():
    def rank(comm):
        model = nn.Sequential(network(comm.rank), nn.BatchNorm1d(2))
        model[1].running_mean.fill_(comm.rank)
        model[0][0].bias.requires_grad_(False)
        inner = KINDS["adamw"]([p for p in model.parameters() if p.requires_grad])
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1.0 + comm.rank)
        for _ in range(comm.rank + 1):
            inner.step()
        with ps.PushSumOptimizer(inner, model, comm=comm):
            state = [v for s in inner.state_dict()["state"].values() for v in s.values()]
            return [v.tolist() for v in (*model.state_dict().values(), *state)]

    results = ps.testing.run(3, rank)
    assert results[0] == results[1] == results[2]


MISMATCHES = {
    "shape": lambda m, r, o: setattr(m, "x", nn.Parameter(torch.zeros(3 + (r == 1)))),
    "dtype": lambda m, r, o: setattr(m, "x", nn.Parameter(torch.zeros(3, dtype=torch.float64 if r == 1 else None))),
    "strides": lambda m, r, o: setattr(m, "x", nn.Parameter(torch.zeros(4, 3).t() if r == 1 else torch.zeros(3, 4))),
    "missing": lambda m, r, o: setattr(m, "x", nn.Parameter(torch.zeros(3))) if r != 1 else None,
    "graph": lambda m, r, o: o.update(graph=Ring() if r == 1 else ps.graphs.Complete()),
    "wire": lambda m, r, o: o.update(wire_dtype="bfloat16" if r == 1 else None),
    "nonfinite": lambda m, r, o: o.update(nonfinite="skip" if r == 1 else "raise"),
    "staleness": lambda m, r, o: o.update(staleness=2 if r == 1 else 1),
}


@pytest.mark.parametrize("what", list(MISMATCHES))
def test_ranks_that_disagree_get_the_same_error_everywhere(what):
    said = {}

    def rank(comm):
        model, options = network(), {}
        MISMATCHES[what](model, comm.rank, options)
        try:
            ps.PushSumOptimizer(KINDS["sgd"](model.parameters()), model, comm=comm, **options)
        except MismatchError as error:
            said[comm.rank] = str(error).replace(f"rank {comm.rank}: the ranks", "the ranks")
            raise

    with pytest.raises(ps.testing.RankErrors):
        ps.testing.run(3, rank)
    assert set(said) == {0, 1, 2}
    assert len(set(said.values())) == 1
    assert "rank 1" in said[0]
    assert "ranks 0, 2" in said[0]


BAD = [
    ({"staleness": -1}, "staleness=-1"),
    ({"within_host": "gradients"}, "within_host='gradients'"),
    ({"gossip_every": 0}, "gossip_every=0"),
    ({"gossip_every": 4}, "gossip_every=4"),
    ({"data_weight": 0.0}, "data_weight=0.0"),
    ({"data_weight": "all"}, "data_weight='all'"),
    ({"data_weight": float("nan")}, "data_weight=nan"),
    ({"buffers": "gossip"}, "buffers='gossip'"),
    ({"wire_dtype": "int8"}, "wire_dtype='int8'"),
    ({"nonfinite": "ignore"}, "nonfinite='ignore'"),
    ({"timeout": 0}, "timeout=0"),
    ({"graph": 3}, "graph=3"),
    ({"graph": lambda r, n, k: [r]}, "itself"),
    ({"graph": lambda r, n, k: [n]}, "out of range"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments_are_refused_with_their_value(options, message):
    def rank(comm):
        model = network()
        ps.PushSumOptimizer(KINDS["sgd"](model.parameters()), model, comm=comm, **options)

    with pytest.raises(ps.testing.RankErrors) as caught:
        ps.testing.run(2, rank)
    for error in caught.value.errors.values():
        assert isinstance(error, ConfigurationError)
        assert message in str(error)


def test_what_is_no_optimizer_or_no_module_is_refused():
    with pytest.raises(TypeError, match="got list"):
        ps.PushSumOptimizer([], None)
    with pytest.raises(TypeError, match="got dict"):
        ps.PushSumOptimizer(KINDS["sgd"](network().parameters()), {})


@pytest.mark.parametrize(("alike", "rate"), [(True, 0.1), (False, 0.1), (True, 0.0)])
def test_a_warning_when_ranks_train_on_the_same_data(alike, rate, caplog):
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS["sgd"](model.parameters(), lr=rate), model, comm=comm) as wrapped:
            train(wrapped, model, 3, 0 if alike else comm.rank)

    with caplog.at_level(logging.WARNING, "pushsum_opt"):
        ps.testing.run(4, rank)
    warned = [record.getMessage() for record in caplog.records if "same data" in record.getMessage()]
    assert len(warned) == (1 if alike and rate else 0), "rank 0 speaks for all"


def test_a_warning_when_the_model_is_averaged_by_all_reduce_too():
    def rank(comm):
        model = object.__new__(nn.parallel.DistributedDataParallel)  # its constructor needs a process group
        nn.Module.__init__(model)
        model.module = network()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "get_world_size", lambda: comm.size)
            if comm.rank:
                ps.PushSumOptimizer(KINDS["sgd"](model.parameters()), model, comm=comm)
                return
            with pytest.warns(UserWarning, match="DistributedDataParallel over the same 2 ranks"):
                ps.PushSumOptimizer(KINDS["sgd"](model.parameters()), model, comm=comm)

    ps.testing.run(2, rank)


# ---------------------------------------------------------------------- gradient scaling


def scaled_step(scaler, optimizer, model, step, rank, poison=False, unscale=False):
    inputs, targets = batch(step, rank)
    optimizer.zero_grad()
    scaler.scale((model(inputs) - targets).square().mean()).backward()
    if poison:
        next(model.parameters()).grad.view(-1)[0] = float("inf")
    if unscale:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    scaler.step(optimizer)
    scaler.update()


@first_order
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_a_grad_scaler_gives_the_bits_that_the_bare_optimizer_gets(kind, unscale, enabled):
    def rank(comm):
        bare_model, model = network(), network()
        bare = KINDS[kind](bare_model.parameters())
        wrapped = ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, comm=comm)
        scalers = [torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3, enabled=enabled) for _ in range(2)]
        for step in range(8):
            poison = enabled and step in (2, 5)
            scaled_step(scalers[0], bare, bare_model, step, 0, poison, unscale)
            scaled_step(scalers[1], wrapped, model, step, 0, poison, unscale)
            assert scalers[0].get_scale() == scalers[1].get_scale()
        assert equal(values(bare_model), values(model))
        assert wrapped.round == 8

    alone(rank)


@first_order
def test_inf_gradient_skips_update_but_not_gossip(kind):
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, graph=Ring(), comm=comm) as wrapped:
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
            for step in range(4):
                scaled_step(scaler, wrapped, model, step, comm.rank, poison=comm.rank == 1 and step == 2)
            assert all(torch.isfinite(value).all() for value in values(model))
            return wrapped.round, wrapped.push_weight, scaler.get_scale()

    results = ps.testing.run(3, rank)
    assert [rounds for rounds, *_ in results] == [4, 4, 4]
    assert sum(weight for _, weight, _ in results) == pytest.approx(3)
    assert [scale for *_, scale in results] == [4.0, 2.0, 4.0]


def test_a_step_without_any_gradient_under_a_scaler_still_gossips():
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS["sgd"](model.parameters()), model, comm=comm) as wrapped:
            wrapped.found_inf, wrapped.grad_scale = 0, torch.tensor(2.0)  # what GradScaler sets without gradients
            wrapped.step()
            return wrapped.round

    assert ps.testing.run(2, rank) == [1, 1]


# ---------------------------------------------------------------------- compile, two optimizers, groups


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
def test_a_compiled_training_step_has_the_bits_of_the_plain_one():
    def rank(comm, compiled):
        model = network()
        with ps.PushSumOptimizer(KINDS["sgd"](model.parameters()), model, comm=comm) as wrapped:

            def step(inputs, targets):
                wrapped.zero_grad()
                (model(inputs) - targets).square().mean().backward()
                wrapped.step()

            run = torch.compile(step, backend="eager") if compiled else step
            for k in range(3):
                run(*batch(k, comm.rank))
            return [value.tolist() for value in values(model)], wrapped.round

    # torch.compile is not safe on several threads at once: one rank.
    assert ps.testing.run(1, lambda comm: rank(comm, True)) == ps.testing.run(1, lambda comm: rank(comm, False))


def test_two_optimizers_in_one_program_do_not_mix_their_messages():
    def rank(comm, together):
        results = []
        models = [network(1), network(2)]
        wrapped = [ps.PushSumOptimizer(KINDS["sgd"](m.parameters()), m, graph=shift, comm=comm) for m in models]
        if together:
            for step in range(4):
                for optimizer, model in zip(wrapped, models, strict=True):
                    optimizer.step(closure_of(model, step, comm.rank))
        else:
            for optimizer, model in zip(wrapped, models, strict=True):
                train(optimizer, model, 4, comm.rank)
        for optimizer, model in zip(wrapped, models, strict=True):
            optimizer.close()
            results += [value.tolist() for value in values(model)]
        return results

    together = ps.testing.run(4, lambda comm: rank(comm, True), seed=3)
    assert together == ps.testing.run(4, lambda comm: rank(comm, False))


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_group_added_later_is_broadcast_and_exchanged(staleness):
    def rank(comm):
        model = network()
        options = {"graph": Ring(), "staleness": staleness, "comm": comm}
        with ps.PushSumOptimizer(KINDS["sgd"](model.parameters(), lr=0.0), model, **options) as wrapped:
            train(wrapped, model, 2, comm.rank)
            late = nn.Parameter(torch.full((4,), float(comm.rank), dtype=torch.bfloat16))
            wrapped.add_param_group({"params": [late], "lr": 0.0})
            assert torch.equal(late.detach(), torch.zeros(4, dtype=torch.bfloat16)), "rank 0's value"
            late.data.fill_(float(comm.rank))
            for _ in range(60):
                wrapped.gossip()
            wrapped.drain()
            return late.tolist(), wrapped.push_weight

    for late, weight in ps.testing.run(3, rank):
        assert late == pytest.approx([1.0] * 4, abs=0.02)
        assert weight == pytest.approx(1.0, abs=0.5)


def test_different_groups_are_refused_on_every_rank():
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS["sgd"](model.parameters()), model, comm=comm)
        with pytest.raises(MismatchError, match="group 1 parameter 0"):
            wrapped.add_param_group({"params": [nn.Parameter(torch.zeros(3 + comm.rank))]})

    ps.testing.run(2, rank)


def test_gossip_is_a_round_without_an_update_and_drain_and_close_may_be_repeated():
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS["sgd"](model.parameters()), model, comm=comm)
        before = values(model)
        wrapped.gossip()
        wrapped.drain()
        wrapped.drain()
        assert wrapped.round == 1
        assert all(torch.allclose(a, b) for a, b in zip(before, values(model), strict=True))
        wrapped.close()
        wrapped.close()
        with pytest.raises(ClosedError, match="already closed"):
            wrapped.step(closure_of(model, 0))

    ps.testing.run(2, rank)


def test_parameters_that_the_model_lost_are_named():
    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS["sgd"](model.parameters()), model, comm=comm)
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
        with pytest.raises(LayoutError, match=r"no longer holds .* 0\.weight, 0\.bias, 2\.weight, 2\.bias"):
            wrapped.step(closure_of(model, 0))

    ps.testing.run(1, rank)
