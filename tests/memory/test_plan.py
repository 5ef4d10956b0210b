"""Chunks cover every element once, whatever the shapes and the size of a chunk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushsum_opt.memory.plan import TensorSpec, WireFormat, is_dense, layout_hash, plan_chunks

ITEMSIZES = {"float32": 4, "float64": 8, "bfloat16": 2}


def row_major(shape):
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


@st.composite
def specs(draw):
    result = []
    for _ in range(draw(st.integers(0, 8))):
        shape = tuple(draw(st.lists(st.integers(0, 40), max_size=3)))
        strides = row_major(shape)
        if draw(st.booleans()):
            strides = tuple(2 * stride for stride in strides)  # gaps: not dense
        dtype = draw(st.sampled_from(list(ITEMSIZES)))
        result.append(TensorSpec(shape, strides, dtype, ITEMSIZES[dtype]))
    return result


def wires(tensors, narrow):
    return [WireFormat("bfloat16", 2) if narrow else WireFormat(spec.dtype, spec.itemsize) for spec in tensors]


@given(specs(), st.integers(64, 5000), st.booleans())
def test_every_element_is_in_exactly_one_piece(tensors, chunk_bytes, narrow):
    covered = [[0] * spec.numel for spec in tensors]
    for chunk in plan_chunks(tensors, wires(tensors, narrow), chunk_bytes):
        for piece in chunk.pieces:
            assert piece.start < piece.stop
            for element in range(piece.start, piece.stop):
                covered[piece.tensor][element] += 1
    assert all(count == 1 for tensor in covered for count in tensor)


@given(specs(), st.integers(64, 5000), st.booleans())
def test_a_chunk_is_homogeneous_bounded_and_counted_right(tensors, chunk_bytes, narrow):
    chunks = plan_chunks(tensors, wires(tensors, narrow), chunk_bytes)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    for chunk in chunks:
        members = [tensors[piece.tensor] for piece in chunk.pieces]
        assert {spec.dtype for spec in members} == {chunk.dtype}
        assert chunk.numel == sum(piece.numel for piece in chunk.pieces)
        assert chunk.nbytes == chunk.numel * chunk.wire.itemsize
        if all(spec.dense for spec in members):
            assert chunk.nbytes <= chunk_bytes
        if not chunk.packed:
            assert len(chunk.pieces) == 1
            assert members[0].dense
            assert not chunk.rounded


@given(specs(), st.integers(64, 5000))
def test_a_tensor_that_is_not_dense_is_never_cut(tensors, chunk_bytes):
    for chunk in plan_chunks(tensors, wires(tensors, False), chunk_bytes):
        for piece in chunk.pieces:
            spec = tensors[piece.tensor]
            assert spec.dense or piece.numel == spec.numel


@pytest.mark.parametrize(
    ("shape", "strides", "dense"),
    [
        ((), (), True),
        ((3,), (1,), True),
        ((3,), (2,), False),
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), True),
        ((2, 1, 3), (3, 99, 1), True),
        ((2, 3), (4, 1), False),
        ((2, 3), (0, 1), False),
        ((0, 3), (7, 7), True),
        ((2, 3, 4, 5), (60, 1, 15, 3), True),  # channels_last
    ],
)
def test_dense_means_one_interval_without_gap_or_overlap(shape, strides, dense):
    assert is_dense(shape, strides) is dense


def test_the_layout_hash_tells_shapes_strides_dtypes_wire_and_chunks_apart():
    def spec(shape=(4, 6), strides=(6, 1), dtype="float32", size=4):
        return TensorSpec(shape, strides, dtype, size)

    wire = WireFormat("float32", 4)
    base = layout_hash([spec()], [wire], 1024)
    others = [
        layout_hash([spec((6, 4), (4, 1))], [wire], 1024),
        layout_hash([spec(strides=(1, 4))], [wire], 1024),
        layout_hash([spec(dtype="float64", size=8)], [WireFormat("float64", 8)], 1024),
        layout_hash([spec()], [WireFormat("bfloat16", 2)], 1024),
        layout_hash([spec()], [wire], 2048),
        layout_hash([spec(), spec()], [wire, wire], 1024),
    ]
    assert len({base, *others}) == 7
    elsewhere = TensorSpec((4, 6), (6, 1), "float32", 4, "cuda:0")
    assert layout_hash([elsewhere], [wire], 1024) == base, "a rank on the host may exchange with one on a GPU"
    pairs = ([spec(), spec()], [spec(), elsewhere], [elsewhere, spec()])
    together, apart, swapped = (layout_hash(pair, [wire, wire], 1024) for pair in pairs)
    assert together != apart == swapped, "which tensors share a device decides which share a chunk"
