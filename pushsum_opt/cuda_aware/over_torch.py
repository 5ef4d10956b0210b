"""Which way GPU memory takes where torch.distributed carries messages: NCCL moves it, or it goes through the host.

Nothing is tried: NCCL is used where ``PUSHSUM_NCCL=1`` says so.
"""

from __future__ import annotations

from ..errors import ConfigurationError
from .trial import TrialVerdict

__all__ = ["judge_nccl"]


def judge_nccl(wanted: bool) -> TrialVerdict:
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
        raise ConfigurationError(
            f"PUSHSUM_NCCL=1, and cupy cannot load NCCL ({error}). Install NCCL for the CUDA that cupy has "
            "(`pip install nvidia-nccl-cu12`, or -cu13; PyTorch with CUDA from PyPI brings it), or leave out "
            "PUSHSUM_NCCL: GPU memory goes through the host then"
        ) from error
    return TrialVerdict(True, f"is given to NCCL {_version(nccl.get_version())} (PUSHSUM_NCCL=1)")


def _version(number: int) -> str:
    """Return a version of NCCL as text.

    >>> _version(22706)
    '2.27.6'
    """
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
