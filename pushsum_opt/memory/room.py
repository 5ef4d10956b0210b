"""The errors about missing memory: how much was asked for, and what holds the rest."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OutOfMemoryError

__all__ = ["HostRoom", "Room", "host_room", "no_pinned_room", "no_room", "size"]


@dataclass(frozen=True, slots=True)
class Room:
    """The memory of a device, in bytes."""

    free: int
    total: int
    pool: int
    """What this process's torch holds of it."""
    in_tensors: int
    """What of that is in use."""


@dataclass(frozen=True, slots=True)
class HostRoom:
    """The memory of a host, in bytes; None where the system does not say."""

    available: int | None
    total: int | None


def no_room(who: str, device: str, nbytes: int, what: str, room: Room) -> OutOfMemoryError:
    """Return the error for device memory."""
    others = max(0, room.total - room.free - room.pool)
    return OutOfMemoryError(
        f"{who}: {device} has no room for {what}: asked {size(nbytes)}, free {size(room.free)} of {size(room.total)}. "
        f"torch's pool holds {size(room.pool)} ({size(room.in_tensors)} in tensors; what it could, it gave back), and "
        f"{size(others)} belong to buffers made before, to libraries and to other processes. Messages need memory "
        "beside the pool. Start fewer ranks on this GPU, take a smaller model, wire_dtype='bfloat16' (half the bytes "
        "of float32) or a smaller staleness; or set PUSHSUM_CUDA_AWARE=0: most buffers are host memory then"
    )


def no_pinned_room(who: str, nbytes: int, what: str, room: HostRoom) -> OutOfMemoryError:
    """Return the error for pinned host memory."""
    return OutOfMemoryError(
        f"{who}: the host has no pinned memory for {what}: asked {size(nbytes)}, available {size(room.available)} of "
        f"{size(room.total)}. Pinned memory cannot be swapped out, and a limit of the job or container may leave less "
        "than that. Start fewer ranks on this host, ask for more memory, or take wire_dtype='bfloat16' (half the bytes "
        "of float32) or a smaller staleness; with an MPI that takes GPU memory these buffers are on the GPU"
    )


def host_room() -> HostRoom:
    """Ask the system (Linux) for the memory of this host."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
    except OSError:
        return HostRoom(None, None)
    kib = {name: int(text.split()[0]) for name, text in lines.items() if text.split()}
    available, total = kib.get("MemAvailable"), kib.get("MemTotal")
    return HostRoom(None if available is None else available << 10, None if total is None else total << 10)


def size(nbytes: int | None) -> str:
    """Return a number of bytes as text.

    >>> size(300), size(3 << 20), size(80 << 30), size(None)
    ('300 bytes', '3.0 MiB', '80.0 GiB', 'unknown')
    """
    if nbytes is None:
        return "unknown"
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >> shift:
            return f"{nbytes / (1 << shift):.1f} {unit}"
    return f"{nbytes} bytes"
