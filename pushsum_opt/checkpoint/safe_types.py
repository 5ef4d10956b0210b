"""Turns values of common types into tensors and plain values, which torch.load(weights_only=True) reads; and back.

The safe loader of every torch knows tensors, numbers, strings, lists, tuples and dicts. Sets, bytes, numpy scalars and
arrays, dates, paths and similar values are written as a dict with the name of their type. Reading one back calls only
the constructors that are listed here. Of the classes of a user's program only enums, flags and named tuples are known;
they are found by name, and only where their module is loaded.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import pathlib
import sys
import types
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError
from .nesting import DEEPEST

__all__ = ["decode", "encode"]

TYPE = "pushsum_opt type"
PLAIN = (type(None), bool, int, float, str, torch.Tensor, torch.nn.Parameter)
FACTORIES: dict[str, Any] = {one.__name__: one for one in (int, float, complex, str, bool, list, dict, set, tuple)}
FORMATS = {str(one).removeprefix("torch."): one for one in (
    torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d
)}  # fmt: skip

# Types that are written by their arguments: how to take a value apart, and how to make it again.
_ARGUMENTS: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    complex: (lambda v: [v.real, v.imag], lambda a: complex(*a)),
    bytearray: (bytes, bytearray),
    range: (lambda v: [v.start, v.stop, v.step], lambda a: range(*a)),
    slice: (lambda v: [v.start, v.stop, v.step], lambda a: slice(*a)),
    frozenset: (list, frozenset),
    set: (list, set),  # torch 2.4's loader refuses sets and bytes
    bytes: (lambda v: v.decode("latin-1"), lambda a: a.encode("latin-1")),
    collections.Counter: (dict, collections.Counter),
    collections.deque: (lambda v: [list(v), v.maxlen], lambda a: collections.deque(*a)),
    datetime.datetime: (lambda v: v.isoformat(), datetime.datetime.fromisoformat),
    datetime.date: (lambda v: v.isoformat(), datetime.date.fromisoformat),
    datetime.time: (lambda v: v.isoformat(), datetime.time.fromisoformat),
    datetime.timedelta: (lambda v: [v.days, v.seconds, v.microseconds], lambda a: datetime.timedelta(*a)),
    datetime.timezone: (lambda v: v.utcoffset(None), datetime.timezone),
    decimal.Decimal: (str, decimal.Decimal),
    fractions.Fraction: (str, fractions.Fraction),
    uuid.UUID: (str, uuid.UUID),
    pathlib.PurePosixPath: (str, pathlib.PurePosixPath),
    pathlib.PureWindowsPath: (str, pathlib.PureWindowsPath),
    argparse.Namespace: (lambda v: dict(vars(v)), lambda a: argparse.Namespace(**a)),
    types.SimpleNamespace: (lambda v: dict(vars(v)), lambda a: types.SimpleNamespace(**a)),
    types.MappingProxyType: (dict, types.MappingProxyType),
}
_MAKERS = {kind.__name__: make for kind, (_, make) in _ARGUMENTS.items()}


# ---------------------------------------------------------------------- writing


def encode(value: Any, depth: int = 0) -> Any:
    """Return a value with everything of these types replaced, inside containers too; itself where there is none."""
    if type(value) in PLAIN or isinstance(value, torch.Tensor):
        return value
    if depth > DEEPEST:
        raise CheckpointError(f"what is saved has more than {DEEPEST} containers inside each other, or holds itself")
    kind = type(value)
    if kind in (list, tuple):
        return _same_or(value, kind([encode(one, depth + 1) for one in value]))
    if kind in (dict, collections.OrderedDict):
        return _encode_mapping(value, depth)
    special = _encode_special(value)
    return value if special is None else {key: encode(one, depth + 1) for key, one in special.items()}


def _same_or(old: Any, new: Any) -> Any:
    return old if all(one is other for one, other in zip(old, new, strict=True)) else new


def _encode_mapping(value: Any, depth: int) -> Any:
    keys = [encode(key, depth + 1) for key in value]
    values = [encode(one, depth + 1) for one in value.values()]
    if any(new is not old for new, old in zip(keys, value, strict=True)) or TYPE in value:
        # A dict cannot be a key, so a key that is written as one is refused.
        return {TYPE: "mapping", "ordered": type(value) is not dict, "items": list(zip(keys, values, strict=True))}
    if all(new is old for new, old in zip(values, value.values(), strict=True)):
        return value
    new = type(value)(zip(keys, values, strict=True))
    if type(value) is not dict:
        vars(new).update(vars(value))  # a model's state_dict has the versions of its modules there
    return new


def _encode_special(value: Any) -> dict[str, Any] | None:
    kind = type(value)
    scalar = isinstance(value, np.generic) and kind.__module__.partition(".")[0] == "numpy"
    if scalar or kind in (np.ndarray, np.memmap):  # not a masked array or a matrix, which are more than their elements
        return _encode_numpy(value)
    if isinstance(value, np.dtype):
        return {TYPE: "numpy.dtype", "dtype": np.lib.format.dtype_to_descr(value)}
    if kind is torch.memory_format:
        return {TYPE: "torch.memory_format", "name": str(value).removeprefix("torch.")}
    if isinstance(value, enum.Flag):  # several flags together have no name of their own
        return {TYPE: "flags", "module": kind.__module__, "class": kind.__qualname__, "value": value.value}
    if isinstance(value, enum.Enum):
        return {TYPE: "enum", "module": kind.__module__, "class": kind.__qualname__, "name": value.name}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return {TYPE: "named tuple", "module": kind.__module__, "class": kind.__qualname__, "values": list(value)}
    if kind is collections.defaultdict and (
        value.default_factory is None or value.default_factory in FACTORIES.values()
    ):
        name = None if value.default_factory is None else value.default_factory.__name__
        return {TYPE: "defaultdict", "factory": name, "items": dict(value)}
    if isinstance(value, pathlib.Path):
        return {TYPE: "Path", "path": str(value)}
    if kind in _ARGUMENTS:
        return {TYPE: kind.__name__, "arguments": _ARGUMENTS[kind][0](value)}
    return None


def _encode_numpy(value: Any) -> dict[str, Any] | None:
    array = np.asarray(value)
    if array.dtype.hasobject:
        if array.dtype != object:
            return None
        return {TYPE: "numpy objects", "shape": list(array.shape), "values": list(array.reshape(-1))}
    data = torch.from_numpy(np.frombuffer(bytearray(array.tobytes()), np.uint8)) if array.size else torch.empty(0)
    dtype = np.lib.format.dtype_to_descr(array.dtype)
    return {
        TYPE: "numpy",
        "scalar": isinstance(value, np.generic),
        "dtype": dtype,
        "shape": list(array.shape),
        "data": data,
    }


# ---------------------------------------------------------------------- reading


def decode(value: Any) -> Any:
    """Return the opposite of :func:`encode`.

    Raises:
        CheckpointError: it names a type that is not known, or a class that the program does not have.
    """
    kind = type(value)
    if kind in (list, tuple):
        return _same_or(value, kind([decode(one) for one in value]))
    if kind is dict and TYPE in value:
        return _make({key: one if key == TYPE else decode(one) for key, one in value.items()})
    if kind in (dict, collections.OrderedDict):
        for key, one in value.items():
            new = decode(one)
            if new is not one:
                value[key] = new
    return value


def _make(found: dict[str, Any]) -> Any:
    name = found[TYPE]
    if name == "numpy":
        dtype = np.lib.format.descr_to_dtype(found["dtype"])
        raw = found["data"].numpy().tobytes() if found["data"].numel() else b""
        array = np.frombuffer(bytearray(raw), dtype).reshape(found["shape"])
        return array[()] if found["scalar"] else array
    if name == "numpy objects":
        array = np.empty(len(found["values"]), object)
        array[:] = found["values"]
        return array.reshape(found["shape"])
    if name == "numpy.dtype":
        return np.lib.format.descr_to_dtype(found["dtype"])
    if name == "torch.memory_format":
        return FORMATS[found["name"]]
    if name == "mapping":
        kind = collections.OrderedDict if found["ordered"] else dict
        return kind((key, one) for key, one in found["items"])
    if name == "defaultdict":
        return collections.defaultdict(FACTORIES.get(found["factory"]), found["items"])
    if name == "Path":
        return pathlib.Path(found["path"])
    if name == "flags":
        return _class(found, enum.Flag)(found["value"])
    if name == "enum":
        return _class(found, enum.Enum)[found["name"]]
    if name == "named tuple":
        return tuple.__new__(_class(found, tuple), found["values"])
    if name in _MAKERS:
        return _MAKERS[name](found["arguments"])
    raise CheckpointError(f"expected a type that this pushsum_opt can make, got {name!r}: a newer one wrote the file")


def _class(found: dict[str, Any], base: type) -> Any:
    """Find a class of the running program by name. No module is imported: that would run code."""
    held: Any = sys.modules.get(found["module"])
    for part in found["class"].split("."):
        held = getattr(held, part, None)
    if not (isinstance(held, type) and issubclass(held, base)):
        raise CheckpointError(
            f"the file holds a {found['module']}.{found['class']}, and the program has no such class now. Import its "
            "module before loading"
        )
    return held
