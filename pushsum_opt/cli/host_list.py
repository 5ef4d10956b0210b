"""The hosts that mpirun's options name: how many ranks each can take, and the options without those that are lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HOSTS", "HOST_FILES", "RANKS", "Hosts", "hosts_of"]

HOSTS = ("-host", "--host", "-H", "--H", "-hosts", "--hosts")
HOST_FILES = ("-hostfile", "--hostfile", "-machinefile", "--machinefile", "-f", "--default-hostfile")
RANKS = ("-np", "--np", "-n", "--n")
_PER_HOST = ("-N", "--N", "-npernode", "--npernode", "-ppn", "--ppn", "-perhost", "--perhost")
_SLOTS = re.compile(r"^([^\s:#=]+)(?::(\d+))?(?:.*?\bslots\s*=\s*(\d+))?")


@dataclass(frozen=True)
class Hosts:
    """Hosts by name, in their order, and where the options name them."""

    slots: dict[str, int]
    """How many ranks each can take, as the options say; 0: they do not say it."""

    option: str
    per_host: int | None
    """How many ranks each host gets, where an option says that."""

    ranks: int | None
    """Of the whole job."""

    def capacity(self, names: Collection[str]) -> int | None:
        """Return how many ranks some of the hosts can take: never more than the job had; None: nothing says it.

        >>> Hosts({"a": 4, "b": 4}, "--host", None, 8).capacity(["a"])
        4
        >>> Hosts({"a": 2, "b": 2, "c": 2}, "--host", None, 4).capacity(["a", "c"])  # one host was to spare
        4
        """
        if self.ranks is None:
            return None
        known = all(self.slots.values())
        each = {name: (self.slots[name] if known else 1) for name in self.slots}
        total = sum(each.values())
        # A host with too few slots, or with none named, took its part of all ranks.
        able = {name: self.per_host or max(s if known else 0, -(-self.ranks * s // total)) for name, s in each.items()}
        return min(self.ranks, sum(able[name] for name in names))

    def keep(self, options: Sequence[str], names: Collection[str], folder: Path) -> list[str]:
        """Return the options for some of the hosts and as many ranks as these can take.

        Args:
            folder: where a shorter host file is written.
        """
        if len(names) == len(self.slots):
            return list(options)
        kept = _replaced(options, (self.option,), lambda value: self._shorter(value, names, folder))
        ranks = self.capacity(names)
        return kept if ranks is None else _replaced(kept, RANKS, lambda _: str(ranks))

    def _shorter(self, value: str, names: Collection[str], folder: Path) -> str:
        if self.option in HOSTS:
            return ",".join(one for one in value.split(",") if one.split(":")[0] in names)
        lines = Path(value).read_text(encoding="utf-8").splitlines(keepends=True)
        file = folder / "hostfile"
        file.write_text("".join(line for line in lines if _name(line) in names), encoding="utf-8")
        return str(file)


def hosts_of(options: Sequence[str]) -> Hosts | None:
    """Return the hosts that the options name; None where they name none: this machine, or a batch system's."""
    given = _values(options)
    option = next((name for name in (*HOSTS, *HOST_FILES) if name in given), None)
    if option is None:
        return None
    slots: dict[str, int] = {}
    if option in HOSTS:
        for one in given[option].split(","):
            name, _, count = one.partition(":")
            if not name or name.startswith("+"):  # Open MPI's "+e2": any two hosts of an allocation
                return None
            slots[name] = slots.get(name, 0) + (int(count) if count.isdecimal() else 1)
    else:
        try:
            lines = Path(given[option]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):  # mpirun's own error says more
            return None
        for line in lines:
            found = _SLOTS.match(line.strip())
            if found:
                slots[found[1]] = slots.get(found[1], 0) + int(found[2] or found[3] or 0)
    ranks = next((given[name] for name in RANKS if name in given), "")
    return Hosts(slots, option, _per_host(given), int(ranks) if ranks.isdecimal() else None) if slots else None


def _per_host(given: dict[str, str]) -> int | None:
    found = next((given[name] for name in _PER_HOST if name in given), "")
    mapped = re.match(r"ppr:(\d+):node", next((given[name] for name in ("--map-by", "-map-by") if name in given), ""))
    text = mapped[1] if mapped else found
    return int(text) if text.isdecimal() else None


def _name(line: str) -> str | None:
    found = _SLOTS.match(line.strip())
    return found[1] if found else None


def _values(options: Sequence[str]) -> dict[str, str]:
    """Return each word with the one behind it, or behind its equals sign; the last of equal words counts."""
    found = {}
    for word, following in zip(options, [*options, ""][1:], strict=True):
        name, equals, text = word.partition("=")
        found[name] = text if equals else following
    return found


def _replaced(options: Sequence[str], names: Collection[str], change: Callable[[str], str]) -> list[str]:
    found = list(options)
    for index, word in enumerate(options):
        name, equals, text = word.partition("=")
        if name not in names:
            continue
        if equals:
            found[index] = f"{name}={change(text)}"
        elif index + 1 < len(found):
            found[index + 1] = change(options[index + 1])
    return found
