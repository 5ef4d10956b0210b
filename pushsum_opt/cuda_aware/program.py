"""What the two processes of a trial do: send buffers to each other, check what came, take the time.

    mpirun -np 2 python -m pushsum_opt.cuda_aware.program RESULT [--on-host]

Rank 0 writes what was found to the file RESULT, as JSON, after every stage: what was found before a crash is kept.
``--on-host`` takes host memory for both ways, to try the trial itself out.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (1 << 10, (1 << 18) + 4, (1 << 25) + 8)  # bytes: sent at once, in pieces, and by the receiver reading
REPEATS = 6
POISON = 0xFF


class OnHost:
    """Host memory that stands in for a device's."""

    visible = 1

    def __init__(self, rank: int) -> None:
        self.other = rank

    def buffer(self, nbytes: int) -> Any:
        return np.empty(nbytes, np.uint8)

    pinned = buffer

    def wire(self, buffer: Any) -> Any:
        return buffer

    def copy(self, destination: Any, source: Any) -> None:
        destination[:] = source

    def hardware(self, nbytes: int) -> Callable[[], None]:
        source, destination = self.buffer(nbytes), self.buffer(nbytes)
        source[:] = 1
        return lambda: self.copy(destination, source)


class OnGpu:
    """Memory of this rank's device, from cudaMalloc as the slabs are, and pinned host memory."""

    def __init__(self, rank: int) -> None:
        import cupy

        self._cupy = cupy
        self._runtime = cupy.cuda.runtime
        self.visible = self._runtime.getDeviceCount()
        self._own = rank % self.visible
        self.other = (1 - rank) % self.visible
        self._runtime.setDevice(self._own)
        self._runtime.free(0)

    def buffer(self, nbytes: int, device: int | None = None) -> Any:
        with self._cupy.cuda.Device(self._own if device is None else device):
            return _Gpu(self._cupy.cuda.Memory(nbytes), nbytes)

    def pinned(self, nbytes: int) -> Any:
        memory = self._cupy.cuda.PinnedMemory(nbytes)
        return np.frombuffer(self._cupy.cuda.PinnedMemoryPointer(memory, 0), np.uint8, nbytes)

    def wire(self, buffer: Any) -> Any:
        from mpi4py import MPI

        return MPI.buffer.fromaddress(buffer.address, buffer.nbytes) if isinstance(buffer, _Gpu) else buffer

    def copy(self, destination: Any, source: Any) -> None:
        kind = self._runtime.memcpyDefault
        self._runtime.memcpyAsync(_address(destination), _address(source), source.nbytes, kind, 0)
        self._runtime.streamSynchronize(0)

    def hardware(self, nbytes: int) -> Callable[[], None]:
        """Copy from this rank's device to the other rank's, or within it where both have the same."""
        if self.other != self._own and self._runtime.deviceCanAccessPeer(self._own, self.other):
            self._runtime.deviceEnablePeerAccess(self.other)
        source, destination = self.buffer(nbytes), self.buffer(nbytes, self.other)
        return lambda: self.copy(destination, source)


class _Gpu:
    def __init__(self, memory: Any, nbytes: int) -> None:
        self.memory = memory
        self.address = int(memory.ptr)
        self.nbytes = nbytes


def _address(buffer: Any) -> int:
    return buffer.address if isinstance(buffer, _Gpu) else int(buffer.ctypes.data)


def pattern(rank: int, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the bytes that a rank sends; the other one knows them."""
    return ((np.arange(nbytes, dtype=np.uint32) * 7 + 3 * rank) % 251).astype(np.uint8)


def exchange(comm: Any, sent: Any, received: Any) -> None:
    """Send to the other rank and receive from it, non-blocking and polled as the library does."""
    from mpi4py import MPI

    other = comm.size - 1 - comm.rank
    requests = [comm.Irecv([received, MPI.BYTE], other), comm.Isend([sent, MPI.BYTE], other)]
    while not MPI.Request.Testall(requests):
        pass


def arrives_whole(comm: Any, place: Any, make: Callable[[int], Any], nbytes: int) -> bool:
    """Exchange a pattern and look at every byte of what comes; the same answer on both ranks."""
    expected = pattern(comm.size - 1 - comm.rank, nbytes)
    sent, received = make(nbytes), make(nbytes)
    place.copy(sent, pattern(comm.rank, nbytes))
    place.copy(received, np.full(nbytes, POISON, np.uint8))
    exchange(comm, place.wire(sent), place.wire(received))
    came = np.empty(nbytes, np.uint8)
    place.copy(came, received)
    return bool(comm.allreduce(int(np.array_equal(came, expected)), _min()))


def rate(comm: Any, nbytes: int, action: Callable[[], None]) -> float:
    """Return the best of some runs of the slower rank, in GB/s."""
    best = float("inf")
    for _ in range(REPEATS):
        comm.Barrier()
        begin = time.perf_counter()
        action()
        best = min(best, comm.allreduce(time.perf_counter() - begin, _max()))
    return nbytes / best / 1e9


def _min() -> Any:
    from mpi4py import MPI

    return MPI.MIN


def _max() -> Any:
    from mpi4py import MPI

    return MPI.MAX


def main(result: Path, on_host: bool) -> None:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    place: Any = OnHost(comm.rank) if on_host else OnGpu(comm.rank)
    found: dict[str, Any] = {"ranks": comm.size, "visible": place.visible, "sizes": list(SIZES)}
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if gpus:  # else they cannot be counted
        found["on_host"] = gpus

    def note(**facts: Any) -> None:
        found.update(facts)
        if comm.rank == 0:
            result.write_text(json.dumps(found))

    largest = SIZES[-1]
    note(stage="copies between GPU and host")
    there, here, back = place.buffer(largest), place.pinned(largest), place.pinned(largest)
    here[:] = 1
    note(copy_in=rate(comm, largest, lambda: place.copy(there, here)))
    note(copy_out=rate(comm, largest, lambda: place.copy(back, there)))
    note(hardware=rate(comm, largest, place.hardware(largest)))
    note(stage="messages from host memory")
    note(host_right=all(arrives_whole(comm, place, place.pinned, nbytes) for nbytes in SIZES))
    note(host=rate(comm, largest, lambda: exchange(comm, here, back)))
    note(stage="messages from GPU memory")
    for nbytes in SIZES:
        note(size=nbytes)
        note(right=arrives_whole(comm, place, place.buffer, nbytes))
        if not found["right"]:
            break
    if found["right"]:
        arrived = place.buffer(largest)
        note(direct=rate(comm, largest, lambda: exchange(comm, place.wire(there), place.wire(arrived))))
    note(stage="done")


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--on-host" in sys.argv[2:])
