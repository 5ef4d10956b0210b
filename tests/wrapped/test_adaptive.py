"""adaptive="corrected": the moments of Adam under gossip, against an oracle, torch under all-reduce, and itself."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from optimizer.common import batch, bits, closure_of, flat, network, ring, star, train, values
from torch import nn
from wrapped import adam_oracle as oracle

import pushsum_opt as ps

KINDS = {
    "AdamW": torch.optim.AdamW,
    "Adam": torch.optim.Adam,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
}
WAYS = {"for loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


class Point(nn.Module):
    """The oracle's parameters."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        numbers = range(len(oracle.SHAPES))
        self.held = nn.ParameterList([nn.Parameter(torch.tensor(oracle.start(n), dtype=dtype)) for n in numbers])

    def set_gradients(self, step, rank, setting, scale=1.0):
        for number, p in enumerate(self.held):
            found = oracle.gradient(p.detach().double().numpy(), number, step, rank)
            p.grad = None if setting.lacks(number, step, rank) else torch.tensor(found * scale, dtype=p.dtype)


def optimizer_of(setting, parameters, **options):
    return (torch.optim.AdamW if setting.decoupled else torch.optim.Adam)(
        parameters,
        lr=setting.lr,
        betas=(setting.beta1, setting.beta2),
        eps=setting.epsilon,
        weight_decay=setting.weight_decay,
        maximize=setting.maximize,
        amsgrad=setting.amsgrad,
        **options,
    )


def state(optimizer, name):
    return [optimizer.state[p][name] for group in optimizer.param_groups for p in group["params"]]


def compare(setting, graph, weights, *, make=optimizer_of, dtype=torch.float64, step=None, steps=9, rtol=1e-11):
    """Compare every rank's z, m, v and w with the oracle's after each number of steps."""

    def rank(comm):
        model = Point(dtype)
        inner = make(setting, model.parameters())
        options = {"graph": graph, "data_weight": weights[comm.rank], "staleness": setting.staleness}
        if setting.average_every is not None:
            options["algorithm"] = ps.algorithms.PeriodicAverage(setting.average_every)
        optimizer = ps.PushSumOptimizer(inner, model, adaptive="corrected", comm=comm, **options)
        found = []
        for k in range(steps):
            model.set_gradients(k, comm.rank, setting)
            (step or (lambda optimizer, *_: optimizer.step()))(optimizer, model, k, comm.rank)
            held = values(model)
            started = all(optimizer.state.get(p) for p in model.held)
            moments = [[t.clone() for t in state(optimizer, name)] for name in ("exp_avg", "exp_avg_sq") if started]
            found.append((held, moments, optimizer.push_weight))
        optimizer.close()
        return found

    size = len(weights)
    results = ps.testing.run(size, rank)
    peers = graph if size > 1 else (lambda *_: ())
    for k, expected in enumerate(oracle.train(setting, peers, weights, steps)):
        for own, one in zip((found[k] for found in results), expected, strict=True):
            held, moments, weight = own
            assert weight == pytest.approx(one.w, rel=1e-12)
            for got, wanted in zip((held, *moments), (one.z, one.m, one.v), strict=False):
                for tensor, array in zip(got, wanted, strict=True):
                    np.testing.assert_allclose(tensor.numpy(), array, rtol=rtol, atol=rtol)


# ---------------------------------------------------------------------- the rule, against the oracle


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("graph", [ring, star])
def test_every_step_is_the_oracles(size, graph):
    compare(oracle.Setting(), graph, [1.0 + i for i in range(size)])


@pytest.mark.parametrize("staleness", [1, 2])
@pytest.mark.parametrize(("graph", "size"), [(ring, 2), (star, 3), (ring, 5)])
def test_every_step_with_late_messages_is_the_oracles(staleness, graph, size):
    """The fresh gradient counts a / w, and m of a message fades as it would have in a rank's own state."""
    compare(oracle.Setting(staleness=staleness), graph, [1.0 + i for i in range(size)])


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize(("graph", "size"), [(ring, 2), (star, 3), (ring, 5)])
def test_exact_averages_now_and_then_are_the_oracles(staleness, graph, size):
    compare(oracle.Setting(staleness=staleness, average_every=4), graph, [1.0 + i for i in range(size)], steps=11)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "changed",
    [{"amsgrad": True}, {"maximize": True}, {"decoupled": False}, {"decoupled": False, "maximize": True}],
    ids=str,
)
def test_variants_of_adam_are_the_oracles_however_torch_computes_them(way, changed):
    make = lambda setting, parameters: optimizer_of(setting, parameters, **WAYS[way])  # noqa: E731
    compare(oracle.Setting(**changed), star, [1.0, 2.0, 3.0], make=make)


@pytest.mark.parametrize("way", WAYS)
def test_in_float32_it_is_as_near_as_float32_is(way):
    make = lambda setting, parameters: optimizer_of(setting, parameters, **WAYS[way])  # noqa: E731
    compare(oracle.Setting(), star, [1.0, 2.0, 3.0], make=make, dtype=torch.float32, rtol=2e-5)


@pytest.mark.parametrize("staleness", [0, 1])
def test_parameters_without_a_gradient_in_some_steps_are_the_oracles(staleness):
    compare(oracle.Setting(skips=True, staleness=staleness), star, [1.0, 2.0, 3.0])


def test_a_gradient_of_a_closure_and_one_that_hooks_change_are_those_that_are_corrected():
    setting = oracle.Setting()

    def by_closure(optimizer, model, k, rank):
        for p in model.held:
            p.grad = torch.full_like(p, 1e3)

        def closure():
            model.set_gradients(k, rank, setting)
            return torch.zeros(())

        optimizer.step(closure)

    def by_hook(optimizer, model, k, rank):
        model.set_gradients(k, rank, setting, scale=4.0)

        def quarter(*_):
            for p in model.held:
                p.grad /= 4.0

        handle = optimizer.optimizer.register_step_pre_hook(quarter)
        optimizer.step()
        handle.remove()

    for step in (by_closure, by_hook):
        compare(setting, star, [1.0, 2.0, 3.0], step=step)


def test_a_rate_that_is_a_tensor_and_a_subclass_are_scaled_without_scaling_what_happens_to_moments():
    """Their steps are scaled by what they did to the parameters, not by the rate."""

    class Mine(torch.optim.AdamW):
        pass

    def tensor_rate(setting, parameters):
        return torch.optim.AdamW(
            parameters, lr=torch.tensor(setting.lr), betas=(0.9, 0.99), weight_decay=0.1, foreach=False
        )

    def subclass(setting, parameters):
        return Mine(parameters, lr=setting.lr, betas=(0.9, 0.99), weight_decay=0.1)

    compare(oracle.Setting(), star, [1.0, 2.0, 3.0], make=tensor_rate, rtol=1e-7)  # the rate is of float32
    compare(oracle.Setting(staleness=1), star, [1.0, 2.0, 3.0], make=subclass)


# ---------------------------------------------------------------------- the mass of m


@pytest.mark.parametrize("options", [{}, {"staleness": 1}, {"staleness": 2, "gossip_every": 2}], ids=str)
def test_with_all_messages_home_m_averages_to_the_moving_average_of_the_mean_gradient(options):
    """As z does: whatever is given, late or merged by drain(), sum of w m = the average of sum of a g, over n."""
    weights, steps, beta1 = [1.0, 2.0, 3.0], 9, 0.9
    setting = oracle.Setting()

    def rank(comm):
        model = Point()
        inner = optimizer_of(setting, model.parameters())
        options_here = {"graph": star, "data_weight": weights[comm.rank], "adaptive": "corrected", **options}
        optimizer = ps.PushSumOptimizer(inner, model, comm=comm, **options_here)
        gradients = []
        for k in range(steps):
            model.set_gradients(k, comm.rank, setting)
            gradients.append([p.grad.clone() for p in model.held])
            optimizer.step()
        optimizer.drain()
        found = optimizer.push_weight, [m.clone() for m in state(optimizer, "exp_avg")], gradients
        optimizer.close()
        return found

    results = ps.testing.run(3, rank)
    assert sum(weight for weight, _, _ in results) == pytest.approx(3.0, rel=1e-13)
    for number in range(len(oracle.SHAPES)):
        expected = torch.zeros(oracle.SHAPES[number], dtype=torch.float64)
        for k in range(steps):
            mean = sum(a / 2.0 * gradients[k][number] for a, (_, _, gradients) in zip(weights, results, strict=True))
            expected = beta1 * expected + (1 - beta1) * mean / 3.0
        got = sum(weight * moments[number] for weight, moments, _ in results) / 3.0
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)


def test_the_consensus_distance_is_that_of_z_alone():
    def rank(comm):
        model = network(1)
        with wrapped(comm, model, graph=star) as optimizer:
            train(optimizer, model, 5, comm.rank)
            return ps.consensus_distance(optimizer), torch.cat([z.reshape(-1) for z in values(model)]).double()

    results = ps.testing.run(3, rank)
    held = torch.stack([z for _, z in results])
    expected = (held - held.mean(0)).square().sum(1).mean().sqrt().item()
    assert [distance for distance, _ in results] == pytest.approx([expected] * 3, rel=1e-9)


def test_averaged_shows_z_and_leaves_moments_their_bits():
    def rank(comm):
        model = network(1)
        optimizer = ps.PushSumOptimizer(
            torch.optim.AdamW(model.parameters(), lr=0.01), model, staleness=1, adaptive="corrected", comm=comm
        )
        train(optimizer, model, 5, comm.rank)
        before = flat(optimizer.optimizer.state_dict()["state"]), bits(values(model))
        with optimizer.averaged():
            shown = bits(values(model))
        after = flat(optimizer.optimizer.state_dict()["state"]), bits(values(model))
        optimizer.close()
        return before == after, shown

    results = ps.testing.run(3, rank)
    assert all(same and shown == results[0][1] for same, shown in results)


# ---------------------------------------------------------------------- what torch does with it


REAL, COMPLEX = torch.float64, torch.complex128


@pytest.mark.parametrize(
    ("kind", "way", "dtype"),
    [(kind, way, dtype) for kind in KINDS for way in ("for loop", "foreach") for dtype in (REAL, COMPLEX)]
    + [(kind, "fused", REAL) for kind in ("Adam", "AdamW")],  # torch's fused ones take no complex parameters
)
def test_the_second_moment_is_the_rules_for_every_optimizer_of_the_family(kind, way, dtype):
    def real(tensor):
        return torch.view_as_real(tensor.clone()).numpy() if dtype.is_complex else tensor.clone().numpy()

    def rank(comm):
        p = nn.Parameter(torch.linspace(-1, 1, 6, dtype=dtype))
        inner = KINDS[kind]([p], lr=0.01, betas=(0.8, 0.9), weight_decay=0.0, **WAYS[way])
        optimizer = ps.PushSumOptimizer(inner, graph=ring, adaptive="corrected", comm=comm)
        for k in range(8):
            p.grad = torch.randn(6, dtype=dtype, generator=torch.Generator().manual_seed(100 * comm.rank + k))
            before = {name: real(inner.state[p][name]) for name in ("exp_avg", "exp_avg_sq")} if k else None
            g = real(p.grad)
            optimizer.step()
            if before is not None:
                m_hat = (0.8 * before["exp_avg"] + 0.2 * g) / (1 - 0.8 ** (k + 1))
                expected = 0.9 * before["exp_avg_sq"] + 0.1 * ((1 - 1 / 3) * m_hat**2 + g**2 / 3)
                np.testing.assert_allclose(real(inner.state[p]["exp_avg_sq"]), expected, rtol=1e-11)
        optimizer.close()

    ps.testing.run(3, rank)


def test_where_all_ranks_have_one_gradient_that_does_not_change_it_is_adamw_under_all_reduce():
    """There is no noise then. Where it changes from step to step, v holds some of m_hat^2 in place of g^2."""

    def rank(comm):
        model, alone = Point(), Point()
        inner, bare = (optimizer_of(oracle.Setting(), one.parameters()) for one in (model, alone))
        optimizer = ps.PushSumOptimizer(inner, model, graph=ring, adaptive="corrected", comm=comm)
        for _ in range(12):
            for one in (model, alone):
                for p in one.held:
                    p.grad = torch.linspace(-2, 3, p.numel(), dtype=p.dtype).reshape(p.shape)
            optimizer.step()
            bare.step()
        optimizer.close()
        return [*values(model), *state(inner, "exp_avg_sq")], [*values(alone), *state(bare, "exp_avg_sq")]

    for own, expected in ps.testing.run(3, rank):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("way", WAYS)
def test_on_one_rank_it_has_the_bits_of_the_bare_optimizer(way):
    def rank(comm):
        model, alone = network(), network()
        inner, bare = (torch.optim.AdamW(one.parameters(), lr=0.01, **WAYS[way]) for one in (model, alone))
        optimizer = ps.PushSumOptimizer(inner, model, adaptive="corrected", comm=comm)
        train(optimizer, model, 6)
        train(bare, alone, 6)
        return bits(values(model)) == bits(values(alone)), flat(inner.state_dict()) == flat(bare.state_dict())

    assert ps.testing.run(1, rank) == [(True, True)]


@pytest.mark.parametrize("way", WAYS)
def test_the_second_moment_is_never_below_0_however_small_the_gradients_are(way):
    """Squares around the smallest number of float32, many ranks against beta2: rounding alone would leave it below."""

    def rank(comm):
        p = nn.Parameter(torch.ones(4000))
        inner = torch.optim.AdamW([p], lr=0.01, betas=(0.9, 0.5), **WAYS[way])
        optimizer = ps.PushSumOptimizer(inner, graph=ring, adaptive="corrected", comm=comm)
        generator = torch.Generator().manual_seed(comm.rank)
        for _ in range(20):
            p.grad = 10.0 ** torch.empty(4000).uniform_(-24, -19, generator=generator)
            p.grad *= torch.randn(4000, generator=generator)
            optimizer.step()
            least = inner.state[p]["exp_avg_sq"].min().item()
            assert least >= 0
        optimizer.close()
        return bool(p.isfinite().all())

    assert ps.testing.run(5, rank) == [True] * 5


# ---------------------------------------------------------------------- mixed precision


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_grad_scaler_changes_nothing_but_that_a_rank_with_inf_gossips_without_an_update(way, unscaled):
    def rank(comm, scale):
        model = network()
        inner = torch.optim.AdamW(model.parameters(), lr=0.01, **WAYS[way])
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=100, enabled=scale is not None)
        with ps.PushSumOptimizer(inner, model, graph=star, adaptive="corrected", comm=comm) as optimizer:
            for k in range(5):
                optimizer.zero_grad()
                inputs, targets = batch(k, comm.rank)
                scaler.scale((model(inputs) - targets).square().mean()).backward()
                if unscaled:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
            found = bits([*values(model), *state(inner, "exp_avg_sq")])
            steps, seconds = inner.state[model[0].weight]["step"].item(), bits(state(inner, "exp_avg_sq"))
            optimizer.zero_grad()
            scaler.scale((model(inputs) - targets).square().mean()).backward()
            if comm.rank == 1 and scale is not None:
                model[2].bias.grad[0] = torch.inf
                scaler.step(optimizer)
                assert (inner.state[model[0].weight]["step"].item(), optimizer.round) == (steps, 6)
                assert bits(state(inner, "exp_avg_sq")) == seconds, "the correction is left out with the update"
            else:
                scaler.step(optimizer)
                assert bits(state(inner, "exp_avg_sq")) != seconds
            assert all(value.isfinite().all() for value in values(model))
        return found

    assert ps.testing.run(3, lambda c: rank(c, 256.0)) == ps.testing.run(3, lambda c: rank(c, None))


# ---------------------------------------------------------------------- saved and resumed


def wrapped(comm, model, **options):
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    return ps.PushSumOptimizer(inner, model, adaptive="corrected", comm=comm, **options)


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("at", [0, 5])
def test_a_resumed_run_has_the_same_bits(tmp_path, staleness, at):
    options = {"staleness": staleness, "graph": star, "gossip_every": 2}

    def rank(comm, stop):
        model = network(1)
        optimizer = wrapped(comm, model, **options)
        train(optimizer, model, 10 if stop is None else stop, comm.rank)
        if stop is not None:
            ps.checkpoint.save(tmp_path, optimizer)
            optimizer.close()
            model = network(2)
            optimizer = wrapped(comm, model, **options)
            assert ps.checkpoint.load(tmp_path, optimizer).exact
            train(optimizer, model, 10 - stop, comm.rank, start=stop)
        optimizer.close()
        return bits([*values(model), *state(optimizer, "exp_avg"), *state(optimizer, "exp_avg_sq")])

    assert ps.testing.run(3, lambda c: rank(c, at)) == ps.testing.run(3, lambda c: rank(c, None))


def test_another_number_of_ranks_starts_from_the_averages_of_z_and_m_and_corrects_for_its_own_number(tmp_path):
    def save(comm):
        model = network(1)
        optimizer = wrapped(comm, model, graph=star)
        train(optimizer, model, 5, comm.rank)
        ps.checkpoint.save(tmp_path, optimizer)
        held = optimizer.push_weight, [t.double() for t in (*values(model), *state(optimizer, "exp_avg"))]
        optimizer.close()
        return held

    def load(comm):
        model = network(2)
        optimizer = wrapped(comm, model, graph=star)
        assert not ps.checkpoint.load(tmp_path, optimizer).exact
        found = [t.clone() for t in (*values(model), *state(optimizer, "exp_avg"))]
        train(optimizer, model, 2, comm.rank)
        optimizer.close()
        return found, all(value.isfinite().all() for value in values(model))

    saved = ps.testing.run(3, save)
    mean = [sum(w * held[index] for w, held in saved) / 3.0 for index in range(len(saved[0][1]))]
    for found, finite in ps.testing.run(2, load):
        assert finite
        torch.testing.assert_close([t.double() for t in found], mean, rtol=1e-6, atol=1e-7)


def test_its_state_dict_loads_into_the_plain_optimizer_and_that_ones_into_it():
    def rank(comm):
        model, plain_model = network(1), network(1)
        optimizer = wrapped(comm, model)
        train(optimizer, model, 4, comm.rank)
        plain = torch.optim.AdamW(plain_model.parameters(), lr=0.01)
        plain.load_state_dict(optimizer.state_dict())
        same = bits(state(plain, "exp_avg")) == bits(state(optimizer, "exp_avg"))
        optimizer.load_state_dict(plain.state_dict())
        again = bits(state(plain, "exp_avg")) == bits(state(optimizer, "exp_avg"))
        travels = {id(t) for t in optimizer.push_sum.memory.tensors.values()}
        adopted = all(id(m) in travels for m in state(optimizer, "exp_avg"))
        optimizer.close()
        return same, again, adopted

    assert ps.testing.run(2, rank) == [(True, True, True)] * 2


def test_state_that_is_cleared_starts_anew_and_an_added_group_travels_too():
    def rank(comm):
        model = network(1)
        optimizer = wrapped(comm, model)
        train(optimizer, model, 4, comm.rank)
        optimizer.optimizer.state.clear()
        optimizer.zero_grad()
        extra = nn.Parameter(torch.full((3,), float(comm.rank)))
        optimizer.add_param_group({"params": [extra]})
        optimizer.gossip()
        optimizer.step()  # no gradient: nothing is made yet
        travelling = optimizer.push_sum.memory.tensors.items()
        zero = all(not t.any() for name, t in travelling if name.endswith("(state 'exp_avg')"))
        extra.grad = torch.full((3,), 1.0 + comm.rank)
        optimizer.step(closure_of(model, 5, comm.rank))
        extra.grad = torch.full((3,), 1.0 + comm.rank)
        optimizer.step()
        moments = optimizer.state[extra]["exp_avg"].tolist()
        optimizer.close()
        return zero, moments

    (zero, one), (also_zero, other) = ps.testing.run(2, rank)
    assert zero
    assert also_zero
    assert one == pytest.approx(other)
    assert one == pytest.approx([0.285] * 3)  # 0.1 and 0.9 x 0.1 of the mean gradient, 1.5


# ---------------------------------------------------------------------- hosts, and the other modes


@pytest.mark.parametrize("staleness", [0, 1])
def test_hosts_of_two_ranks_are_one_rank_each_with_the_hosts_gradients(monkeypatch, staleness):
    """Both ranks of a host hold the same bits, and what a rank alone with the mean gradient of the host holds."""
    monkeypatch.setenv("PUSHSUM_RANKS_PER_HOST", "2")
    monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", "64")
    setting = oracle.Setting()

    def gradients(model, k, host, lane):
        model.set_gradients(k, host, setting)
        for p in model.held:
            p.grad *= 2.0 * lane  # their mean over lanes 0 and 1 is the gradient itself

    def rank(comm, in_hosts):
        model = Point()
        inner = optimizer_of(setting, model.parameters())
        more = {"within_host": "gradients"} if in_hosts else {}
        options = {"graph": ring, "staleness": staleness, "adaptive": "corrected", **more}
        optimizer = ps.PushSumOptimizer(inner, model, comm=comm, **options)
        for k in range(5):
            if in_hosts:
                gradients(model, k, comm.rank // 2, comm.rank % 2)
            else:
                model.set_gradients(k, comm.rank, setting)
            optimizer.step()
        found = [*values(model), *[t.clone() for n in ("exp_avg", "exp_avg_sq") for t in state(inner, n)]]
        optimizer.close()
        return found

    found = ps.testing.run(6, lambda c: rank(c, True))
    alone = ps.testing.run(3, lambda c: rank(c, False))
    for host in range(3):
        assert bits(found[2 * host]) == bits(found[2 * host + 1])
        torch.testing.assert_close(found[2 * host], alone[host], rtol=1e-12, atol=1e-14)


def test_asynchronous_ranks_keep_moments_of_the_size_of_the_mean_gradient():
    """Which message is merged when is chance, and a rank's own gradient counts a / w in its m, 2 at most."""

    def rank(comm):
        p = nn.Parameter(torch.zeros(50, dtype=torch.float64))
        inner = torch.optim.AdamW([p], lr=1e-3)
        optimizer = ps.PushSumOptimizer(inner, staleness="unbounded", adaptive="corrected", comm=comm)
        for _ in range(150):
            p.grad = torch.full_like(p, 1.0 + comm.rank)
            optimizer.step()
        m = inner.state[p]["exp_avg"].mean().item()
        optimizer.close()
        return m

    for m in ps.testing.run(3, rank):
        assert 0.2 < m < 8.0  # the mean gradient is 2


# ---------------------------------------------------------------------- what is said and refused


def test_the_start_line_says_what_travels_and_bytes_are_counted(caplog):
    caplog.set_level(logging.INFO, "pushsum_opt")

    def rank(comm, adaptive):
        model = network()
        inner = torch.optim.AdamW(model.parameters())
        optimizer = ps.PushSumOptimizer(inner, model, adaptive=adaptive, comm=comm)
        nbytes = optimizer.push_sum.memory.nbytes
        optimizer.close()
        return nbytes

    plain = ps.testing.run(2, lambda c: rank(c, "plain"))[0]
    assert "exp_avg" not in caplog.text
    assert ps.testing.run(2, lambda c: rank(c, "corrected"))[0] == 2 * plain
    assert f"adaptive='corrected': exp_avg travels too, {plain} B beside the parameters" in caplog.text


def test_all_ranks_must_choose_the_same():
    def rank(comm):
        model = network()
        adaptive = "corrected" if comm.rank else None
        ps.PushSumOptimizer(torch.optim.AdamW(model.parameters()), model, adaptive=adaptive, comm=comm)

    with pytest.raises(ps.testing.RankErrors, match="adaptive is 'plain' on rank 0, 'corrected' on rank 1"):
        ps.testing.run(2, rank)


OTHERS = {
    "SGD": "linear in the gradient",
    "Adagrad": "no first one",
    "RMSprop": "no first one",
    "Adadelta": "no first one",
    "Adamax": "the largest gradient",
    "Adafactor": "rows and columns",
    "SparseAdam": "of different steps",
    "Muon": "no second moment",
    "Rprop": "the sign",
    "LBFGS": "these alone",
}


@pytest.mark.parametrize("name", [name for name in OTHERS if hasattr(torch.optim, name)])
def test_other_optimizers_are_refused_with_the_reason(name):
    def rank(comm):
        model = nn.Linear(3, 2, bias=False)
        inner = getattr(torch.optim, name)(model.parameters(), lr=0.1)
        ps.PushSumOptimizer(inner, model, adaptive="corrected", comm=comm)

    expected = f"ConfigurationError: adaptive='corrected' with {name}: .*{OTHERS[name]}.*Leave adaptive out"
    with pytest.raises(ps.testing.RankErrors, match=expected):
        ps.testing.run(1, rank)


class OwnStep(torch.optim.AdamW):
    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (torch.optim.AdamW, {"adaptive": "yes"}, "adaptive='yes': expected 'plain', 'corrected' or None"),
        (torch.optim.AdamW, {"adaptive": "corrected", "gossip_state": "exp_avg"}, "travels already"),
        (OwnStep, {"adaptive": "corrected"}, "takes its step"),
        (lambda p: torch.optim.AdamW(p, betas=(0.0, 0.9)), {"adaptive": "corrected"}, r"betas \(0.0, 0.9\) in group 0"),
        (lambda p: torch.optim.AdamW(p, differentiable=True), {"adaptive": "corrected"}, "differentiable=True"),
    ],
)
def test_what_cannot_be_corrected_is_refused(make, options, message):
    def rank(comm):
        model = network()
        ps.PushSumOptimizer(make(model.parameters()), model, comm=comm, **options)

    with pytest.raises(ps.testing.RankErrors, match=f"ConfigurationError: .*{message}"):
        ps.testing.run(1, rank)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_are_refused_by_name(dtype):
    def rank(comm):
        model = network()
        model[2].bias.data = model[2].bias.data.to(dtype)
        ps.PushSumOptimizer(torch.optim.AdamW(model.parameters()), model, adaptive="corrected", comm=comm)

    with pytest.raises(ps.testing.RankErrors, match=r"expected parameters of float32 or wider, got .* 2.bias"):
        ps.testing.run(1, rank)


@pytest.mark.parametrize(
    ("make", "options", "hints"),
    [
        (torch.optim.AdamW, {}, 1),
        (torch.optim.NAdam, {"staleness": 1}, 1),
        (torch.optim.AdamW, {"adaptive": "plain"}, 0),
        (torch.optim.AdamW, {"adaptive": "corrected"}, 0),
        (torch.optim.SGD, {}, 0),
        (torch.optim.Adagrad, {}, 0),
    ],
)
def test_who_has_not_chosen_is_told_once_where_there_is_a_choice(make, options, hints, caplog):
    caplog.set_level(logging.INFO, "pushsum_opt")

    def rank(comm):
        model = nn.Linear(3, 2)
        ps.PushSumOptimizer(make(model.parameters(), lr=0.1), model, comm=comm, **options).close()

    ps.testing.run(1, rank)
    assert "all-reduce" not in caplog.text
    ps.testing.run(3, rank)
    assert caplog.text.count("adaptive='corrected' closes most of this gap") == hints
