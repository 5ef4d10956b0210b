"""What a spare gets from a rank that trains: the whole state of that rank, and where its loop is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import CheckpointError
from ..interrupts import held_back
from .apart import pack_tree, unpack_tree
from .part import Companions, capture, check_fits, restore

__all__ = ["Position", "load_position", "pack_position"]


@dataclass(frozen=True)
class Position:
    """Where a loop with a :class:`~pushsum_opt.checkpoint.Saver` is; the same on all ranks in step."""

    steps: int = 0
    """How many this Saver has seen."""

    saved_round: int = 0
    """The round that was saved last."""

    extra: Mapping[str, Any] = field(default_factory=dict)
    """What ``after_step`` was called with, and the places of loops over batches."""


def pack_position(optimizer: Any, companions: Companions, here: Position) -> bytes:
    """Return the state of this rank. Local; nothing is in flight."""
    return pack_tree({"part": capture(optimizer, companions, None), "position": asdict(here)})


def load_position(packed: bytes, optimizer: Any, companions: Companions) -> Position:
    """Take over what another rank has packed, but for the random generators.

    Raises:
        CheckpointError: it does not fit this rank's model, optimizer or companions. Nothing is changed then.
    """
    tree = unpack_tree(packed)
    part = tree["part"]
    check_fits(part, optimizer, companions, exact=False)
    layout = optimizer.push_sum.memory.layout_digest.hex()
    if part["layout"] != layout:
        raise CheckpointError(
            f"expected layout {part['layout']} of what is exchanged, as on the ranks that train, got {layout}: is the "
            "model converted (memory_format, dtype) only after saver.resume()? Convert it before"
        )
    part["optimizer"]["push_sum"]["residuals"] = {}  # they stay with their rank
    with held_back():
        restore(part, optimizer, companions, random=False)
    return Position(**tree["position"])
