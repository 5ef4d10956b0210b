"""Whether there is a device to test on, and why not."""

from __future__ import annotations

import importlib.util

import pytest
import torch

__all__ = ["WHY_NOT", "needs_cuda"]


def _why_not() -> str:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if importlib.util.find_spec("cupy") is None:
        return "cupy is not installed"
    import cupy

    return "" if cupy.cuda.is_available() else "cupy sees no CUDA device"


WHY_NOT = _why_not()


needs_cuda = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=f"needs a GPU: {WHY_NOT}")]
"""Marks of a test, or of one of its parameters, that needs a CUDA device."""
