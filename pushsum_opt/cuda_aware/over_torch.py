"""Which way GPU memory takes where torch.distributed carries messages: NCCL moves it, or it goes through the host.

Nothing is tried: NCCL is used where ``PUSHSUM_NCCL=1`` says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..errors import ConfigurationError
from .trial import TrialVerdict

__all__ = ["judge_nccl"]

FEW_CONNECTIONS = ("1", "2", "3")
"""Queues of a GPU for all streams: torch's own stream, ours for copies and both ways of NCCL want one each."""


def judge_nccl(wanted: bool, environ: Mapping[str, str] = os.environ) -> TrialVerdict:
    """Choose the way.

    Args:
        wanted: what ``PUSHSUM_NCCL`` says.

    Raises:
        ConfigurationError: NCCL is wanted, and cannot be loaded.
    """
    if not wanted:
        return TrialVerdict(False, "goes through the host and gloo; PUSHSUM_NCCL=1 gives it to NCCL")
    try:
        from cupy.cuda import nccl
    except (ImportError, OSError) as error:
        raise _cannot_be_loaded(str(error)) from error
    if not nccl.available:
        raise _cannot_be_loaded("it does not find the library")
    advice = ""
    if environ.get("CUDA_DEVICE_MAX_CONNECTIONS") in FEW_CONNECTIONS:
        advice = (
            f"CUDA_DEVICE_MAX_CONNECTIONS={environ['CUDA_DEVICE_MAX_CONNECTIONS']} lets streams wait for each other, "
            "so two ranks that send to each other by NCCL may wait for ever: leave it out, or set it to 8"
        )
    return TrialVerdict(True, f"is given to NCCL {_version(nccl.get_version())} (PUSHSUM_NCCL=1)", advice)


def _cannot_be_loaded(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"PUSHSUM_NCCL=1, and cupy cannot load NCCL ({why}). Install NCCL for the CUDA that cupy has (`pip install "
        "nvidia-nccl-cu12`, or -cu13; PyTorch with CUDA from PyPI brings it), or leave out PUSHSUM_NCCL: GPU memory "
        "goes through the host then"
    )


def _version(number: int) -> str:
    """Return a version of NCCL as text.

    >>> _version(22706)
    '2.27.6'
    """
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
