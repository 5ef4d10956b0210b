"""Where a run goes on: from the newest round of which enough is left, on disk or in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from ..log import log
from ..push_sum import PushSum
from .directory import Manifest
from .in_memory import InMemory
from .loading import CLOSE, find, load_from
from .loading_memory import Left, load_left, look, refuse_too_little
from .part import Companions
from .together import raise_alike

__all__ = ["Begun", "begin_again"]


@dataclass(frozen=True)
class Begun:
    """What a run went on from."""

    exact: bool
    """Whether it goes on as if it had never stopped."""

    extra: Any
    size: int
    """The ranks of the run that saved it."""

    used: tuple[str, int] | None = None
    """(run, generation) of a checkpoint in memory."""


def begin_again(
    push_sum: PushSum,
    directory: Path,
    optimizer: Any,
    companions: Companions,
    memory: InMemory | None,
    enough: float,
) -> Begun | None:
    """Collective. Load the newest round of which enough is left; None where there is nothing.

    Args:
        enough: how much of all data weight the parts in memory must stand for. On disk a checkpoint is whole.

    Raises:
        CheckpointError: what there is cannot be used, or is too little; the same on every rank.
    """
    if isinstance(enough, bool) or not isinstance(enough, int | float) or not 0 < enough <= 1:
        raise ConfigurationError(f"enough={enough!r}: expected a fraction above 0 and at most 1")
    found = find(push_sum, directory)
    left = None if memory is None else look(push_sum, memory.folder)
    if left is not None and _use_memory(push_sum, found, left, enough):
        exact, extra = load_left(push_sum, left, optimizer, companions)
        return Begun(exact, extra, left.chosen.size, left.chosen.name)
    if found is None:
        return None
    resumed = load_from(found, optimizer, companions)
    return Begun(resumed.exact, resumed.extra, found[1].size)


def _use_memory(push_sum: PushSum, found: tuple[Path, Manifest] | None, left: Left, enough: float) -> bool:
    """Tell whether memory has a newer round than the disk, and enough of it."""
    chosen = left.chosen
    if found is not None and max(found[1].rounds) >= chosen.round:
        return False
    if chosen.share >= enough * (1 - CLOSE):
        return True
    if found is None:
        raise_alike(push_sum, "loading", {0: str(refuse_too_little(chosen, enough))})
    if push_sum.member.place.speaks:
        log.warning(
            "of %s: %.4g of the data weight is left, less than enough=%g, so the run goes on from the disk",
            chosen.described(),
            chosen.share,
            enough,
        )
    return False
