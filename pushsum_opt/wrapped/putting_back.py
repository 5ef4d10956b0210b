"""Undoes what an evaluation has assigned to a model that holds an average: afterwards it has its own tensors again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .. import _torch_compat
from ..channel.copying import write
from ..interrupts import held_back
from ..lending import Position
from ..tensor_kinds import is_averageable, plain_parts

__all__ = ["put_back"]


@contextmanager
def put_back(model: nn.Module | None, *, buffers: bool) -> Iterator[None]:
    """After the block, every name in the model refers to the tensor object of before the block, in its memory.

    A name that was added inside stays. This keeps the values of buffers that have no average, such as BatchNorm's
    counter of batches. The values of what is averaged are kept by the code that averages it.

    Args:
        buffers: do it for buffers too, not only for parameters.
    """
    tables = [] if model is None else [(m, _torch_compat.own_tables(m, buffers=buffers)) for m in model.modules()]
    held = {id(t): t for _, own in tables for table in own.tensors for t in table.values() if t is not None}
    positions = [Position(tensor) for tensor in held.values()]
    counters = [b for b in model.buffers() if not is_averageable(b)] if model is not None and buffers else []
    kept = [(part, part.clone()) for counter in counters for part in plain_parts(counter) or ()]
    try:
        yield
    finally:
        with held_back():
            for module, own in tables:
                _torch_compat.put_tables(module, own)
            for position in positions:
                position.restore()
            for part, values in kept:
                write(part, part, values)
