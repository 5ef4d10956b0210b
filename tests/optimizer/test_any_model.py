"""Every element of every parameter that the optimizer holds leaves and arrives, whatever the model looks like.

Each rank's elements hold numbers of their own; after a round on a known graph each is compared with what it must be.
The chunks are cut small in some runs, so that tensors are spread over several and share others.
"""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from optimizer.common import bits, ring, star
from torch import nn

import pushsum_opt as ps
from pushsum_opt.errors import ConfigurationError, LayoutError, MismatchError
from pushsum_opt.push_sum.saving import restoring_exactly

pytestmark = pytest.mark.slow  # many models times many sizes of chunks


@pytest.fixture(
    params=["64", pytest.param("100", marks=pytest.mark.slow), None],
    ids=lambda value: f"chunks of {value or 'the usual'} bytes",
)
def chunks(request, monkeypatch):
    if request.param is None:
        monkeypatch.delenv("PUSHSUM_CHUNK_BYTES", raising=False)
    else:
        monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", request.param)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight


class Holding(nn.Module):
    """Holds tensors as parameters, as they are: strides and gaps included."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            setattr(self, name, nn.Parameter(tensor))


def mixed() -> nn.Module:
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]
    shapes = [(3, 5), (2,), (4, 1, 3), ()]
    return Holding(
        **{f"p{i}": torch.zeros(shape, dtype=d) for i, (shape, d) in enumerate(itertools.product(shapes, dtypes))}
    )


def images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, (2, 3)))


def parts(whole: torch.Tensor, *bounds: int) -> nn.Module:
    return Holding(**{f"p{start}": whole[start:stop] for start, stop in itertools.pairwise(bounds)})


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[0].weight.requires_grad_(False)
    return model


MODELS = {
    "a single layer": lambda: nn.Linear(7, 3),
    "a single number": lambda: Holding(only=torch.zeros(())),
    "tied weights": Tied,
    "frozen parameters and buffers": frozen,
    "multi-head attention": lambda: nn.MultiheadAttention(8, 2),
    "channels_last": lambda: images().to(memory_format=torch.channels_last),
    "channels_last_3d": lambda: nn.Conv3d(2, 3, 2).to(memory_format=torch.channels_last_3d),
    "float64": lambda: nn.Linear(7, 5).double(),
    "bfloat16": lambda: nn.Linear(7, 5).to(torch.bfloat16),
    "float16": lambda: nn.Linear(7, 5).to(torch.float16),
    "complex64": lambda: Holding(z=torch.zeros(6, 5, dtype=torch.complex64), t=torch.zeros(3, 4).t().cfloat()),
    "mixed dtypes": mixed,
    "empty parameters": lambda: Holding(a=torch.zeros(0), b=torch.zeros(3), c=torch.zeros(4, 0, 2), d=torch.zeros(5)),
    "nothing but empty parameters": lambda: Holding(a=torch.zeros(0), b=torch.zeros(2, 0)),
    "transposed": lambda: Holding(a=torch.zeros(6, 9).t(), b=torch.zeros(2, 3, 4, 5).permute(2, 0, 3, 1)),
    "strided, with gaps": lambda: Holding(
        a=torch.zeros(6, 8)[:, ::2], b=torch.zeros(9, 9)[2:7, 3:5], c=torch.zeros(40)[::3], d=torch.zeros(4)
    ),
    "strided halves and complex": lambda: Holding(
        a=torch.zeros(6, 8, dtype=torch.bfloat16)[:, ::2],
        b=torch.zeros(5, 6, dtype=torch.complex64)[:, 1::2],
        c=torch.zeros(5, 3, 2, dtype=torch.float16).transpose(0, 2)[:, :, 1:],
    ),
    "views of one storage": lambda: parts(torch.zeros(50), 0, 20, 31, 50),
    "many small ones around a large one": lambda: Holding(
        **{f"s{i}": torch.zeros(i) for i in range(1, 6)}, large=torch.zeros(33, 17), last=torch.zeros(2, 2)
    ),
}
every_model = pytest.mark.parametrize("make", list(MODELS.values()), ids=list(MODELS))


def real(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view in which complex numbers are pairs."""
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()


def optimized(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: real(p) for name, p in model.named_parameters() if p.requires_grad}


def own_values(model: nn.Module, rank: int) -> dict[str, np.ndarray]:
    """Return, for every element, a number of its own; whole, and small enough for halves of it to fit a half type."""
    found = {}
    start = 0
    for name, tensor in optimized(model).items():
        random = np.random.default_rng([rank, len(name), start])
        small = tensor.dtype in (torch.bfloat16, torch.float16)
        if small:
            found[name] = random.integers(0, 120, tuple(tensor.shape)).astype(float)
        else:
            numbers = 3 * (start + random.permutation(tensor.numel())) + rank
            found[name] = numbers.reshape(tuple(tensor.shape)).astype(float)
        start += tensor.numel()
    return found


def fill(model: nn.Module, values: dict[str, np.ndarray], change=lambda value: value) -> None:
    for name, tensor in optimized(model).items():
        tensor.copy_(torch.from_numpy(np.asarray(change(values[name]))))


def read(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy().copy() for name, tensor in optimized(model).items()}


def wrap(model: nn.Module, comm, lr=0.0, **options) -> ps.PushSumOptimizer:
    inner = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    return ps.PushSumOptimizer(inner, model, comm=comm, **options)


@every_model
@pytest.mark.usefixtures("chunks")
def test_after_one_round_on_a_ring_every_element_is_the_mean_of_two_ranks(make):
    """Halves of whole numbers are exact in every dtype, so this holds to the last bit."""

    def rank(comm):
        model = make()
        with wrap(model, comm, graph=ring) as wrapped:
            fill(model, own_values(model, comm.rank))
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.ones_like(parameter)
            wrapped.step()
            return read(model), wrapped.push_weight

    results = ps.testing.run(3, rank)
    for r, (found, weight) in enumerate(results):
        mine, theirs = own_values(make(), r), own_values(make(), (r - 1) % 3)
        assert weight == 1.0
        assert list(found) == list(mine)
        for name, values in found.items():
            np.testing.assert_array_equal(values, (mine[name] + theirs[name]) / 2, err_msg=f"rank {r}, {name}")


@every_model
@pytest.mark.parametrize(("staleness", "chunks"), [(0, "64"), (1, "100"), (1, None)], indirect=["chunks"])
@pytest.mark.usefixtures("chunks")
def test_on_a_star_every_element_goes_to_its_weighted_mean(make, staleness):
    """Push weights far from 1, several in-peers: sum_i v_i z_i / sum v, to the precision of the dtype."""
    data_weights = [1.0, 2.0, 5.0]
    precise = any(tensor.dtype == torch.float64 for tensor in optimized(make()).values())
    rounds = (90 if staleness else 40) if precise else (60 if staleness else 28)

    def rank(comm):
        model = make()
        options = {"graph": star, "staleness": staleness, "data_weight": data_weights[comm.rank]}
        with wrap(model, comm, **options) as wrapped:
            fill(model, own_values(model, comm.rank))
            for _ in range(rounds):
                wrapped.gossip()
            return read(model)

    starts = [own_values(make(), r) for r in range(3)]
    precision = {"bfloat16": 2**-7, "float16": 2**-10, "float32": 1e-6, "float64": 1e-10}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in optimized(make()).items()}
    for r, found in enumerate(ps.testing.run(3, rank)):
        for name, values in found.items():
            mean = sum(v * start[name] for v, start in zip(data_weights, starts, strict=True)) / 8
            rtol = precision[dtypes[name]]
            np.testing.assert_allclose(values, mean, rtol, rtol, err_msg=f"rank {r}, {name}")


@every_model
@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("wire", ["bfloat16", "float16"])
def test_rounded_on_the_wire_every_element_arrives_and_the_mean_over_ranks_stays(make, wire):
    def rank(comm):
        model = make()
        with wrap(model, comm, graph=ring, wire_dtype=wire) as wrapped:
            fill(model, own_values(model, comm.rank), lambda value: value % 117 + value % 7 / 7)
            held = read(model)
            wrapped.gossip()
            residuals = wrapped.state_dict()["push_sum"]["residuals"]
            return held, read(model), {name: residual.double().sum().item() for name, residual in residuals.items()}

    results = ps.testing.run(3, rank)
    for r, (held, found, _) in enumerate(results):
        theirs = results[r - 1][0]
        for name, values in found.items():
            np.testing.assert_allclose(values, (held[name] + theirs[name]) / 2, 2**-7, 2**-7, err_msg=f"{r}, {name}")
    dtypes = {name: tensor.dtype for name, tensor in optimized(make()).items()}
    for name, dtype in dtypes.items():
        before = sum(held[name].sum() for held, *_ in results)
        after = sum(found[name].sum() + residuals.get(name, 0.0) for _, found, residuals in results)
        rtol = 1e-14 if dtype == torch.float64 else 1e-6
        assert after == pytest.approx(before, rel=rtol, abs=rtol), name


@every_model
def test_rank_0s_values_reach_every_element_at_the_start(make):
    def rank(comm):
        model = make()
        fill(model, own_values(model, comm.rank))
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data.fill_(comm.rank)
        wrap(model, comm).close()
        return read(model), [p.unique().tolist() for p in model.parameters() if not p.requires_grad]

    for found, rest in ps.testing.run(3, rank):
        assert all(value == [0.0] for value in rest)
        for name, values in own_values(make(), 0).items():
            np.testing.assert_array_equal(found[name], values)


# ---------------------------------------------------------------------- what is not exchanged


def test_frozen_parameters_and_local_buffers_stay_on_each_rank_during_training():
    def rank(comm):
        model = frozen()
        with wrap(model, comm, graph=ring) as wrapped:
            with torch.no_grad():
                model[0].weight.fill_(comm.rank)
                model[1].running_mean.fill_(comm.rank)
            model.eval()
            for _ in range(3):
                wrapped.gossip()
            return model[0].weight.unique().tolist(), model[1].running_mean.unique().tolist()

    assert ps.testing.run(3, rank) == [([float(r)], [float(r)]) for r in range(3)]


def test_a_frozen_parameter_that_the_optimizer_holds_is_exchanged():
    def rank(comm):
        model = nn.Linear(3, 2)
        model.bias.requires_grad_(False)
        with ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), 0.0), model, graph=ring, comm=comm) as wrapped:
            model.bias.fill_(2.0 * comm.rank)
            wrapped.step()
            return model.bias.tolist()

    assert ps.testing.run(3, rank) == [[2.0] * 2, [1.0] * 2, [3.0] * 2]


@pytest.mark.parametrize("without", ["None", "zero"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_a_parameter_without_gradient_on_one_rank_only_is_averaged_all_the_same(kind, without):
    """Rank 1 saw nothing of ``rare`` in this step (a mixture of experts, an early exit)."""

    def rank(comm):
        model = Holding(common=torch.zeros(5), rare=torch.zeros(4))
        with ps.PushSumOptimizer(kind(model.parameters(), lr=0.5), model, graph=ring, comm=comm) as wrapped:
            before = own_values(model, comm.rank)
            fill(model, before)
            model.common.grad = torch.ones(5)
            if comm.rank != 1:
                model.rare.grad = torch.ones(4)
            elif without == "zero":
                model.rare.grad = torch.zeros(4)
            posted = []
            mix = wrapped.push_sum.mix
            wrapped.push_sum.mix = lambda: (posted.append(read(model)), mix())
            wrapped.step()
            return before, posted[0], read(model)

    results = ps.testing.run(3, rank)
    for r, (before, posted, found) in enumerate(results):
        for name in ("common", "rare"):
            np.testing.assert_allclose(found[name], (posted[name] + results[r - 1][1][name]) / 2, rtol=1e-6)
            moved = not np.array_equal(posted[name], before[name])
            if not (kind is torch.optim.AdamW and without == "zero"):  # weight decay moves it without a gradient
                assert moved == (name == "common" or r != 1)


# ---------------------------------------------------------------------- what changes after wrapping


def numerators(wrapped: ps.PushSumOptimizer, model: nn.Module) -> dict[str, np.ndarray]:
    """Return x = w z + r by element."""
    residuals = wrapped.state_dict()["push_sum"]["residuals"]
    found = {}
    for name, tensor in optimized(model).items():
        residual = torch.zeros_like(tensor, dtype=torch.float32)
        if name in residuals:
            residual.copy_(residuals[name])
        found[name] = (wrapped.push_weight * tensor.double() + residual.double()).numpy()
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.usefixtures("chunks")
def test_a_change_of_memory_format_takes_the_residuals_along(dtype):
    """Every element of sum_i (w_i z_i + r_i) stays, far below the last bit of a half type."""

    def rank(comm):
        model = images().to(dtype)
        history = []
        with wrap(model, comm, graph=star, data_weight=1.0 + comm.rank) as wrapped:
            fill(model, own_values(model, comm.rank), lambda value: value % 97 / 7)
            for formats in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
                model.to(memory_format=formats)
                for _ in range(3):
                    wrapped.gossip()
                    history.append(numerators(wrapped, model))
        return history

    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        sums = [sum(x[name] for x in together) for together in zip(*ps.testing.run(3, rank), strict=True)]
        for later in sums[1:]:
            np.testing.assert_allclose(later, sums[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.usefixtures("chunks")
def test_after_a_change_of_memory_format_on_all_ranks_training_goes_on_as_if_it_had_not_been(dtype):
    """The same trajectory with and without ``to(memory_format=...)`` in between."""

    def rank(comm, converts):
        model = images().to(dtype)
        with wrap(model, comm, lr=0.1, graph=star, data_weight=1.0 + comm.rank) as wrapped:
            fill(model, own_values(model, comm.rank), lambda value: value % 97 / 7)
            for step in range(8):
                if converts and step == 3:
                    model.to(memory_format=torch.channels_last)
                    assert model[0].weight.stride() == (27, 1, 9, 3)
                if converts and step == 6:
                    model.to(memory_format=torch.contiguous_format)
                for name, parameter in model.named_parameters():
                    generator = torch.Generator().manual_seed(100 * comm.rank + 10 * step + len(name))
                    gradient = torch.randn(parameter.shape, generator=generator).to(dtype)
                    parameter.grad = gradient.to(memory_format=torch.preserve_format)
                wrapped.step()
            return read(model)

    changed = ps.testing.run(3, lambda comm: rank(comm, True))
    expected = ps.testing.run(3, lambda comm: rank(comm, False))
    for one, other in zip(changed, expected, strict=True):
        for name in one:
            rtol = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2**-7}[dtype]
            np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=rtol)


@every_model
@pytest.mark.usefixtures("chunks")
def test_after_saving_and_restoring_every_element_goes_on_as_before(make):
    """Residuals of half types included, whatever their strides; as checkpoint.load() restores them."""

    def rank(comm, loads):
        model = make()
        with wrap(model, comm, graph=star) as wrapped:
            fill(model, own_values(model, comm.rank), lambda value: value % 97 / 7)
            for round in range(6):
                if loads and round == 3:
                    state = copy.deepcopy(wrapped.state_dict())
                    wrapped.push_sum.load_state({**state["push_sum"], "residuals": {}})
                    with restoring_exactly(wrapped.push_sum.member):
                        wrapped.load_state_dict(state)
                wrapped.gossip()
            return read(model), wrapped.push_weight

    loaded = ps.testing.run(3, lambda comm: rank(comm, True))
    for (one, weight), (other, expected) in zip(loaded, ps.testing.run(3, lambda comm: rank(comm, False)), strict=True):
        assert weight == expected
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_change_of_memory_format_on_one_rank_only_is_refused():
    def rank(comm):
        model = nn.Conv2d(3, 4, 3)
        with wrap(model, comm, graph=ring) as wrapped:
            wrapped.gossip()
            if comm.rank == 1:
                model.to(memory_format=torch.channels_last)
            wrapped.gossip()

    with pytest.raises(ps.testing.RankErrors) as caught:
        ps.testing.run(3, rank, timeout=30)
    errors = caught.value.errors.values()
    assert any(isinstance(error, MismatchError) and "strides" in str(error) for error in errors)


def test_parameters_moved_to_another_storage_are_followed():
    """As flattening utilities, EMA swaps and ``p.data = ...`` do."""

    def rank(comm):
        model = nn.Linear(3, 2)
        with wrap(model, comm, graph=ring) as wrapped:
            wrapped.gossip()
            for parameter in model.parameters():
                parameter.data = torch.full_like(parameter, 2.0 * comm.rank)
            wrapped.gossip()
            return [p.unique().tolist() for p in model.parameters()]

    assert ps.testing.run(3, rank) == [[[2.0]] * 2, [[1.0]] * 2, [[3.0]] * 2]


def test_a_change_of_dtype_is_refused_with_the_parameters_name():
    def rank(comm):
        model = nn.Linear(3, 2)
        with wrap(model, comm) as wrapped:
            wrapped.gossip()
            model.double()
            wrapped.gossip()

    with pytest.raises(ps.testing.RankErrors, match=r"weight was float32\[2, 3\] .* float64\[2, 3\] now") as caught:
        ps.testing.run(2, rank, timeout=30)
    assert any(isinstance(error, LayoutError) for error in caught.value.errors.values())


def test_loading_by_assignment_is_refused_with_the_parameters_names():
    def rank(comm):
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        with wrap(model, comm) as wrapped:
            wrapped.gossip()
            model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
            with pytest.raises(LayoutError, match=r"0\.weight, 0\.bias, 1\.weight, 1\.bias"):
                wrapped.step()

    ps.testing.run(2, rank, timeout=30)


def test_a_group_added_later_takes_part_by_element():
    def rank(comm):
        narrow = torch.zeros(7, dtype=torch.bfloat16)
        model = Holding(first=torch.zeros(5, 3), later=torch.zeros(4, 3).t(), narrow=narrow)
        inner = torch.optim.SGD([model.first], lr=0.0)
        with ps.PushSumOptimizer(inner, model, graph=ring, comm=comm) as wrapped:
            wrapped.gossip()
            wrapped.add_param_group({"params": [model.later, model.narrow]})
            fill(model, own_values(model, comm.rank))
            wrapped.gossip()
            return own_values(model, comm.rank), read(model)

    results = ps.testing.run(3, rank)
    for r, (mine, found) in enumerate(results):
        for name, values in found.items():
            np.testing.assert_array_equal(values, (mine[name] + results[r - 1][0][name]) / 2)


# ---------------------------------------------------------------------- what cannot be exchanged

IMPOSSIBLE = {
    "elements that share memory": (
        lambda: Holding(a=torch.zeros(3), wide=torch.zeros(3, 1).expand(3, 4)),
        r"wide .*strides \[1, 0\].*share memory",
    ),
    "overlapping parameters": (
        lambda: (lambda whole: Holding(a=whole[:12], b=whole[10:]))(torch.zeros(20)),
        "a and b overlap",
    ),
    "the same memory twice": (
        lambda: (lambda whole: Holding(a=whole, b=whole.view(4, 5)))(torch.zeros(20)),
        "a and b overlap",
    ),
    "a meta tensor": (lambda: Holding(a=torch.zeros(3), m=torch.zeros(3, device="meta")), "m is on meta"),
}


@pytest.mark.parametrize("what", list(IMPOSSIBLE))
def test_what_cannot_be_exchanged_is_refused_with_its_name(what):
    make, message = IMPOSSIBLE[what]

    def rank(comm):
        wrap(make(), comm)

    with pytest.raises(ps.testing.RankErrors, match=message) as caught:
        ps.testing.run(2, rank, timeout=30)
    assert all(isinstance(error, ConfigurationError) for error in caught.value.errors.values())


def test_an_integer_parameter_is_refused_with_its_name():
    def rank(comm):
        model = nn.Module()
        model.codes = nn.Parameter(torch.zeros(3, dtype=torch.int32), requires_grad=False)
        ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), 0.1), model, comm=comm)

    with pytest.raises(ps.testing.RankErrors, match="codes is of dtype int32") as caught:
        ps.testing.run(2, rank, timeout=30)
    assert all(isinstance(error, ConfigurationError) for error in caught.value.errors.values())


def test_gaps_between_the_elements_of_strided_parameters_are_left_alone():
    def rank(comm):
        whole = torch.full((6, 8), 100.0 + comm.rank)
        model = Holding(a=whole[:, ::2])
        with wrap(model, comm, graph=ring) as wrapped:
            fill(model, own_values(model, comm.rank))
            wrapped.gossip()
            return bits([whole[:, 1::2]]) == bits([torch.full((6, 4), 100.0 + comm.rank)])

    assert ps.testing.run(3, rank) == [True] * 3
