"""Construction: arguments, agreement between ranks, one common start, what is said and what is warned of."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from optimizer.common import FIRST_ORDER, KINDS, bits, flat, network, train
from torch import nn

import pushsum_opt as ps
from pushsum_opt.channel import Channel
from pushsum_opt.errors import ClosedError, ConfigurationError, MismatchError
from pushsum_opt.gossip.wire import HEADER_BYTES
from pushsum_opt.wrapped.order import order_by_values

every_kind = pytest.mark.parametrize("kind", list(KINDS))
pytestmark = pytest.mark.filterwarnings("ignore:LBFGS on")


# ---------------------------------------------------------------------- arguments

BAD = [
    ({"staleness": -1}, "staleness=-1"),
    ({"staleness": 1.5}, "staleness=1.5"),
    ({"staleness": True}, "staleness=True"),
    ({"staleness": "bounded"}, "staleness='bounded'"),
    ({"within_host": "nodes"}, "within_host='nodes'"),
    ({"gossip_every": 0}, "gossip_every=0"),
    ({"gossip_every": True}, "gossip_every=True"),
    ({"gossip_every": 1.0}, "gossip_every=1.0"),
    ({"data_weight": 0.0}, "data_weight=0.0"),
    ({"data_weight": -2}, "data_weight=-2"),
    ({"data_weight": float("inf")}, "data_weight=inf"),
    ({"data_weight": float("nan")}, "data_weight=nan"),
    ({"data_weight": "all"}, "data_weight='all'"),
    ({"data_weight": None}, "data_weight=None"),
    ({"data_weight": True}, "data_weight=True"),
    ({"buffers": ""}, "buffers=''"),
    ({"buffers": "mean"}, "buffers='mean'"),
    ({"wire_dtype": "int4"}, "wire_dtype='int4'"),
    ({"wire_dtype": torch.int32}, "wire_dtype='int32'"),
    ({"wire_dtype": 16}, "16"),
    ({"nonfinite": "ignore"}, "nonfinite='ignore'"),
    ({"nonfinite": True}, "nonfinite=True"),
    ({"timeout": 0}, "timeout=0"),
    ({"timeout": -1.0}, "timeout=-1.0"),
    ({"timeout": None}, "timeout=None"),
    ({"timeout": float("inf")}, "timeout=inf"),
    ({"rate_correction": True}, "rate_correction=True"),
    ({"graph": 3}, "graph=3"),
    ({"graph": lambda rank, size, round: [rank]}, "itself"),
    ({"graph": lambda rank, size, round: [size]}, "out of range"),
    ({"graph": lambda rank, size, round: ()}, "connected"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[f"{[*o]} {m}" for o, m in BAD])
def test_bad_arguments_are_refused_with_their_value(options, message):
    def rank(comm):
        model = network()
        ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm, **options)

    with pytest.raises(ps.testing.RankErrors) as caught:
        ps.testing.run(2, rank, timeout=30)
    assert set(caught.value.errors) == {0, 1}
    for error in caught.value.errors.values():
        assert isinstance(error, ConfigurationError)
        assert message in str(error)


def test_one_ranks_bad_data_weight_is_refused_on_every_rank():
    def rank(comm):
        model = network()
        weight = -1.0 if comm.rank == 1 else 1.0
        with pytest.raises(ConfigurationError, match=r"data_weight=-1\.0 on rank 1") as caught:
            ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm, data_weight=weight)
        return str(caught.value).replace(f"rank {comm.rank}: ", "", 1)

    assert len(set(ps.testing.run(3, rank, timeout=30))) == 1


def test_one_ranks_impossible_option_ends_the_others():
    """Refused before anything is exchanged, by one rank alone: it must not leave its peers waiting."""

    def rank(comm):
        model = network()
        ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm, timeout=comm.rank - 1.0)

    with pytest.raises(ps.testing.RankErrors, match=r"timeout=-1\.0"):
        ps.testing.run(3, rank, timeout=30)


def test_arguments_of_the_wrong_kind_are_type_errors_that_name_the_kind():
    model = network()
    optimizer = KINDS["SGD"](model.parameters())
    with pytest.raises(TypeError, match=r"optimizer: .* got list"):
        ps.PushSumOptimizer([], model)
    with pytest.raises(TypeError, match=r"optimizer: .* got type"):
        ps.PushSumOptimizer(torch.optim.SGD, model)
    with pytest.raises(TypeError, match=r"model: .* got dict"):
        ps.PushSumOptimizer(optimizer, {})
    with pytest.raises(TypeError, match=r"model: .* got generator"):
        ps.PushSumOptimizer(optimizer, model.parameters())
    with pytest.raises(TypeError):
        ps.PushSumOptimizer(optimizer, model, ps.graphs.Ring())  # options are keywords only
    with pytest.raises((TypeError, ConfigurationError), match="comm"):
        ps.PushSumOptimizer(optimizer, model, comm="world")


def test_the_constructor_takes_what_is_documented():
    import inspect

    found = {name: p.default for name, p in inspect.signature(ps.PushSumOptimizer).parameters.items()}
    assert found.pop("optimizer") is inspect.Parameter.empty
    documented = {
        "model": None, "graph": None, "staleness": 0, "within_host": None, "gossip_every": 1, "data_weight": 1.0,
        "algorithm": None, "buffers": None, "wire_dtype": None, "nonfinite": "raise", "comm": None, "timeout": 1800.0,
    }  # fmt: skip
    assert documented.items() <= found.items()
    assert set(found) - set(documented) <= {"rate_correction", "gossip_state", "adaptive", "on_loss"}


# ---------------------------------------------------------------------- agreement

MISMATCHES = {
    "the shape": (lambda m, r, o: setattr(m, "x", nn.Parameter(torch.zeros(3 + (r == 1)))), "x is float32[3]"),
    "the dtype": (
        lambda m, r, o: setattr(m, "x", nn.Parameter(torch.zeros(3, dtype=torch.float64 if r == 1 else None))),
        "float64[3]",
    ),
    "the strides": (
        lambda m, r, o: setattr(m, "x", nn.Parameter(torch.zeros(4, 3).t() if r == 1 else torch.zeros(3, 4))),
        "strides [1, 3]",
    ),
    "a missing parameter": (
        lambda m, r, o: setattr(m, "x", nn.Parameter(torch.zeros(3))) if r != 1 else None,
        "x is float32[3]",
    ),
    "the names": (lambda m, r, o: setattr(m, "y" if r == 1 else "x", nn.Parameter(torch.zeros(3))), "y is missing"),
    "the graph": (lambda m, r, o: o.update(graph=ps.graphs.Ring() if r == 1 else ps.graphs.Complete()), "Ring()"),
    "the wire dtype": (lambda m, r, o: o.update(wire_dtype="bfloat16" if r == 1 else None), "layout of messages"),
    "what to do with nan": (lambda m, r, o: o.update(nonfinite="skip" if r == 1 else "raise"), "'skip'"),
    "the staleness": (lambda m, r, o: o.update(staleness=2 if r == 1 else 1), "staleness is 1"),
    "the mode": (lambda m, r, o: o.update(staleness="unbounded" if r == 1 else 1), "'unbounded'"),
    "the peers of one round": (lambda m, r, o: o.update(graph=[late, later][r == 1]), "graph is"),
}


def late(rank, size, round):
    return ((rank + 1) % size,)


def later(rank, size, round):
    return ((rank + (2 if round == 3 else 1)) % size,)


later.__name__ = "late"  # so that nothing but their peers tells the two apart


@pytest.mark.parametrize("what", list(MISMATCHES))
def test_ranks_that_disagree_get_the_same_clear_error_everywhere(what):
    change, item = MISMATCHES[what]

    def rank(comm):
        model, options = network(), {}
        change(model, comm.rank, options)
        before = bits(model.parameters())
        with pytest.raises(MismatchError) as caught:
            ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm, **options)
        assert bits(model.parameters()) == before, "nothing was exchanged"
        return str(caught.value).replace(f"rank {comm.rank}: the ranks", "the ranks", 1)

    said = ps.testing.run(3, rank, timeout=30)
    assert said[0] == said[1] == said[2]
    for part in (item, "ranks 0, 2", "rank 1", "same code"):
        assert part in said[0]


@pytest.mark.parametrize(
    ("change", "item"),
    [
        ({"buffers": "gossip"}, "buffers is 'average' on rank 0, 'gossip' on rank 1"),
        ({"gossip_state": ("momentum_buffer",)}, "gossip_state is () on rank 0, ('momentum_buffer',) on rank 1"),
        ({"within_host": "gradients"}, "PushSumOptimizer(within_host='gradients')"),
        ("tie", "the list of tied parameters is nothing on rank 0, q to p on rank 1"),
        ("freeze", "the list of parameters that the optimizer lacks is nothing on rank 0, q on rank 1"),
    ],
    ids=str,
)
def test_what_makes_ranks_exchange_other_tensors_is_named_and_not_what_follows(change, item):
    def rank(comm):
        model = nn.ParameterDict({"p": torch.zeros(3), "q": torch.zeros(3)})
        model.register_buffer("b", torch.zeros(2))
        if comm.rank == 1 and change == "tie":
            model.q = model.p
        if comm.rank == 1 and change == "freeze":
            model.q.requires_grad_(False)
        inner = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        options = change if comm.rank == 1 and isinstance(change, dict) else {}
        with pytest.raises(MismatchError) as caught:
            ps.PushSumOptimizer(inner, model, comm=comm, **options)
        return str(caught.value)

    for said in ps.testing.run(2, rank, timeout=30):
        assert item in said
        assert "missing" not in said


def test_one_column_too_many_among_many_is_the_only_one_named():
    def rank(comm):
        model = nn.ParameterDict({f"p{i:02}": torch.zeros(3 + (comm.rank == 2 and i == 17)) for i in range(40)})
        with pytest.raises(MismatchError) as caught:
            ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm)
        return str(caught.value)

    for text in ps.testing.run(3, rank, timeout=30):
        assert "p17 is float32[3] strides [1] on ranks 0, 1, float32[4] strides [1] on rank 2" in text
        assert "p16" not in text


# ---------------------------------------------------------------------- one common start


class Everything(nn.Module):
    """Parameters of several dtypes and layouts, frozen ones, floating and integer buffers."""

    def __init__(self, rank: int, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(rank)
        self.body = network(rank)
        self.narrow = nn.Parameter(torch.randn(3, 4, generator=generator).to(dtype))
        self.strided = nn.Parameter(torch.randn(4, 6, generator=generator)[:, ::2])
        self.frozen = nn.Parameter(torch.randn(3, 2, generator=generator).t(), requires_grad=False)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.randn(5, generator=generator) > 0)
        self.register_buffer("hidden", torch.randn(5, generator=generator), persistent=False)
        self.register_buffer("scalar", torch.randn((), generator=generator).double())
        with torch.no_grad():
            self.norm.running_mean.fill_(rank)
            self.norm.num_batches_tracked.fill_(10 + rank)
            self.norm.bias.fill_(-rank)


@every_kind
@pytest.mark.parametrize("given", [True, False], ids=["with model", "without model"])
def test_rank_0s_parameters_buffers_and_state_reach_every_rank(kind, given):
    def rank(comm):
        # torch's LBFGS, when it loads a state, casts all of it to the dtype of its first parameter.
        model = Everything(comm.rank, torch.float32 if kind == "LBFGS" else torch.bfloat16)
        inner = KINDS[kind]([p for p in model.parameters() if p.requires_grad], lr=0.1 + comm.rank)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, 1.0 + comm.rank)
        for _ in range(comm.rank + 1):
            inner.step((lambda: torch.ones(())) if kind == "LBFGS" else None)
        apart = bits([model.frozen, *model.buffers()])
        with ps.PushSumOptimizer(inner, model if given else None, comm=comm):
            optimized = bits([p for p in model.parameters() if p.requires_grad])
            return optimized, flat(inner.state_dict()), bits([model.frozen, *model.buffers()]), apart

    results = ps.testing.run(3, rank)
    for optimized, state, rest, apart in results[1:]:
        assert optimized == results[0][0]
        assert state == results[0][1]
        assert apart != results[0][3], "they started different"
        assert rest == (results[0][2] if given else apart), "without a model the rest stays as it is"


def test_a_scheduler_made_before_wrapping_drives_the_groups_that_came_from_rank_0():
    def rank(comm):
        model = network(comm.rank)
        inner = KINDS["SGD"](model.parameters(), lr=0.1 * (1 + comm.rank))
        scheduler = torch.optim.lr_scheduler.StepLR(inner, 1, 0.5)
        with ps.PushSumOptimizer(inner, model, comm=comm) as wrapped:
            train(wrapped, model, 1, comm.rank)
            scheduler.step()
            return wrapped.param_groups[0]["lr"]

    assert ps.testing.run(2, rank) == [0.05, 0.05]


# ---------------------------------------------------------------------- what is said


def messages(caplog, level=logging.INFO):
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("given", [True, False], ids=["with model", "without model"])
def test_one_line_on_rank_0_says_what_runs_and_what_it_costs(size, given, caplog):
    def rank(comm):
        model = network()
        kind = KINDS["SGD"](model.parameters())
        ps.PushSumOptimizer(kind, model if given else None, graph=ps.graphs.Ring(), comm=comm).close()

    with caplog.at_level(logging.INFO, "pushsum_opt"):
        ps.testing.run(size, rank)
    (line,) = messages(caplog)
    parts = [f"{size} rank{'s' * (size > 1)} on 1 host", "graph Ring()", "synchronous", "host memory over loopback"]
    for part in parts:
        assert part in line
    assert ("no model given: buffers and frozen parameters stay" in line) == (not given)
    numbers = sum(p.numel() for p in network().parameters())
    sent = float(line.split("; ")[4].split()[0])
    assert (4 * numbers <= sent <= 4 * numbers + HEADER_BYTES) if size > 1 else sent == 0


@pytest.mark.parametrize("kind", FIRST_ORDER)
@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize(
    ("sharded", "rate", "warns"),
    [(False, 0.1, True), (True, 0.1, False), (False, 0.0, False)],
    ids=["same data", "sharded data", "same data, nothing changes"],
)
def test_a_warning_when_every_ranks_first_step_is_bit_equal(kind, staleness, sharded, rate, warns, caplog):
    def rank(comm):
        model = network()
        inner = KINDS[kind](model.parameters(), lr=rate)
        with ps.PushSumOptimizer(inner, model, staleness=staleness, comm=comm) as wrapped:
            train(wrapped, model, 6, comm.rank if sharded else 0)

    with caplog.at_level(logging.WARNING, "pushsum_opt"):
        ps.testing.run(4, rank)
    assert len(messages(caplog, logging.WARNING)) == warns
    assert all("DistributedSampler" in text for text in messages(caplog, logging.WARNING))


def test_no_warning_when_only_the_last_parameter_of_many_differs(caplog):
    def rank(comm):
        model = nn.ParameterList([torch.zeros(5) for _ in range(4)])
        with ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm) as wrapped:
            for index, parameter in enumerate(model):
                parameter.grad = torch.ones(5)
                if index == 3:
                    parameter.grad[4] += comm.rank
            wrapped.step()

    with caplog.at_level(logging.WARNING, "pushsum_opt"):
        ps.testing.run(2, rank)
    assert messages(caplog, logging.WARNING) == []


@pytest.mark.parametrize("group", [2, 1], ids=["the same ranks", "each rank for itself"])
def test_a_warning_when_the_model_is_averaged_by_all_reduce_over_the_same_ranks(group, monkeypatch):
    """A stub: the constructor of DistributedDataParallel needs a process group, which threads cannot form."""
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: group)

    def rank(comm):
        model = object.__new__(nn.parallel.DistributedDataParallel)
        nn.Module.__init__(model)
        model.module = network()
        ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm).close()

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ps.testing.run(2, rank)
    assert len(seen) == (group == 2)
    for one in seen:
        assert "DistributedDataParallel over the same 2 ranks" in str(one.message)
        assert one.filename == __file__, "it points to the line that wraps"


def test_after_a_failed_start_the_ranks_may_start_anew():

    def rank(comm):
        model = nn.Linear(2 + comm.rank, 1)
        with pytest.raises(MismatchError):
            ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, comm=comm)
        fresh = network()
        with ps.PushSumOptimizer(KINDS["SGD"](fresh.parameters()), fresh, comm=comm) as wrapped:
            train(wrapped, fresh, 2, comm.rank)
        with pytest.raises(ClosedError):
            wrapped.step()

    ps.testing.run(2, rank, timeout=30)


@pytest.mark.parametrize("how", ["a dict", "a list", "itself", "deep", "in a group"])
def test_state_that_holds_itself_is_named_with_its_parameter(how):
    """On one rank nothing has to travel, so it is taken as it is."""

    def rank(comm):
        model = network()
        inner = torch.optim.SGD(model.parameters(), lr=0.1 + comm.rank)
        entries = inner.state[model[2].bias]
        endless = {"a dict": {}, "a list": []}.get(how, entries)
        if how == "a dict":
            endless["again"] = endless
        if how == "a list":
            endless.append([endless])
        if how == "deep":
            endless = []
            for _ in range(2000):
                endless = [endless]
        entries["loop"] = endless
        if how == "in a group":
            inner.state.clear()
            inner.param_groups[0]["loop"] = {"more": inner.param_groups[0]}
        with ps.PushSumOptimizer(inner, model, comm=comm) as optimizer:
            optimizer.gossip()

    ps.testing.run(1, rank)
    with pytest.raises(ps.testing.RankErrors) as caught:
        ps.testing.run(2, rank, timeout=30)
    place = "['param_groups'][0]['loop']" if how == "in a group" else "state 'loop' of parameter 2.bias holds"
    assert all(isinstance(error, ConfigurationError) and place in str(error) for error in caught.value.errors.values())


def test_state_of_nobodys_parameter_that_holds_itself_is_named_too():
    class Numbered(torch.optim.SGD):
        def state_dict(self):
            state = super().state_dict()
            loop = []
            loop.append(loop)
            return {**state, "state": {**state["state"], 99: {"loop": loop}}}

    def rank(comm):
        model = network()
        ps.PushSumOptimizer(Numbered(model.parameters(), lr=0.1), model, comm=comm)

    with pytest.raises(ps.testing.RankErrors, match=r"optimizer.state_dict\(\), at \['state'\]\[99\]\['loop'\]"):
        ps.testing.run(2, rank, timeout=30)


def test_another_order_is_named_by_parameters_whose_values_tell_them_apart():
    def rank(comm):
        made = [torch.zeros(4), torch.arange(4.0), torch.zeros(4)]
        model = nn.ParameterList([nn.Parameter(made[k]) for k in ([0, 1, 2], [0, 2, 1])[comm.rank]])
        return order_by_values(Channel.open(comm), dict(model.named_parameters()))

    (said, _) = ps.testing.run(2, rank)
    assert "rank 1 holds rank 0's parameters in another order: its 2 is 1 there" in said


@pytest.mark.parametrize("named", [False, True], ids=["without a model", "in a ParameterList"])
@pytest.mark.parametrize(
    ("seeds", "order", "warned"),
    [
        ([0, 0, 0], [0, 1, 2], False),
        ([0, 0, 0], [1, 0, 2], True),
        ([0, 1, 2], [1, 0, 2], False),
    ],
    ids=["one order", "another order", "seeds of their own"],
)
def test_another_order_of_equal_shapes_is_warned_of_where_values_show_it(named, seeds, order, warned, caplog):
    def rank(comm):
        random = torch.Generator().manual_seed(seeds[comm.rank])  # torch's own is one for all threads
        made = [nn.Parameter(torch.randn(4, 4, generator=random)) for _ in range(3)] + [
            nn.Parameter(torch.zeros(4)) for _ in range(2)
        ]
        places = order if comm.rank == 1 else range(3)
        model = nn.ParameterList([*(made[place] for place in places), *made[3:]])
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        ps.PushSumOptimizer(inner, model if named else None, comm=comm).close()

    with caplog.at_level(logging.WARNING, "pushsum_opt"):
        ps.testing.run(3, rank)
    said = [record.getMessage() for record in caplog.records if "another order" in record.getMessage()]
    assert len(said) == warned
    names = ("0", "1") if named else ("group 0 parameter 0", "group 0 parameter 1")
    assert all(
        f"rank 1 holds rank 0's parameters in another order: its {names[0]} is {names[1]} there" in one for one in said
    )
