"""NCCL without a GPU: two processes connected by a socket, whose transfers are as stubborn as NCCL's own.

A connection is made when both sides have asked for it, and its first transfer begins when both sides have begun it. A
transfer waits for its other half however long that takes, and ends by itself or by an abort of the connection; those of
one connection come in the order of their beginnings, whatever their lengths: a wrong order shows as wrong bytes.
"""

from __future__ import annotations

import ctypes
import secrets
import socket
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from pushsum_opt.buffers import DeviceBytes
from pushsum_opt.transport.torch_distributed import device_messages

FOLDER = Path(tempfile.gettempdir())


class FakeDevice:
    """Host memory in the place of a GPU's."""

    def __init__(self):
        self.threads = threading.local()

    @contextmanager
    def in_use(self):
        self.threads.chosen = True
        yield
        self.threads.chosen = False

    def let_captures_be(self):
        self.threads.relaxed = True

    def check(self):
        assert self.threads.chosen
        assert self.threads.relaxed


def device_bytes(array, device=None):
    """An array as memory of a device."""
    return DeviceBytes(array.ctypes.data, array.nbytes, array, device or FakeDevice())


def _check(device):
    """The thread has chosen the device, and does no harm to CUDA graphs."""
    if isinstance(device, FakeDevice):
        device.check()


class FakeNccl:
    def __init__(self):
        self.made = []

    def new_id(self):
        return f"nccl-{secrets.token_hex(8)}".encode().ljust(128, b"\0")

    def connect(self, id, sends, buffer):
        assert len(id) == 128
        _check(buffer.device)
        self.made.append(FakeConnection(FOLDER / id.rstrip(b"\0").decode(), sends))
        return self.made[-1]


class FakeConnection:
    def __init__(self, path, sends):
        self.sends = sends
        self.aborted = False
        self._error = None
        self._thread = None
        self._socket = self._meet(path)

    def _meet(self, path):
        """The side that comes first listens; NCCL's does not care either."""
        with socket.socket(socket.AF_UNIX) as door:
            try:
                door.bind(str(path))
            except OSError:
                return self._knock(path)
            door.listen(1)
            met = door.accept()[0]
            path.unlink()
            return met

    def _knock(self, path):
        while True:
            found = socket.socket(socket.AF_UNIX)
            try:
                found.connect(str(path))
            except ConnectionRefusedError:  # bound, and not listening yet
                found.close()
            else:
                return found

    def begin(self, buffer):
        assert self._thread is None or not self._thread.is_alive(), "one transfer at a time"
        assert not self.aborted
        _check(buffer.device)
        if self._thread is None:  # NCCL connects two ranks when they first send
            self._socket.sendall(b"!")
            if self._socket.recv(1) != b"!":
                raise RuntimeError("NCCL_ERROR_REMOTE_ERROR: connection closed by the other side")
        self._thread = threading.Thread(target=self._move, args=(buffer,), daemon=True)
        self._thread.start()

    def _move(self, buffer):
        memory = np.frombuffer((ctypes.c_char * buffer.nbytes).from_address(buffer.address), np.uint8)
        head = buffer.nbytes.to_bytes(8, "little")
        try:
            if self.sends:
                self._socket.sendall(head)
                self._socket.sendall(memory)
            else:
                other = self._socket.recv(8, socket.MSG_WAITALL)
                if other != head:
                    raise RuntimeError(f"NCCL_ERROR_INVALID_USAGE: {other!r} bytes are sent, {head!r} received")
                if self._socket.recv_into(memory, buffer.nbytes, socket.MSG_WAITALL) != buffer.nbytes:
                    raise RuntimeError("NCCL_ERROR_REMOTE_ERROR: connection closed by the other side")
        except (OSError, RuntimeError) as error:
            self._error = error

    def done(self):
        if self._error is not None:
            raise RuntimeError(f"NCCL_ERROR_SYSTEM_ERROR: {self._error}")
        return not self._thread.is_alive()

    def abort(self):
        assert not self.aborted
        self.aborted = True
        with suppress(OSError):  # the other side has ended
            self._socket.shutdown(socket.SHUT_RDWR)


def use():
    """Let this process have it in NCCL's place; returns it."""
    nccl = FakeNccl()
    device_messages.make_nccl = lambda: nccl
    return nccl
