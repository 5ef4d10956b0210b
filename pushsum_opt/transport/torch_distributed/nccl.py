"""NCCL as cupy has it: two processes, each with one GPU, connected in one direction."""

from __future__ import annotations

import ctypes
from typing import Any

from ...buffers import DeviceBytes

__all__ = ["CupyNccl"]

SENDER, RECEIVER = 0, 1
"""The ranks of a communicator of NCCL."""
FIRST = -1
"""The priority of streams that somebody waits for, above the default 0."""


class CupyNccl:
    """See :class:`~pushsum_opt.transport.torch_distributed.link.Nccl`. The thread that calls has chosen the device.

    All messages of one direction stand on one stream: a process has one of them at a time.
    """

    def __init__(self) -> None:
        self._streams: dict[tuple[int, bool], Any] = {}

    def new_id(self) -> bytes:
        from cupy.cuda import nccl

        return bytes(number & 0xFF for number in nccl.get_unique_id())

    def connect(self, id: bytes, sends: bool, buffer: DeviceBytes) -> CupyConnection:
        import cupy
        import torch
        from cupy.cuda import nccl

        way = torch.cuda.current_device(), sends
        if way not in self._streams:
            self._streams[way] = torch.cuda.Stream(priority=FIRST)  # type: ignore[no-untyped-call]
        before_14 = int(cupy.__version__.split(".")[0]) < 14
        return CupyConnection(nccl, _signed(id) if before_14 else id, sends, self._streams[way])


def _signed(id: bytes) -> tuple[int, ...]:
    """Return an id as cupy has it before version 14."""
    return tuple(byte - 256 if byte > 127 else byte for byte in id)


class CupyConnection:
    """See :class:`~pushsum_opt.transport.torch_distributed.link.Connection`."""

    def __init__(self, nccl: Any, id: Any, sends: bool, stream: Any) -> None:
        import torch

        communicator = nccl.NcclCommunicator(2, id, SENDER if sends else RECEIVER)
        # cupy destroys a communicator that nobody refers to any more, and NCCL waits then until the other process does
        # so, too. So nobody ever lets go of it: it ends by an abort, or with the process.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(communicator))
        self._communicator = communicator
        self._type = nccl.NCCL_UINT8
        self._peer = RECEIVER if sends else SENDER
        self._call = communicator.send if sends else communicator.recv
        self._stream = stream
        self._event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def begin(self, buffer: DeviceBytes) -> None:
        self._call(buffer.address, buffer.nbytes, self._type, self._peer, self._stream.cuda_stream)
        self._event.record(self._stream)

    def done(self) -> bool:
        self._communicator.check_async_error()
        return bool(self._event.query())

    def abort(self) -> None:
        self._communicator.abort()
