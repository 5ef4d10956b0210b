"""The state of a wrapped optimizer: the optimizer's own, and this rank's part of the push-sum beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..log import log
from ..push_sum import PushSum
from ..push_sum.saving import refuse_newer_format
from .loading_state import load_state
from .parts import Parts

__all__ = ["KEY", "load_both", "state_of_both"]

KEY = "push_sum"
"""Under which the push-sum's part lies in the optimizer's state_dict."""


def state_of_both(parts: Parts, push_sum: PushSum, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the optimizer's state and, under :data:`KEY`, the push-sum's.

    Args:
        own: what the wrapper adds to the latter.
    """
    inner = parts.optimizer.state_dict()
    if not isinstance(inner, Mapping):
        raise TypeError(
            f"rank {push_sum.rank}: {type(parts.optimizer).__name__}.state_dict() returned a "
            f"{type(inner).__name__}: expected a dict, as torch.optim.Optimizer returns. Let it return one, such "
            "as {'optimizers': ...}, and let load_state_dict() take it"
        )
    moments = {} if parts.corrected is None else {"moments": parts.corrected.ageing.state()}
    return {**inner, KEY: {**push_sum.state(), **own, **moments}}


def load_both(parts: Parts, push_sum: PushSum, inner: dict[str, Any], saved: Mapping[str, Any] | None) -> None:
    """Load the optimizer's state and the push-sum's.

    Args:
        inner: the optimizer's.
        saved: what lay under :data:`KEY`; None: nothing did.
    """
    refuse_newer_format(f"rank {push_sum.rank}", saved)  # before anything has changed
    load_state(parts.optimizer, inner)
    if parts.corrected is not None:
        parts.corrected.ageing.load_state({} if saved is None else saved.get("moments", {}))
    reason = push_sum.load_state(saved)
    if reason is not None:
        log.warning(
            "rank %d: the optimizer's state was loaded, but %s: this rank starts with push weight %.6g. Fine if "
            "every rank loads the same model; to continue a run exactly, use pushsum_opt.checkpoint.save and load",
            push_sum.rank,
            reason,
            push_sum.push_weight,
        )
