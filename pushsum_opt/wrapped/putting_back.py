"""A model that is lent to an evaluation: what the evaluation assigned anew is put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .. import _torch_compat
from ..interrupts import held_back
from ..lending import Place

__all__ = ["put_back"]


@contextmanager
def put_back(model: nn.Module | None, *, buffers: bool) -> Iterator[None]:
    """After the block, names of the model stand for the tensor objects that they stood for before, in their memory.

    Values are not kept here. A name that is new inside stays.

    Args:
        buffers: do it for buffers too, not only for parameters.
    """
    tables = [] if model is None else [(m, _torch_compat.own_tables(m, buffers=buffers)) for m in model.modules()]
    held = {id(t): t for _, own in tables for table in own.tensors for t in table.values() if t is not None}
    places = [Place(tensor) for tensor in held.values()]
    try:
        yield
    finally:
        with held_back():
            for module, own in tables:
                _torch_compat.put_tables(module, own)
            for place in places:
                place.restore()
