"""What a torch tensor is, apart from its values: how it is described, where its values lie, whether they can be mixed.

Most tensors are *plain*: their values are numbers in one block of memory. Others have several such blocks (subclasses
that wrap tensors), none at all (meta), or a form of their own (sparse, quantized).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .errors import ConfigurationError

__all__ = [
    "described",
    "host_bytes",
    "is_averageable",
    "is_floating",
    "is_one_block",
    "is_uninitialized",
    "lasting",
    "local_part",
    "plain_parts",
    "refuse_unmixable",
    "shared_memory",
    "why_not_mixed",
]

MIXED = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
# Scales and packed codes: an average of them is not a value of the same kind.
CODES = tuple(getattr(torch, name) for name in ("float8_e8m0fnu", "float4_e2m1fn_x2") if hasattr(torch, name))


def local_part(tensor: Tensor) -> Tensor:
    """Return a tensor, or this rank's shard of a DTensor."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def is_floating(tensor: Tensor) -> bool:
    """Tell whether it holds floating or complex numbers."""
    return tensor.is_floating_point() or tensor.is_complex()


def is_uninitialized(tensor: Tensor) -> bool:
    """Tell whether it belongs to a lazy module that has seen no data: it has no shape yet."""
    return bool(is_lazy(tensor))


def described(tensor: Any) -> str:
    """Return shape, dtype and kind of a tensor: what must be equal where values are exchanged, and not its layout."""
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}"
    dtype = str(tensor.dtype).removeprefix("torch.")
    if is_uninitialized(tensor):
        return f"{dtype}, not initialized"
    held = local_part(tensor)
    if held.is_nested and not _wraps(held):
        return f"{dtype}, nested"
    # The length of a ragged axis is a symbol with a number of this process. So only its parts are described, below.
    text = f"{dtype}[{', '.join(str(n) if isinstance(n, int) else 'ragged' for n in held.shape)}]"
    if held.layout != torch.strided:
        text += f" {str(held.layout).removeprefix('torch.')}"
    if held.is_meta:
        text += " on meta"
    if _wraps(held):
        text += f" of {type(held).__name__}({', '.join(f'{n}: {described(t)}' for n, t in _inner(held).items())})"
    elif _dispatches(held):
        text += f" of {type(held).__name__}"
    return text


def _inner(tensor: Any) -> dict[str, Tensor]:
    """Return the tensors that a subclass holds its values in."""
    return {name: getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]}


def plain_parts(tensor: Tensor) -> list[Tensor] | None:
    """Return the plain tensors in which its values lie, sharing memory with it; None where they lie in another form."""
    if is_uninitialized(tensor):
        return None
    held = local_part(tensor).detach()
    if held.is_meta:
        return []
    if _wraps(held):
        parts: list[Tensor] = []
        for inner in _inner(held).values():
            found = plain_parts(inner)
            if found is None:
                return None
            parts += found
        return parts
    if held.layout != torch.strided or held.is_nested or held.is_quantized or _dispatches(held):
        return None
    return [held.as_subclass(Tensor)]


def shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name the tensors in plain memory that share elements with others, or within themselves; say with which."""
    spans: list[tuple[str, int, int, str]] = []
    found: dict[str, str] = {}
    for name, tensor in {id(t): (n, t) for n, t in reversed(list(tensors.items()))}.values():
        for part in plain_parts(tensor) or ():
            reach = sum((extent - 1) * stride for extent, stride in zip(part.shape, part.stride(), strict=True)) + 1
            if part.numel():
                start = part.data_ptr()
                spans.append((str(part.device), start, start + reach * part.element_size(), name))
            if reach < part.numel():
                found[name] = "has several elements in one place of its memory"
    spans.sort()
    last = spans[0] if spans else ("", 0, 0, "")
    for span in spans[1:]:
        if span[0] == last[0] and span[1] < last[2] and span[3] != last[3]:
            found.setdefault(span[3], f"shares memory with {last[3]}")
            found.setdefault(last[3], f"shares memory with {span[3]}")
        last = max(last, span, key=lambda one: one[:1] + one[2:3])
    return found


class _Block:
    """The memory of a tensor, as numpy is told of it; it keeps the tensor alive."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        count = tensor.numel() * tensor.element_size()
        data = (tensor.data_ptr(), False)
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (count,), "data": data}


def host_bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """Return the bytes of a contiguous tensor on the host, which share its memory.

    ``Tensor.numpy()`` is not used: torch refuses to resize a tensor after that, and observers of quantization-aware
    training resize theirs.
    """
    return np.asarray(_Block(tensor)) if tensor.numel() else np.empty(0, np.uint8)


def is_one_block(tensor: Tensor) -> bool:
    """Tell whether the values lie in one block of memory, so that ``tensor.data = ...`` can replace it."""
    if type(tensor) in (Tensor, Parameter):
        return not (tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta)
    return len(plain_parts(tensor) or ()) == 1


def is_averageable(tensor: Tensor) -> bool:
    """Tell whether the values of a buffer can be averaged: floating or complex numbers in plain memory."""
    floating = is_floating(tensor)
    if not floating or tensor.dtype in CODES or is_uninitialized(tensor):
        return False
    held = local_part(tensor)
    return not (_wraps(held) or held.is_meta) and plain_parts(tensor) is not None


def why_not_mixed(tensor: Tensor) -> tuple[str, str] | None:
    """Return why a floating tensor cannot be mixed in place, and what to do instead; None where it can."""
    kind = type(tensor).__name__
    if is_uninitialized(tensor):
        return "belongs to a lazy module and has no shape yet", "run one batch through the model before it is wrapped"
    held = local_part(tensor)
    if held.is_meta:
        return "is on meta, a device without values", "give it values first: model.to_empty(device=...), then load"
    if held.layout != torch.strided or held.is_nested:
        layout = "nested" if held.is_nested else str(held.layout)
        return f"has layout {layout}: expected torch.strided", "make it dense: nn.Parameter(p.detach().to_dense())"
    if held.is_quantized:
        return "is quantized: an average of codes means nothing", "train in a floating type, quantize afterwards"
    if _wraps(held) or _dispatches(held):
        return (
            f"is a {kind}, a tensor subclass with operations of its own: what an average of it means is not known",
            "train plain tensors and convert afterwards, or freeze it and leave it out of the optimizer",
        )
    if held.is_conj() or held.is_neg():
        view = "conjugated" if held.is_conj() else "negated"
        return f"is a {view} view of other memory", "pass .resolve_conj().resolve_neg().clone()"
    if held.is_inference():
        return (
            "was made under torch.inference_mode(), so that it cannot be changed outside of it",
            "build the model outside, or make nn.Parameter(p.clone()) of it",
        )
    if held.numel() and any(s == 0 and n > 1 for s, n in zip(held.stride(), held.shape, strict=True)):
        shape, strides = list(held.shape), list(held.stride())
        return (
            f"of shape {shape} has strides {strides}: it is expanded, and several of its elements share memory",
            "pass a .contiguous() copy",
        )
    return None


@contextmanager
def lasting() -> Iterator[None]:
    """Inside, tensors are made that can be written to later, also where the caller is in torch.inference_mode()."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():  # leaving the one mode would turn gradients on
        yield


def refuse_unmixable(tensor: Tensor, name: str) -> None:
    """Raise ConfigurationError for a tensor that cannot be exchanged: it names the tensor, and says what to do."""
    reason = why_not_mixed(tensor)
    if reason is not None:
        raise ConfigurationError(f"parameter {name} {reason[0]}. To exchange it, {reason[1]}")
    if tensor.dtype not in MIXED:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in MIXED)
        raise ConfigurationError(
            f"parameter {name} is of dtype {str(tensor.dtype).removeprefix('torch.')}: only floating and complex types "
            f"can be averaged ({known})"
        )


def _wraps(tensor: Any) -> bool:
    """Tell whether a tensor is a subclass that holds its values in other tensors, and can name them."""
    return is_traceable_wrapper_subclass(tensor)


def _dispatches(tensor: Tensor) -> bool:
    """Tell whether operations on a tensor are a subclass's own; its memory may then not hold its values."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
