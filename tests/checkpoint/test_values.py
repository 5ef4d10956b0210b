"""What is saved is read back: values of common types, state of a form of its own, tensors on their devices."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import pathlib
import threading
import types
import uuid

import numpy as np
import pytest
import torch
from optimizer.common import closure_of, flat, network

import pushsum_opt as ps
from pushsum_opt.algorithms import SlowMomentum
from pushsum_opt.checkpoint.devices import where_it_was
from pushsum_opt.checkpoint.safe_types import decode, encode
from pushsum_opt.errors import CheckpointError


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


Pair = collections.namedtuple("Pair", "first second")
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 6)
VALUES = [
    np.float64(0.5), np.float32(0.5), np.float16(1), np.bool_(True), np.int8(3), np.uint64(2**63), np.complex64(1j),
    np.str_("a"), np.datetime64("2020-01-01"), np.longdouble(1) / 3, np.dtype("f4"),
    np.zeros(3), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array(["a", "bc"]), np.zeros((2, 0)),
    np.array([1, "a", None], object), np.zeros(2, [("a", "<f4"), ("b", "<i8")]), np.array(5),
    NOW, NOW.replace(tzinfo=datetime.timezone.utc), NOW.date(), NOW.time(), datetime.timedelta(1, 2, 3),
    datetime.timezone.utc, pathlib.Path("x"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a"),
    collections.Counter(a=1), collections.OrderedDict(a=np.float32(1)), collections.defaultdict(int, a=1),
    collections.defaultdict(list), collections.deque([1, 2], 5), {1, 2}, {(1, 2)}, frozenset([1]), 1j, range(3),
    slice(1, 2), b"x", bytearray(b"y"), decimal.Decimal("1.1"), fractions.Fraction(1, 3), uuid.UUID(int=7),
    argparse.Namespace(a=1, path=pathlib.Path("y")), types.SimpleNamespace(q=1), Colour.RED, Level.HIGH,
    Pair(1, np.float32(2)), torch.float32, torch.device("cpu"), torch.Size([1]), torch.channels_last,
    {np.int64(3): np.float32(1)}, {b"\xff": {"a"}},
    {(np.int64(1), 2): 3}, [(1, {"a": np.float32(2)})], None, float("inf"), 2**80,
]  # fmt: skip


def wrapped(comm, kind=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5), **options):
    model = network()
    return model, ps.PushSumOptimizer(kind(model.parameters()), model, comm=comm, **options)


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one == other or repr(one) == repr(other)


def test_values_of_common_types_come_back_as_they_were_saved_in_extra_companions_and_groups(tmp_path):
    class Companion:
        held = VALUES

        def state_dict(self):
            return {"held": self.held}

        def load_state_dict(self, state):
            self.held = state["held"]

    def rank(comm):
        _, optimizer = wrapped(comm)
        optimizer.param_groups[0].update(rate=np.float32(0.5), when=NOW)
        companion = Companion()
        ps.checkpoint.save(tmp_path, optimizer, extra=VALUES, also={"log": companion})
        companion.held = None
        optimizer.param_groups[0].update(rate=0, when=None)
        loaded = ps.checkpoint.load(tmp_path, optimizer, also={"log": companion}).extra
        group = optimizer.param_groups[0]
        assert (type(group["rate"]), group["when"]) == (np.float32, NOW)
        return loaded, companion.held

    for found in ps.testing.run(1, rank)[0]:
        for value, back in zip(VALUES, found, strict=True):
            assert type(back) is type(value), value
            assert same(value, back), value


def test_a_file_needs_nothing_but_torchs_safe_loader(tmp_path):
    def rank(comm):
        return ps.checkpoint.save(tmp_path, wrapped(comm)[1], extra=VALUES)

    path = ps.testing.run(1, rank)[0]
    assert len(torch.load(path / "rank-00000.pt", weights_only=True)["extra"]) == len(VALUES)


def test_what_holds_none_of_these_types_is_not_copied_and_a_class_of_a_program_is_not_imported():
    state = {"a": [1, torch.zeros(1)], "b": collections.OrderedDict(c=(2, "x"))}
    assert encode(state) is state
    assert decode(state) is state
    missing = {"pushsum_opt type": "enum", "module": "not.loaded", "class": "Colour", "name": "RED"}
    with pytest.raises(CheckpointError, match=r"not\.loaded\.Colour.*Import its module"):
        decode(missing)
    with pytest.raises(CheckpointError, match=r"Path|no such class"):
        decode({**missing, "module": "pathlib", "class": "Path"})


class Odd(torch.optim.SGD):
    """Keeps a lock in its state."""

    def step(self, closure=None):
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["thing"] = argparse.ArgumentParser()


@pytest.mark.parametrize(
    ("save", "message"),
    [
        ({"extra": {"a": [1, threading.Event()]}}, r"extra=, at \['a'\]\[1\], holds a threading\.Event"),
        ({"extra": {"m": np.ma.array([1, 2], mask=[0, 1])}}, r"extra=, at \['m'\], holds a numpy\.ma\.\S*MaskedArray"),
        ({"extra": {"f": lambda: 1}}, r"extra=, at \['f'\], holds a builtins\.function \(.*lambda"),
        ({"also": {"ema": "companion"}}, r"state_dict\(\) of also\['ema'\], at \['deep'\]\['x'\], holds a argparse"),
        ({"kind": Odd}, r"optimizer\.state_dict\(\), at \['state'\]\[0\]\['thing'\], holds a argparse\.ArgumentParser"),
    ],
)
def test_what_cannot_be_saved_is_named_with_its_class_and_its_place(tmp_path, save, message):
    class Companion:
        def state_dict(self):
            return {"deep": {"x": argparse.ArgumentParser()}}

    options = dict(save)
    kind = options.pop("kind", torch.optim.SGD)
    if "also" in options:
        options["also"] = {"ema": Companion()}

    def rank(comm):
        model, optimizer = wrapped(comm, lambda p: kind(p, lr=0.1))
        optimizer.step(closure_of(model, 0))
        with pytest.raises(CheckpointError, match=message):
            ps.checkpoint.save(tmp_path, optimizer, **options)

    ps.testing.run(1, rank)


# ---------------------------------------------------------------------- optimizers with a state_dict of their own


class Around(torch.optim.Optimizer):
    def __init__(self, parameters):
        self.base = torch.optim.SGD(parameters, lr=0.1, momentum=0.5)
        super().__init__(self.base.param_groups, {})

    def step(self, closure=None):
        return self.base.step(closure)

    def state_dict(self):
        return {"base": self.base.state_dict()}

    def load_state_dict(self, state_dict):
        self.base.load_state_dict(state_dict["base"])


class Broken(Around):
    def load_state_dict(self, state_dict):
        self.base.load_state_dict(state_dict["inner"])


@pytest.mark.parametrize("size", [2, 3])
def test_a_wrapper_whose_state_nests_the_inner_one_is_saved_and_loaded(tmp_path, size):
    def save(comm):
        model, optimizer = wrapped(comm, Around)
        optimizer.step(closure_of(model, 0, comm.rank))
        optimizer.optimizer.base.state_dict()
        before = flat(optimizer.state_dict()["base"])
        ps.checkpoint.save(tmp_path, optimizer)
        assert flat(optimizer.state_dict()["base"]) == before
        optimizer.close()
        return before

    def load(comm):
        _, optimizer = wrapped(comm, Around)
        ps.checkpoint.load(tmp_path, optimizer)
        optimizer.close()
        return flat(optimizer.state_dict()["base"])

    saved = ps.testing.run(2, save)
    assert ps.testing.run(size, load) == [saved[rank % 2] for rank in range(size)]


def test_a_state_that_would_not_load_is_refused_when_it_is_saved_and_the_optimizer_is_not_touched(tmp_path):
    def rank(comm):
        model, optimizer = wrapped(comm, Broken)
        optimizer.step(closure_of(model, 0))
        before = flat(optimizer.state_dict()["base"])
        with pytest.raises(CheckpointError, match=r"Broken\.load_state_dict\(\).*KeyError: 'inner'"):
            ps.checkpoint.save(tmp_path, optimizer)
        assert flat(optimizer.state_dict()["base"]) == before

    ps.testing.run(1, rank)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- devices ("meta" stands for a GPU)


def test_slow_momentum_that_was_read_onto_the_cpu_follows_the_parameters():
    slow = SlowMomentum(every=2)
    x = torch.nn.Parameter(torch.zeros(3, device="meta"))
    slow.load_state_dict({"before": [torch.zeros(3)], "slow": [torch.zeros(3)]})
    slow._slow_step([{"params": [x], "lr": 0.1}])
    assert {t.device.type for t in (*slow.state_dict()["before"], *slow.state_dict()["slow"])} == {"meta"}


class Wide(torch.optim.SGD):
    """Keeps float32 momentum for parameters of any dtype."""

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["wide"] = state.get("wide", torch.zeros(parameter.shape)) + parameter.grad.float()
            parameter.sub_((0.01 * state["wide"]).to(parameter.dtype))


def test_float32_state_of_half_precision_parameters_is_not_rounded_by_loading_or_at_the_start(tmp_path):
    def rank(comm):
        p = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        inner = Wide([p], lr=0.1)
        p.grad = torch.full((4,), 1.0078125, dtype=torch.bfloat16)
        for _ in range(3 if comm.rank == 0 else 0):
            inner.step()
        optimizer = ps.PushSumOptimizer(inner, comm=comm)
        started = flat(optimizer.state[p]["wide"])
        ps.checkpoint.save(tmp_path, optimizer)
        optimizer.state[p]["wide"].zero_()
        assert ps.checkpoint.load(tmp_path, optimizer).exact
        return started, flat(optimizer.state[p]["wide"])

    (one, two), (three, four) = ps.testing.run(2, rank)
    assert one == two == three == four
    assert one[0][0] == "torch.float32"


def test_tensors_go_to_the_device_where_their_owner_has_them_now():
    state = {0: {"step": torch.tensor(1.0)}}
    saved = {"param_groups": [{"lr": torch.tensor(0.1), "params": [0]}], "state": state, "n": 1}
    present = {"param_groups": [{"lr": torch.tensor(0.2, device="meta"), "params": [0]}], "state": {}}
    found = where_it_was(saved, present)
    assert found["param_groups"][0]["lr"].device.type == "meta"
    assert found["state"][0]["step"] is saved["state"][0]["step"]
    assert where_it_was(saved, saved) is saved


def _endless(kind):
    value = kind()
    if isinstance(value, dict):
        value["again"] = value
    elif isinstance(value, types.SimpleNamespace):
        value.again = [value]
    else:
        value.append((value,))
    return value


DEEP = []
for _ in range(2000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        *((_endless(kind), "holds itself") for kind in (dict, list, collections.deque, types.SimpleNamespace)),
        (DEEP, "holds more than 200 containers inside each other"),
    ],
    ids=["dict", "list", "deque", "namespace", "deep"],
)
def test_what_holds_itself_is_named_with_its_place(tmp_path, extra, why):
    def rank(comm):
        _, optimizer = wrapped(comm)
        with optimizer, pytest.raises(CheckpointError, match=rf"extra=, at \['here'\].* {why}"):
            ps.checkpoint.save(tmp_path, optimizer, extra={"shared": [[1]] * 2, "here": extra})

    ps.testing.run(1, rank)
