"""A CUDA device: slabs from plain cudaMalloc through cupy, order by torch's streams and events, passes as kernels.

Slabs never come from torch's or cupy's pool: a pool hands out parts of larger blocks, and memory of expandable segments
or of cudaMallocAsync cannot be shared with another process, which MPI does between the GPUs of a host.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ..buffers import DeviceBytes
from ..errors import CallOrderError, ConfigurationError
from ..installed import install_command
from . import kernels
from .compiling import fact, not_compiled
from .device import Device
from .modulo import BLOCK
from .plan import blocks_of
from .room import Room
from .verdict import Flag

__all__ = ["CudaDevice"]

try:
    import cupy
except (ImportError, OSError) as error:  # OSError: a library of its own that does not load
    cupy, why_not = None, str(error)

MOST_BLOCKS = 4096  # of the check: more would only wait for each other
FIRST = -1  # the priority of streams that somebody waits for, above the default 0


@dataclass(frozen=True, slots=True)
class CodedTable:
    """Elements in blocks, for the passes in eight bits."""

    tiles: Tensor
    firsts: Tensor
    """int64, shape (blocks + 1,): the number of the first tile of each block."""
    count: int
    """Of the elements."""

    @property
    def blocks(self) -> int:
        """How many blocks of threads: one for each block of elements."""
        return len(self.firsts) - 1


class CudaDevice(Device):
    """One CUDA device.

    Args:
        name: "cuda:0" or so, of this process.
        who: whose it is, for errors.

    Raises:
        ConfigurationError: cupy is missing or does not see the device.
    """

    def __init__(self, name: str, who: str = Device.who) -> None:
        self.name = name
        self.who = who
        self._index = torch.device(name).index
        self._refuse_if_unseen()
        self._functions: dict[str, Any] = {}
        self._streams: dict[int, Any] = {}
        with self._here():
            self.outward, self.inward = (_stream() for _ in range(2))

    def _refuse_if_unseen(self) -> None:
        if torch.version.hip is not None:
            raise ConfigurationError(
                f"parameters are on {self.name}, a GPU of AMD (torch is built for ROCm {torch.version.hip}): buffers "
                "and kernels are for CUDA only. Train with the model on the CPU, or average over ranks by RCCL "
                "(DistributedDataParallel); installing cupy does not help"
            )
        if cupy is None:
            major = str(torch.version.cuda or "13").split(".")[0]
            raise ConfigurationError(
                f"parameters are on {self.name}, and cupy, which makes the buffers there, cannot be imported "
                f"({why_not}). `{install_command(f'cuda{major}')}` installs it; `pushsum doctor` says more"
            )
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            count, why = 0, str(error)
        else:
            why = f"it sees {count}"
        if count <= self._index:
            raise ConfigurationError(
                f"parameters are on {self.name}, which cupy cannot use ({why}). Install the cupy that belongs to the "
                f"CUDA of torch ({torch.version.cuda}): cupy-cuda12x or cupy-cuda13x, and only one of them"
            )

    def use(self) -> None:
        torch.cuda.set_device(self._index)
        self._make_context()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        with self._here():  # not set_device() afterwards: that would make a context on the other device
            self._make_context()
            yield

    def _make_context(self) -> None:
        # torch leaves a thread that has never used CUDA without a context where the device is number 0, and MPI needs
        # one: these two calls make it (pytorch/pytorch#195256).
        cupy.cuda.runtime.setDevice(self._index)
        cupy.cuda.runtime.free(0)

    def let_captures_be(self) -> None:
        _relax_captures(_driver())

    # ------------------------------------------------------------------ memory

    def _malloc(self, nbytes: int) -> Tensor:
        with self._here(), _memory_errors():
            memory = cupy.cuda.Memory(nbytes)  # cudaMalloc; freed with the last view of it
            flat = cupy.ndarray((nbytes,), np.uint8, cupy.cuda.MemoryPointer(memory, 0))
            tensor: Tensor = from_dlpack(flat)
        return tensor

    def _malloc_pinned(self, nbytes: int) -> Tensor:
        with self._here(), _memory_errors():
            memory = cupy.cuda.PinnedMemory(nbytes)  # cudaHostAlloc
        return torch.from_numpy(np.frombuffer(cupy.cuda.PinnedMemoryPointer(memory, 0), np.uint8, nbytes))

    def _empty_pool(self) -> None:
        with self._here():
            torch.cuda.empty_cache()

    def _empty_pinned_pool(self) -> None:
        empty = getattr(getattr(torch, "accelerator", None), "empty_host_cache", None)  # older versions have none
        if empty is not None:
            empty()

    def _room(self) -> Room:
        free, total = torch.cuda.mem_get_info(self._index)
        return Room(free, total, torch.cuda.memory_reserved(self._index), torch.cuda.memory_allocated(self._index))

    def wire(self, memory: Tensor) -> DeviceBytes:
        return DeviceBytes(memory.data_ptr(), memory.nbytes, memory, self)

    # ------------------------------------------------------------------ order

    def current(self) -> torch.cuda.Stream:
        with self._here():
            captured = torch.cuda.is_current_stream_capturing()
        if captured:
            raise CallOrderError(
                "a round was called while a CUDA graph is captured: messages cannot be captured. Capture forward and "
                "backward, and call step() after the replay"
            )
        return torch.cuda.current_stream(self._index)

    def record(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def wait(self, stream: torch.cuda.Stream, event: Any) -> None:
        stream.wait_event(event)

    # ------------------------------------------------------------------ work

    def copy(self, destination: Tensor, source: Tensor, stream: torch.cuda.Stream) -> None:
        runtime = cupy.cuda.runtime
        nbytes = source.nbytes
        with self._here():
            runtime.memcpyAsync(
                destination.data_ptr(), source.data_ptr(), nbytes, runtime.memcpyDefault, stream.cuda_stream
            )

    def by_torch(self, work: Callable[[], None], stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            work()

    def prepare(self, dtypes: Iterable[tuple[str, str]]) -> None:
        names = {name for own, wire in dtypes for name in kernels.needed(own, wire)}
        missing = tuple(sorted(names - self._functions.keys()))
        if missing:
            try:
                with self._here():
                    module = _module(missing)
                    self._functions.update({name: module.get_function(name) for name in missing})
            except Exception as error:
                raise not_compiled(self.who, self.name, missing, self._facts(), error) from error

    def _facts(self) -> dict[str, str]:
        """Return the versions that decide whether a kernel compiles and loads."""
        runtime = cupy.cuda.runtime
        return {
            "GPU": fact(lambda: torch.cuda.get_device_name(self._index)),
            "compute capability": fact(lambda: ".".join(map(str, torch.cuda.get_device_capability(self._index)))),
            "cupy": fact(lambda: cupy.__version__),
            "NVRTC": fact(lambda: ".".join(map(str, cupy.cuda.nvrtc.getVersion()))),
            "CUDA of torch": fact(lambda: torch.version.cuda),
            "CUDA of the driver": fact(lambda: _version(runtime.driverGetVersion())),
        }

    def table(self, views: Sequence[Tensor]) -> Tensor:
        """Return the tiles: int64, shape (tiles, 3): address, first place in the chunk, elements."""
        rows = []
        place = 0
        for view in views:
            firsts = np.arange(0, view.numel(), kernels.TILE, dtype=np.int64)
            counts = np.minimum(kernels.TILE, view.numel() - firsts)
            rows.append(np.stack([view.data_ptr() + firsts * view.element_size(), place + firsts, counts], axis=1))
            place += view.numel()
        return torch.from_numpy(np.concatenate(rows)).to(self.name)

    def coded_table(self, views: Sequence[Tensor]) -> CodedTable:
        """Return tiles as :meth:`table` does, none of which reaches over the end of a block; and each block's first."""
        rows = []
        place = 0
        for view in views:
            end = place + view.numel()
            inner = np.arange(place // BLOCK + 1, -(-end // BLOCK), dtype=np.int64) * BLOCK
            starts = np.concatenate([[place], inner])
            counts = np.diff(starts, append=end)
            rows.append(np.stack([view.data_ptr() + (starts - place) * view.element_size(), starts, counts], axis=1))
            place = end
        tiles = np.concatenate(rows)
        firsts = np.searchsorted(tiles[:, 1], np.arange(blocks_of(place) + 1) * BLOCK)
        return CodedTable(torch.from_numpy(tiles).to(self.name), torch.from_numpy(firsts).to(self.name), place)

    def pack(self, table: Tensor, target: Tensor, dtype: str, wire: str, keep: float, stream: Any) -> None:
        self._launch(kernels.name_of("pack", dtype, wire), len(table), stream, table, target, keep)

    def check(self, source: Tensor, wire: str, flag: Flag, stream: Any) -> None:
        count = source.nbytes // kernels.WIDTH[wire]
        blocks = min(MOST_BLOCKS, -(-count // kernels.TILE))
        self._launch(kernels.name_of("check", wire), blocks, stream, source, count, flag.raised, flag.told)

    def merge(
        self,
        table: Tensor,
        source: Tensor,
        dtype: str,
        wire: str,
        fraction: float,
        flag: Flag,
        heal: bool,
        stream: Any,
    ) -> None:
        name = kernels.name_of("merge", dtype, wire)
        self._launch(name, len(table), stream, table, source, fraction, flag.raised, heal, flag.told)

    def merge_half(
        self,
        table: Tensor,
        source: Tensor,
        residual: Tensor,
        dtype: str,
        weight: float,
        mass: float,
        flag: Flag,
        heal: bool,
        stream: Any,
    ) -> None:
        name = kernels.name_of("merge_half", dtype)
        arguments = (table, source, residual, weight, mass, flag.raised, heal, flag.told)
        self._launch(name, len(table), stream, *arguments)

    def pack_coded(
        self,
        table: CodedTable,
        target: Tensor,
        bounds: Tensor,
        residual: Tensor | None,
        dtype: str,
        form: tuple[bool, int],
        left: float,
        given: float,
        stream: Any,
    ) -> None:
        into = (table.tiles, table.firsts, target, table.count, bounds, 0 if residual is None else residual)
        self._launch(kernels.name_of("pack_coded", dtype), table.blocks, stream, *into, *form, left, given)

    def check_coded(self, source: Tensor, dtype: str, count: int, flag: Flag, stream: Any) -> None:
        blocks = min(MOST_BLOCKS, -(-count // kernels.TILE))
        name = kernels.name_of("check_coded", dtype)
        self._launch(name, blocks, stream, source, count, flag.raised, flag.told)

    def merge_coded(
        self,
        table: CodedTable,
        source: Tensor,
        bounds: Tensor,
        residual: Tensor | None,
        dtype: str,
        weight: float,
        mass: float,
        flag: Flag,
        heal: bool,
        stream: Any,
    ) -> None:
        what = (table.tiles, table.firsts, source, table.count, bounds, 0 if residual is None else residual)
        arguments = (*what, weight, mass, flag.raised, heal, flag.told)
        self._launch(kernels.name_of("merge_coded", dtype), table.blocks, stream, *arguments)

    # ------------------------------------------------------------------ launching, and the end

    def _launch(self, name: str, blocks: int, stream: torch.cuda.Stream, *arguments: Any) -> None:
        """Launch a kernel; its arguments get the types that it declares, tensors are passed as addresses."""
        typed = kernels.typed(name, arguments)
        with self._here(), self._on(stream):
            self._functions[name]((blocks,), (kernels.THREADS,), typed)

    @contextmanager
    def _here(self) -> Iterator[None]:
        """Work on this device, also where the thread has another one."""
        with torch.cuda.device(self._index):
            yield

    def _on(self, stream: torch.cuda.Stream) -> Any:
        """Return cupy's object for a stream of torch, as a context."""
        pointer = stream.cuda_stream
        if pointer not in self._streams:
            external = getattr(cupy.cuda.Stream, "from_external", None)
            self._streams[pointer] = (
                external(_Pointer(pointer)) if external else cupy.cuda.ExternalStream(pointer, self._index)
            )
        return self._streams[pointer]

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._index)


@cache
def _module(names: tuple[str, ...]) -> Any:
    """Return kernels to compile; cupy keeps the result on disk for the next process, and loads it once per device."""
    return cupy.RawModule(code=kernels.SOURCE, options=("--std=c++17",), name_expressions=names)


OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Raise MemoryError where CUDA says that it has no memory. cupy has reset CUDA's own note of the error by then."""
    try:
        yield
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if error.status != OUT_OF_MEMORY:
            raise
        raise MemoryError(str(error)) from error


def _version(number: int) -> str:
    """Return a version of CUDA as text.

    >>> _version(12080)
    '12.8'
    """
    return f"{number // 1000}.{number % 1000 // 10}"


RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


def _relax_captures(driver: Any) -> None:
    """Let the calling thread ask events while another one captures a CUDA graph. Does nothing without a driver.

    torch.cuda.graph() captures in the mode "global": a query of an event in any thread spoils the capture then, unless
    that thread has said that it keeps away from what is captured. cupy has no call for it; this is the driver's own.
    """
    if driver is not None:
        driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(ctypes.c_int(RELAXED)))


def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream(priority=FIRST)  # type: ignore[no-untyped-call]


class _Pointer:
    """A stream as the CUDA stream protocol wants it, for any version of torch."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer
