"""A directory of checkpoints: their names, which of them are complete, and what their manifests say."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..push_sum.saving import refuse_newer_format
from .files import digest, load_tensors, sync_directory, write_whole

__all__ = ["FORMAT", "MANIFEST", "Manifest", "begin", "commit", "discard", "file_of", "locate", "prune", "read_part"]

FORMAT = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"save-(\d{6,})-round-(\d+)")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself. It is written last: with it, the checkpoint is complete."""

    run: str
    """Names the run that saved it."""

    size: int
    """Ranks of that run."""

    rounds: list[int]
    """Rounds that each rank had completed; all equal, unless asynchronous."""

    places: list[list[int]]
    """(participant in the gossip, lane, lanes) of each rank."""

    files: dict[str, dict[str, Any]]
    """``bytes`` and ``sha256`` by file name."""

    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """The library versions that it was saved with."""

    format: int = FORMAT

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        return json.dumps({**fields, "checksum": _checksum(fields)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            CheckpointError: it is cut off, changed, of a newer format, or not a manifest at all.
        """
        try:
            fields = json.loads(text)
            checksum = fields.pop("checksum")
            newer = fields["format"] > FORMAT
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: expected the manifest of a checkpoint, got {len(text)} characters that are not "
                f"({type(error).__name__}: {error}). {_FALL_BACK}"
            ) from error
        if newer:
            raise CheckpointError(
                f"{path}: expected format {FORMAT} or older, got {fields['format']}: a newer pushsum_opt wrote it. "
                "Update pushsum_opt"
            )
        if checksum != _checksum(fields):
            raise CheckpointError(
                f"{path}: expected checksum {_checksum(fields)[:12]}..., got {str(checksum)[:12]}...: the manifest was "
                f"changed after it was written. {_FALL_BACK}"
            )
        return cls(**fields)


_FALL_BACK = "Restore it from a copy, or load the checkpoint before it by the path of its directory"


def _checksum(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def file_of(rank: int) -> str:
    """Return the name of a rank's file."""
    return f"rank-{rank:05d}.pt"


# ---------------------------------------------------------------------- writing


def begin(directory: Path, round: int) -> Path:
    """Make the directory of a new checkpoint, numbered after all that are there."""
    directory.mkdir(parents=True, exist_ok=True)
    number = 1 + max((_number(path) for path in _all(directory)), default=0)
    path = directory / f"save-{number:06d}-round-{round}"
    path.mkdir()
    sync_directory(directory)
    return path


def commit(path: Path, manifest: Manifest) -> None:
    """Write the manifest, once every file that it names is there.

    Raises:
        CheckpointError: a file is missing, or shorter or longer than the rank that wrote it says.
    """
    for name, entry in manifest.files.items():
        _check_size(path / name, entry)
    text = manifest.to_json().encode()
    write_whole(path / MANIFEST, lambda file: file.write(text))
    sync_directory(path.parent)


def discard(path: Path) -> None:
    """Remove a checkpoint. The manifest goes first: without it, what is left is not taken for a checkpoint."""
    with contextlib.suppress(FileNotFoundError):
        (path / MANIFEST).unlink()
    shutil.rmtree(path, ignore_errors=True)


def prune(directory: Path, keep: int | None, newest: Path) -> None:
    """Remove all but the last ``keep`` complete checkpoints, and incomplete ones that are older than the newest."""
    complete = [path for path in _all(directory) if _is_complete(path)]
    stale = [path for path in _all(directory) if not _is_complete(path) and _number(path) < _number(newest)]
    for path in [*stale, *(complete[:-keep] if keep else [])]:
        discard(path)


# ---------------------------------------------------------------------- reading


def locate(directory: Path) -> tuple[Path, Manifest] | None:
    """Find a checkpoint: the directory itself if it is one, else the newest complete one in it; None if there is none.

    Raises:
        CheckpointError: its manifest cannot be used.
    """
    found = [directory] if _is_complete(directory) else [path for path in _all(directory) if _is_complete(path)]
    if not found:
        return None
    path = found[-1] / MANIFEST
    return found[-1], Manifest.from_json(path.read_text(encoding="utf-8", errors="replace"), path)


def missing(directory: Path) -> CheckpointError:
    """Return the error that says that there is no checkpoint, and what there is instead."""
    if not directory.exists():
        return CheckpointError(f"{directory}: expected a directory of checkpoints, got nothing. Check the path")
    incomplete = [path.name for path in _all(directory)]
    got = f"only {', '.join(incomplete[:3])} without {MANIFEST}: saving was interrupted" if incomplete else "none"
    return CheckpointError(
        f"{directory}: expected a checkpoint (a directory save-... with {MANIFEST}), got {got}. Check the path, or "
        "start the run anew"
    )


def read_part(path: Path, manifest: Manifest, rank: int) -> dict[str, Any]:
    """Read one rank's file, and make sure that it is the one that the manifest names.

    Raises:
        CheckpointError: it is missing, cut off, changed, another file, or of a later release.
    """
    name = file_of(rank)
    file, entry = path / name, manifest.files.get(name)
    if entry is None:
        raise CheckpointError(f"{path / MANIFEST}: expected an entry for {name} of {manifest.size} ranks. {_FALL_BACK}")
    _check_size(file, entry)
    found = digest(file)
    if found != entry["sha256"]:
        raise CheckpointError(
            f"{file}: expected sha256 {entry['sha256'][:12]}..., got {found[:12]}...{_identity(file)}: it was changed, "
            f"damaged, or belongs to another checkpoint. {_FALL_BACK}"
        )
    part: dict[str, Any] = load_tensors(file)
    expected = {"format": manifest.format, "run": manifest.run, "rank": rank, "size": manifest.size}
    got = {key: part.get(key) for key in expected}
    if got != expected:
        raise CheckpointError(f"{file}: expected {expected}, got {got}: files of several runs were mixed. {_FALL_BACK}")
    refuse_newer_format(str(file), part["optimizer"].get("push_sum"), otherwise="")
    return part


def _check_size(file: Path, entry: Mapping[str, Any]) -> None:
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        raise CheckpointError(
            f"{file}: expected {entry['bytes']} bytes, got no file. Was it deleted, or written to another host's own "
            f"disk? All ranks must see the same directory. {_FALL_BACK}"
        ) from None
    if size != entry["bytes"]:
        raise CheckpointError(
            f"{file}: expected {entry['bytes']} bytes, got {size}{_identity(file)}: it was cut off or replaced. "
            f"{_FALL_BACK}"
        )


def _identity(file: Path) -> str:
    """Say whose file it is, if it is one of ours."""
    try:
        part = load_tensors(file)
        return f" (of run {part['run']}, rank {part['rank']} of {part['size']}, round {part['round']})"
    except Exception:
        return ""


def _all(directory: Path) -> list[Path]:
    """List checkpoints, complete or not, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if _NAME.fullmatch(path.name)), key=_number)


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def _is_complete(path: Path) -> bool:
    return (path / MANIFEST).is_file()
