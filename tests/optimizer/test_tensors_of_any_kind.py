"""Buffers and frozen parameters of every kind that torch trains with; what is not alike on all ranks is named."""

from __future__ import annotations

import io
import pickle
import warnings

import pytest
import torch
from support.ranks import on_ranks
from torch import nn

import pushsum_opt as ps
from pushsum_opt.errors import CheckpointError, ConfigurationError, MismatchError

EYE = torch.eye(4)
BUFFERS = {
    "sparse COO": lambda: EYE.to_sparse(),
    "sparse CSR": lambda: EYE.to_sparse_csr(),
    "expanded int": lambda: torch.arange(4).expand(3, 4),
    "expanded float": lambda: EYE.expand(3, 4, 4),
    "expanded along all axes": lambda: torch.ones(1).expand(3, 4),
    "overlapping itself": lambda: torch.arange(5.0).as_strided((3, 3), (1, 1)),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "ragged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "conjugated": lambda: torch.complex(EYE, EYE).conj(),
    "meta": lambda: torch.empty(4, device="meta"),
    "float8": lambda: torch.ones(4).to(torch.float8_e4m3fn),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "bool": lambda: torch.ones(4, dtype=torch.bool),
    "no elements": lambda: torch.empty(0, 3),
    "causal mask": lambda: torch.full((3, 3), float("-inf")).triu(1),
}


def wrap(model, comm, *, trained=None, **options):
    inner = torch.optim.SGD(model.parameters() if trained is None else trained, lr=0.1)
    return ps.PushSumOptimizer(inner, model, comm=comm, **options)


def dense(tensor):
    if tensor.is_meta:
        return torch.zeros(0)
    if tensor.is_nested:
        return torch.cat([one.clone() for one in tensor.unbind()])
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    if tensor.dtype is torch.float8_e4m3fn:
        tensor = tensor.float()  # torch before 2.6 does not compare float8
    return (tensor if tensor.layout == torch.strided else tensor.to_dense()).resolve_conj().clone()


def is_read_safely(value):
    """Tell whether this torch reads a value with weights_only=True. Version 2.4 refuses ragged tensors."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    try:
        torch.load(file, weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*quantiz.*", "ignore:TypedStorage")
@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("buffers", ["average", "gossip"])
def test_a_buffer_of_any_kind_is_kept_through_steps_averages_and_checkpoints(kind, size, buffers, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = [BUFFERS[kind]() for _ in range(size)]
        saved = kind != "ragged" or is_read_safely(made[0])

    def rank(comm):
        model = nn.Linear(4, 1)
        model.register_buffer("extra", made[comm.rank])
        with wrap(model, comm, buffers=buffers) as optimizer:
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            with optimizer.averaged():
                inside = dense(model.extra)
            copied = optimizer.averaged_state_dict(rank=None)["extra"]
            if saved:
                ps.checkpoint.save(tmp_path, optimizer)
                ps.checkpoint.load(tmp_path, optimizer)
            else:
                with pytest.raises(CheckpointError, match=r"\['extra'\], holds a .*NestedTensor"):
                    ps.checkpoint.save(tmp_path, optimizer)
            return inside, dense(copied), dense(model.extra)

    for values in ps.testing.run(size, rank):
        assert all(torch.equal(value, dense(BUFFERS[kind]())) for value in values)


SPECIAL = {
    "sparse COO": lambda x: x.to_sparse(),
    "sparse CSR": lambda x: x.to_sparse_csr(),
    "sparse CSC": lambda x: x.to_sparse_csc(),
    "sparse BSR": lambda x: x.to_sparse_bsr((2, 2)),
    "sparse BSC": lambda x: x.to_sparse_bsc((2, 2)),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1 + x[0, 1].item(), 0, torch.qint8),
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[1]]),
    "ragged": lambda x: torch.nested.nested_tensor([x[0], x[1]], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:.*quantiz.*", "ignore:TypedStorage", "ignore:.*nested")
@pytest.mark.parametrize("kind", SPECIAL)
def test_rank_0s_values_reach_a_buffer_of_special_kind_also_with_another_number_of_elements(kind):
    values = [torch.ones(4, 4), torch.eye(4)]

    def rank(comm):
        model = nn.Linear(4, 1)
        model.register_buffer("extra", SPECIAL[kind](values[comm.rank]))
        with wrap(model, comm):
            return dense(model.extra)

    one, other = ps.testing.run(2, rank)
    assert torch.equal(one, dense(SPECIAL[kind](values[0])))
    assert torch.equal(one, other)


def test_a_mask_of_minus_infinity_keeps_nothing_from_mixing():
    """With buffers="gossip" it would share a chunk with the parameters; with "skip" the chunk would stay unmixed."""

    def rank(comm):
        model = nn.Linear(4, 1)
        model.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
        with wrap(model, comm, buffers="gossip", nonfinite="skip") as optimizer:
            with torch.no_grad():
                model.weight.fill_(float(comm.rank))
            for _ in range(2):
                optimizer.gossip()
            return model.weight[0, 0].item(), optimizer.stats()["chunks_skipped"]

    assert ps.testing.run(2, rank) == [(0.5, 0.0), (0.5, 0.0)]


def test_buffers_in_the_memory_of_others_stay_on_each_rank_and_are_averaged(caplog):
    def rank(comm):
        model = nn.Linear(4, 1)
        memory = torch.full((6,), float(comm.rank))
        model.register_buffer("a", memory[:4])
        model.register_buffer("b", memory[2:])
        model.register_buffer("view", model.weight.detach()[:, 1:])
        with wrap(model, comm, buffers="gossip") as optimizer:
            memory.fill_(float(comm.rank))
            optimizer.gossip()
            with optimizer.averaged():
                inside = model.a.tolist() + model.b.tolist()
            return inside, memory.tolist(), torch.equal(model.view, model.weight[:, 1:])

    with caplog.at_level("INFO", "pushsum_opt"):
        assert ps.testing.run(2, rank) == [([0.5] * 8, [float(r)] * 6, True) for r in range(2)]
    assert "a shares memory with b; b shares memory with a; view shares memory with weight" in caplog.text


def test_a_buffer_may_be_resized_after_the_start_as_observers_resize_theirs():
    def rank(comm):
        model = nn.Linear(4, 1)
        model.register_buffer("scale", torch.ones(1))
        with wrap(model, comm) as optimizer:
            model.scale.resize_(3).fill_(float(comm.rank))
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            with optimizer.averaged():
                return model.scale.tolist()

    assert ps.testing.run(2, rank) == [[0.5] * 3] * 2


@pytest.mark.parametrize("what", ["frozen", "buffer", "dtype", "missing"])
@on_ranks(2)
def test_what_differs_between_ranks_is_named_on_every_rank(comm, what):
    model = nn.Linear(4, 1)
    body = list(model.parameters())
    here = torch.zeros(3 + 2 * (comm.rank == 1))
    if what == "frozen":
        model.extra = nn.Parameter(here, requires_grad=False)
    elif what == "buffer":
        model.register_buffer("extra", here)
    elif what == "dtype":
        model.register_buffer("extra", torch.zeros(4, dtype=(torch.float32, torch.float64)[comm.rank]))
    elif comm.rank == 1:
        model.register_buffer("extra", here)
    with pytest.raises(MismatchError, match=r"extra is .* on rank 0, float(32|64)\[\d\] on rank 1"):
        wrap(model, comm, trained=body)


@on_ranks(2)
def test_a_buffer_that_grew_on_one_rank_is_named_before_it_is_averaged(comm):
    model = nn.Linear(4, 1)
    model.register_buffer("extra", torch.ones(3))
    optimizer = wrap(model, comm)
    if comm.rank == 1:
        model.extra = torch.ones(5)
    with pytest.raises(MismatchError, match=r"extra is float32\[3\] on rank 0, float32\[5\] on rank 1"):
        optimizer.averaged().__enter__()


@pytest.mark.parametrize("call", ["average", "broadcast"])
@on_ranks(2)
def test_a_tensor_of_another_shape_is_named_by_collectives(comm, call):
    value = torch.ones(3 + comm.rank)
    with pytest.raises(MismatchError, match=r"on rank 0, .*on rank 1"):
        if call == "average":
            ps.average(value, comm=comm)
        else:
            ps.broadcast_parameters({"w": value}, comm=comm)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Parameter(torch.ones(1).expand(3)), "it is expanded"),
        (lambda: nn.Parameter(torch.ones(3, device="meta")), "is on meta"),
        (lambda: nn.Parameter(EYE.to_sparse()), "expected torch.strided"),
        (lambda: nn.UninitializedParameter(), "belongs to a lazy module"),
        (lambda: nn.Parameter(torch.ones(3, dtype=torch.complex64).conj()), "is a conjugated view"),
    ],
    ids=["expanded", "meta", "sparse", "lazy", "conjugated"],
)
@on_ranks(1)
def test_a_parameter_that_cannot_be_mixed_is_named_with_the_way_out(comm, make, said):
    model = nn.Module()
    model.odd = make()
    with pytest.raises(ConfigurationError, match=rf"parameter odd .*{said}.*To exchange it, "):
        wrap(model, comm)


def test_a_model_wrapped_under_inference_mode_trains_outside_of_it():
    def rank(comm):
        model = nn.Linear(4, 1)
        with torch.inference_mode():
            optimizer = wrap(model, comm)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(2, 4) * (1 + comm.rank)).sum().backward()
            optimizer.step()
        with torch.inference_mode(), optimizer.averaged():
            average = model.weight.clone()
        optimizer.close()
        return average.sum().item()

    first, second = ps.testing.run(2, rank)
    assert first == second


@pytest.mark.parametrize("resume", [False, True])
def test_a_checkpoint_loaded_under_inference_mode_is_trained_further_outside_of_it(resume, tmp_path):
    def rank(comm):
        model = nn.Linear(4, 1)
        with ps.PushSumOptimizer(torch.optim.AdamW(model.parameters()), model, comm=comm) as optimizer:
            with ps.checkpoint.Saver(tmp_path, optimizer, signals=()) as saver:
                for saves in (True, False):
                    optimizer.zero_grad()
                    model(torch.ones(2, 4)).sum().backward()
                    optimizer.step()
                    with torch.inference_mode():
                        if saves:
                            ps.checkpoint.save(tmp_path, optimizer)
                        found = saver.resume() if resume else ps.checkpoint.load(tmp_path, optimizer)
                    assert found is not None
            optimizer.step()
            return optimizer.round

    assert ps.testing.run(2, rank) == [2, 2]
