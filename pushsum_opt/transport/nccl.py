"""NCCL as cupy has it: two processes, each with one GPU, connected in one direction."""

from __future__ import annotations

from typing import Any

from ..buffers import DeviceBytes

__all__ = ["CupyNccl"]

SENDER, RECEIVER = 0, 1
"""The ranks of a communicator of NCCL."""


class CupyNccl:
    """See :class:`~pushsum_opt.transport.torch_nccl.Nccl`."""

    def __init__(self) -> None:
        from cupy.cuda import nccl

        self._nccl = nccl
        self._tuples = not isinstance(nccl.get_unique_id(), bytes)
        """Before cupy 14 an id is a tuple of signed numbers."""

    def new_id(self) -> bytes:
        return bytes(number & 0xFF for number in self._nccl.get_unique_id())

    def connect(self, id: bytes, sends: bool, buffer: DeviceBytes) -> CupyConnection:
        theirs = tuple(byte - 256 if byte > 127 else byte for byte in id) if self._tuples else id
        return CupyConnection(self._nccl, theirs, sends)


class CupyConnection:
    """See :class:`~pushsum_opt.transport.torch_nccl.Connection`. The thread that calls has chosen the device."""

    def __init__(self, nccl: Any, id: Any, sends: bool) -> None:
        from cupy import cuda

        self._type = nccl.NCCL_UINT8
        self._communicator = nccl.NcclCommunicator(2, id, SENDER if sends else RECEIVER)
        self._peer = RECEIVER if sends else SENDER
        self._call = self._communicator.send if sends else self._communicator.recv
        self._stream = cuda.Stream(non_blocking=True)
        self._event = cuda.Event(disable_timing=True)

    def begin(self, buffer: DeviceBytes) -> None:
        self._call(buffer.address, buffer.nbytes, self._type, self._peer, self._stream.ptr)
        self._event.record(self._stream)

    def done(self) -> bool:
        self._communicator.check_async_error()
        return bool(self._event.done)

    def abort(self) -> None:
        self._communicator.abort()
