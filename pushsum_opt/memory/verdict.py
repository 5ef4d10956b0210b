"""The outcome of merging a chunk: on the host it is known at once, and an accelerator reports it later.

An accelerator reports it by a flag. The check of what has come raises the flag; the merge, which follows on the same
stream, then does nothing. So the processor need not wait: it reads the flag when that work is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..buffers import Event
    from .device import Device, Stream

__all__ = ["Flag", "Flags", "LateVerdict", "Outcome", "Verdict"]

PAGE = 1024  # flags that are made at a time: more than chunks are ever checked and not yet asked about
WORD = 4  # bytes
TOLD = 5  # words of a flag


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one chunk that has come."""

    finite: bool
    """It held no inf and no nan, and was merged; otherwise nothing was."""

    healed: bool = False
    """It was merged, and elements of ours, which were not finite, were replaced by it."""

    missed: int = 0
    """Blocks of it that came out wrong: there ours were kept. See :mod:`.coded`."""

    asked: int = 0
    """For how many rounds its sender wants whole messages, where nobody has taken note of it yet."""

    far: bool = False
    """Whole messages are wanted: elements of ours are inf or nan, or a block that came out wrong was far away."""


class Verdict:
    """An outcome that is known."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def ready(self) -> bool:
        """Tell whether the outcome is known; never waits."""
        return True

    def outcome(self) -> Outcome:
        """Return it; wait for it where it is not known yet."""
        return self._outcome


class LateVerdict(Verdict):
    """An outcome that an accelerator finds.

    Args:
        flag: what its work writes to.
        done: happens when that work is done.
    """

    def __init__(self, flags: Flags, flag: Flag, done: Event) -> None:
        self._flags = flags
        self._flag = flag
        self._done = done
        self._known: Outcome | None = None

    def ready(self) -> bool:
        return self._known is not None or self._done.query()

    def outcome(self) -> Outcome:
        if self._known is None:
            self._done.synchronize()
            bad, healed, missed, asked, far = self._flag.heard.tolist()
            self._flags.put_back(self._flag)
            self._known = Outcome(not bad, bool(healed), missed, asked, bool(far))
        return self._known


@dataclass(slots=True, eq=False)
class Flag:
    """Where the passes over one chunk say what they found."""

    raised: Tensor
    """On the device, int32, shape (1,): not 0 where what came is not finite. Merges look at it."""

    told: Tensor
    """The same for the processor, pinned, int32, shape (TOLD,): what came is not finite; elements of ours were healed.
    And of a chunk in eight bits: blocks that came out wrong; ``asked``; ``far``."""

    heard: Any
    """``told`` as a numpy array."""

    lowered: bool = False


class Flags:
    """Flags of one device, used over and over."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._free: list[Flag] = []
        self._zero: Any = None

    def reserve(self) -> None:
        """Make the first ones."""
        if not self._free:
            self._make()

    def take(self, stream: Stream) -> Flag:
        """Return one that is down for work on a stream."""
        self.reserve()
        flag = self._free.pop()
        if not flag.lowered:
            self._device.copy(flag.raised, self._zero, stream)
            flag.lowered = True
        return flag

    def put_back(self, flag: Flag) -> None:
        """Take one back that nothing looks at any more."""
        flag.lowered = not flag.heard[0]
        flag.heard[:] = 0
        self._free.append(flag)

    def _make(self) -> None:
        import torch

        what = "the flags of messages that are not finite"
        raised = self._device.allocate(PAGE * WORD, what).view(torch.int32)
        host = self._device.allocate_pinned((TOLD * PAGE + 1) * WORD, what).view(torch.int32)
        host.zero_()
        self._zero, told = host[:1], host[1:].view(PAGE, TOLD)
        heard = told.numpy()
        self._free += [Flag(raised[i : i + 1], told[i], heard[i]) for i in range(PAGE)]
