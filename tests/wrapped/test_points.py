"""State that holds points in parameter space: exchanged, averaged and saved with the parameters, and found."""

from __future__ import annotations

import logging

import pytest
import schedulefree
import torch
from optimizer.common import batch, bits, closure_of, network, star, train, values
from torch import nn

import pushsum_opt as ps

FREE = {
    "SGD": lambda p: schedulefree.SGDScheduleFree(p, lr=0.05),
    "AdamW": lambda p: schedulefree.AdamWScheduleFree(p, lr=0.01),
}


class Small(torch.optim.Optimizer):
    """What the optimizers below have in common: SGD with state made at the first step."""

    def __init__(self, parameters, lr=0.05):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, self.state[p], group["lr"])
        return loss


class Lookahead(Small):
    def move(self, p, state, lr):
        if not state:
            state.update(slow=p.clone(), count=0)
        state["count"] += 1
        p.sub_(p.grad, alpha=lr)
        if state["count"] % 5 == 0:
            state["slow"].lerp_(p, 0.5)
            p.copy_(state["slow"])


class MADGRAD(Small):
    def move(self, p, state, lr):
        if not state:
            state.update(x0=p.clone(), s=torch.zeros_like(p), squares=torch.full_like(p, 1e-6))
        state["s"].add_(p.grad, alpha=lr)
        state["squares"].addcmul_(p.grad, p.grad, value=lr)
        p.lerp_(state["x0"] - state["s"] / state["squares"].pow(1 / 3), 0.1)


class Prodigy(Small):
    """Keeps where it began, p0, and sums of gradients, s."""

    def move(self, p, state, lr):
        if not state:
            state.update(p0=p.clone(), s=torch.zeros_like(p), exp_avg=torch.zeros_like(p))
        state["s"].add_(p.grad, alpha=lr)
        state["exp_avg"].lerp_(p.grad, 0.1)
        p.sub_(state["exp_avg"], alpha=lr * (1 + (state["p0"] - p).norm().item()))


class Rebinding(Small):
    """Makes its average anew in every step."""

    def move(self, p, state, lr):
        p.sub_(p.grad, alpha=lr)
        state["ema"] = torch.lerp(state["ema"], p, 0.1) if state else p.clone()


def run(make, comm, steps, *, seed=1, **options):
    model = network(seed)
    inner = make(model.parameters())
    optimizer = ps.PushSumOptimizer(inner, model, comm=comm, **options)
    if hasattr(optimizer, "train"):
        optimizer.train()
    train(optimizer, model, steps, comm.rank)
    return model, optimizer


def points(optimizer, name):
    return [optimizer.state[p][name] for group in optimizer.param_groups for p in group["params"]]


# ---------------------------------------------------------------------- exchanged with the parameters


@pytest.mark.parametrize(("make", "name"), [(FREE["SGD"], "z"), (Lookahead, "slow"), (Rebinding, "ema")])
@pytest.mark.parametrize("staleness", [0, 2])
def test_the_mean_of_points_changes_only_by_what_steps_do_to_them(make, name, staleness):
    """As that of the parameters does: rounds without an update keep both, and bring the ranks together."""

    def rank(comm):
        model, optimizer = run(make, comm, 6, gossip_state=(name,), graph=star, staleness=staleness)

        def mean():
            with optimizer.averaged():
                return [t.clone().double() for t in (*values(model), *points(optimizer, name))]

        before, apart = mean(), [t.clone() for t in points(optimizer, name)]
        for _ in range(120):  # messages of two rounds ago bring ranks together slowly
            optimizer.gossip()
        after = mean()
        for one, other in zip(before, after, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        for own, average in zip(points(optimizer, name), after[len(values(model)) :], strict=True):
            torch.testing.assert_close(own.double(), average, rtol=1e-4, atol=1e-5)
        moved = any((a - b).norm() > 1e-4 for a, b in zip(apart, points(optimizer, name), strict=True))
        optimizer.close()
        return moved

    assert any(ps.testing.run(3, rank))


def test_a_parameter_without_gradient_on_some_ranks_and_steps_waits_for_nobody():
    """The entry of a rank that has none yet is where it will start: at the parameter."""

    def rank(comm):
        model = network(1)
        optimizer = ps.PushSumOptimizer(Lookahead(model.parameters()), model, comm=comm, gossip_state=["slow"])
        for step in range(12):
            loss = closure_of(model, step, comm.rank)()
            if step < 3 * comm.rank:
                model[2].bias.grad = None
            optimizer.step()
            assert ("slow" in optimizer.state.get(model[2].bias, {})) == (step >= 3 * comm.rank)
        for _ in range(10):
            optimizer.gossip()
        optimizer.close()
        return loss.isfinite().item(), points(optimizer, "slow")[3]

    results = ps.testing.run(3, rank)
    for _, slow in results:
        torch.testing.assert_close(slow, results[0][1], rtol=1e-4, atol=1e-5)


def test_bytes_of_points_are_counted_and_all_ranks_must_name_the_same():
    def rank(comm, names):
        _, optimizer = run(FREE["SGD"], comm, 0, gossip_state=names)
        nbytes = optimizer.push_sum.memory.nbytes
        optimizer.close()
        return nbytes

    assert ps.testing.run(2, lambda c: rank(c, ("z",)))[0] == 2 * ps.testing.run(2, lambda c: rank(c, ()))[0]
    with pytest.raises(ps.testing.RankErrors, match=r"gossip_state is \(\) on rank 0, \('z',\) on rank 1"):
        ps.testing.run(2, lambda c: rank(c, ("z",) if c.rank else ()))


@pytest.mark.parametrize("names", [3, ("z", "z"), ("",), (1,)])
def test_names_are_checked(names):
    with pytest.raises(ps.testing.RankErrors, match="ConfigurationError: gossip_state"):
        ps.testing.run(1, lambda c: run(FREE["SGD"], c, 0, gossip_state=names))


def test_state_of_another_shape_is_refused_by_name():
    with pytest.raises(ps.testing.RankErrors, match=r"state 'count' of parameter 0.weight.*got int"):
        ps.testing.run(1, lambda c: run(Lookahead, c, 1, gossip_state=("count",)))


def test_points_of_an_added_group_travel_too():
    def rank(comm):
        model, optimizer = run(Lookahead, comm, 2, gossip_state=("slow",))
        extra = nn.Parameter(torch.full((3,), float(comm.rank)))
        optimizer.add_param_group({"params": [extra]})
        assert extra.tolist() == [0.0] * 3
        for step in range(6):
            extra.grad = torch.full((3,), float(comm.rank + step))
            optimizer.step(closure_of(model, step, comm.rank))
            extra.grad = None
        for _ in range(10):
            optimizer.gossip()
        optimizer.close()
        return optimizer.state[extra]["slow"] if extra in optimizer.state else extra.detach()

    one, other = ps.testing.run(2, rank)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- train() and eval()


def test_train_and_eval_are_there_where_the_inner_optimizer_has_them():
    def rank(comm):
        with_modes = ps.PushSumOptimizer(FREE["SGD"](network().parameters()), comm=comm)
        without = ps.PushSumOptimizer(torch.optim.SGD(network().parameters(), lr=0.1), comm=comm)
        with_modes.train()
        found = [hasattr(o, m) for o in (with_modes, without) for m in ("train", "eval")]
        return found, with_modes.param_groups[0]["train_mode"]

    assert ps.testing.run(1, rank) == [([True, True, False, False], True)]


@pytest.mark.parametrize("kind", FREE)
@pytest.mark.parametrize("staleness", [0, 2])
def test_eval_before_or_inside_averaged_shows_the_same_model_and_everything_is_put_back(kind, staleness):
    def rank(comm):
        model, optimizer = run(FREE[kind], comm, 7, gossip_state=("z",), staleness=staleness, graph=star)

        def everything():
            return bits([*values(model), *points(optimizer, "z")]), optimizer.param_groups[0]["train_mode"]

        training = everything()
        with optimizer.averaged():
            optimizer.eval()
            inside = values(model)
        assert everything() == training
        optimizer.eval()
        evaluating = everything()
        with optimizer.averaged():
            before = values(model)
            optimizer.train()
        assert everything() == evaluating
        optimizer.close()
        return inside, before

    results = ps.testing.run(3, rank)
    for inside, before in results:
        assert bits(inside) == bits(results[0][0]), "every rank evaluates the same model"
        for one, other in zip(inside, before, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_eval_inside_averaged_is_undone_where_points_are_not_named():
    def rank(comm):
        model, optimizer = run(FREE["SGD"], comm, 7)
        before = bits(values(model))
        with optimizer.averaged():
            optimizer.eval()
        assert optimizer.param_groups[0]["train_mode"]
        return bits(values(model)) == before

    assert ps.testing.run(2, rank) == [True, True]


def test_four_ranks_end_where_one_does_on_the_same_distribution():
    """Noise of one rank's result: four ranks average it away; unnamed, each rank's own z keeps it."""
    true = torch.randn(20, generator=torch.Generator().manual_seed(1))

    def rank(comm, names):
        generator = torch.Generator().manual_seed(10 + comm.rank)
        w = nn.Parameter(torch.zeros(20))
        optimizer = ps.PushSumOptimizer(FREE["SGD"]([w]), comm=comm, gossip_state=names)
        optimizer.train()
        for _ in range(300):
            x = torch.randn(8, 20, generator=generator)
            y = x @ true + torch.randn(8, generator=generator)
            optimizer.zero_grad()
            (x @ w - y).square().mean().backward()
            optimizer.step()
        with optimizer.averaged():
            optimizer.eval()
            error = (w.detach() - true).square().sum().item()
        optimizer.close()
        return error

    alone, named, unnamed = (ps.testing.run(n, lambda c, s=s: rank(c, s)) for n, s in ((1, ()), (4, ("z",)), (4, ())))
    assert max(named) == min(named) < alone[0]
    assert max(unnamed) > 1.5 * max(named)


# ---------------------------------------------------------------------- saved and resumed


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("at", [0, 5])
def test_a_resumed_run_has_the_same_bits(tmp_path, staleness, at):
    options = {"gossip_state": ("z",), "staleness": staleness, "graph": star}

    def rank(comm, stop):
        model, optimizer = run(FREE["AdamW"], comm, 9 if stop is None else stop, **options)
        if stop is not None:
            ps.checkpoint.save(tmp_path, optimizer)
            optimizer.close()
            model, optimizer = run(FREE["AdamW"], comm, 0, seed=2, **options)
            assert ps.checkpoint.load(tmp_path, optimizer).exact
            train(optimizer, model, 9 - stop, comm.rank, start=stop)
        optimizer.close()
        return bits([*values(model), *points(optimizer, "z")])

    assert ps.testing.run(3, lambda c: rank(c, at)) == ps.testing.run(3, lambda c: rank(c, None))


def test_another_number_of_ranks_starts_from_the_average_of_the_points(tmp_path):
    def save(comm):
        model, optimizer = run(FREE["SGD"], comm, 5, gossip_state=("z",), graph=star)
        ps.checkpoint.save(tmp_path, optimizer)
        with optimizer.averaged():
            mean = [*values(model), *[z.clone() for z in points(optimizer, "z")]]
        optimizer.close()
        return mean

    def load(comm):
        model, optimizer = run(FREE["SGD"], comm, 0, seed=2, gossip_state=("z",), graph=star)
        ps.checkpoint.load(tmp_path, optimizer)
        return bits([*values(model), *points(optimizer, "z")])

    mean = bits(ps.testing.run(3, save)[0])
    assert ps.testing.run(2, load) == [mean, mean]
    assert set(ps.checkpoint.consolidate(tmp_path)) == set(network().state_dict())


# ---------------------------------------------------------------------- found by itself


def advice(make, caplog, size=2, seed=1, steps=16):
    caplog.clear()
    with caplog.at_level(logging.WARNING, "pushsum_opt"):

        def rank(comm):
            model = network(seed or 0)
            if seed is None:
                for p in model.parameters():
                    nn.init.zeros_(p)
            optimizer = ps.PushSumOptimizer(make(model.parameters()), model, comm=comm)
            if hasattr(optimizer, "train"):
                optimizer.train()
            for step in range(steps):
                model.zero_grad()
                inputs, targets = batch(step, comm.rank)
                (model(inputs) - targets).square().mean().backward()
                optimizer.step()
            optimizer.close()

        ps.testing.run(size, rank)
    return [record.getMessage() for record in caplog.records if "gossip_state" in record.getMessage()]


@pytest.mark.parametrize(
    ("make", "name"), [(FREE["SGD"], "z"), (FREE["AdamW"], "z"), (Lookahead, "slow"), (Rebinding, "ema")]
)
def test_points_are_found_and_named_once_with_the_option(make, name, caplog):
    lines = advice(make, caplog)
    assert len(lines) == 1
    assert f"gossip_state=('{name}',)" in lines[0]


def test_points_that_are_exchanged_are_not_named(caplog):
    caplog.set_level(logging.WARNING, "pushsum_opt")
    ps.testing.run(2, lambda c: run(FREE["SGD"], c, 16, gossip_state=("z",))[1].close())
    assert not [record for record in caplog.records if "gossip_state" in record.getMessage()]


@pytest.mark.parametrize("make", [MADGRAD, Prodigy])
def test_a_copy_of_the_start_and_sums_of_gradients_are_no_points(make, caplog):
    assert advice(make, caplog) == []


NAMES = ["SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Rprop"]
if hasattr(torch.optim, "Adafactor"):  # from torch 2.5 on
    NAMES.append("Adafactor")


@pytest.mark.parametrize("seed", [1, None], ids=["random start", "start at 0"])
def test_no_false_alarm_from_torchs_own(seed, caplog):
    def make(name):
        more = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {"amsgrad": True} if name.startswith("Adam") else {}
        more = {} if name == "Adamax" else more
        return lambda p: getattr(torch.optim, name)(p, lr=0.01, **more)

    assert {name: advice(make(name), caplog, seed=seed) for name in NAMES} == {name: [] for name in NAMES}


def test_asgds_average_of_the_parameters_is_found(caplog):
    assert "('ax',)" in advice(lambda p: torch.optim.ASGD(p, lr=0.01), caplog)[0]


class Odd(Small):
    """Keeps state that cannot be looked at."""

    class Tensor(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch.Tensor.detach:
                raise NotImplementedError("no detach")
            return super().__torch_function__(function, types, args, kwargs or {})

    def move(self, p, state, lr):
        p.sub_(p.grad, alpha=lr)
        state["odd"] = p.detach().clone().as_subclass(self.Tensor)


def test_state_that_cannot_be_looked_at_does_not_stop_the_training(caplog):
    assert advice(Odd, caplog) == []


@pytest.mark.parametrize("staleness", [0, 1])
def test_points_of_hosts_of_two_ranks_are_equal_inside_a_host(monkeypatch, staleness):
    monkeypatch.setenv("PUSHSUM_RANKS_PER_HOST", "2")
    monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", "64")
    ring = lambda rank, size, round: ((rank + 1) % size,)  # noqa: E731

    def rank(comm):
        options = {"gossip_state": ("z",), "within_host": "gradients", "graph": ring, "staleness": staleness}
        model = network(1)
        optimizer = ps.PushSumOptimizer(FREE["SGD"](model.parameters()), model, comm=comm, **options)
        optimizer.train()
        for step in range(5):
            closure_of(model, step, comm.rank)()
            optimizer.step()
        found = bits([*values(model), *points(optimizer, "z")])
        optimizer.close()
        return found

    one, two, three, four = ps.testing.run(4, rank)
    assert one == two
    assert three == four
