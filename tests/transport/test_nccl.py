"""What is asked of cupy's NCCL, of which no part runs without a GPU."""

from __future__ import annotations

import gc
import sys
import weakref
from types import ModuleType

import numpy as np
import pytest
import torch
from torchrun.fake_nccl import device_bytes

from pushsum_opt.transport.torch_distributed.nccl import CupyNccl

ID = bytes(range(0, 256, 2))


class Communicator:
    """Has cupy's signatures."""

    error = None

    def __init__(self, ndev, commId, rank):
        self.made, self.calls = (ndev, commId, rank), []

    def send(self, sendbuf, count, datatype, peer, stream):
        self.calls.append(("send", sendbuf, count, datatype, peer, stream))

    def recv(self, recvbuf, count, datatype, peer, stream):
        self.calls.append(("recv", recvbuf, count, datatype, peer, stream))

    def check_async_error(self):
        if self.error:
            raise RuntimeError(self.error)

    def abort(self):
        self.calls.append("abort")


class Stream:
    cuda_stream = 4711

    def __init__(self, priority):
        assert priority < 0


class Event:
    over = False
    recorded = None

    def record(self, stream):
        self.recorded = stream

    def query(self):
        return self.over


@pytest.fixture(params=["cupy 13", "cupy 14"])
def nccl(request, monkeypatch):
    found = ModuleType("cupy.cuda.nccl")
    found.NCCL_UINT8 = 1
    found.NcclCommunicator = Communicator
    found.old = request.param == "cupy 13"
    found.id = tuple(byte - 256 if byte > 127 else byte for byte in ID) if found.old else ID
    found.get_unique_id = lambda: found.id
    cuda = ModuleType("cupy.cuda")
    cuda.nccl = found
    cupy = ModuleType("cupy")
    cupy.cuda, cupy.__version__ = cuda, "13.6.0" if found.old else "14.2.0"
    for module in (cupy, cuda, found):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, value in {"Stream": Stream, "Event": Event, "current_device": lambda: 0}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return found


def test_an_id_is_the_same_128_bytes_whatever_cupy_makes_of_it(nccl):
    ours = CupyNccl()
    assert ours.new_id() == ID
    connection = ours.connect(ID, True, None)
    assert connection._communicator.made == (2, nccl.id, 0)


@pytest.mark.parametrize(("sends", "call", "me", "peer"), [(True, "send", 0, 1), (False, "recv", 1, 0)])
def test_a_transfer_is_of_all_bytes_on_a_stream_of_its_own_and_done_with_its_event(nccl, sends, call, me, peer):
    connection = CupyNccl().connect(ID, sends, None)
    buffer = device_bytes(np.zeros(1000, np.uint8))
    connection.begin(buffer)
    assert connection._communicator.made[2] == me
    assert connection._communicator.calls == [(call, buffer.address, 1000, 1, peer, 4711)]
    assert connection._event.recorded is connection._stream
    assert not connection.done()
    connection._event.over = True
    assert connection.done()


def test_what_nccl_notices_later_is_raised_and_an_abort_is_one(nccl):
    connection = CupyNccl().connect(ID, True, None)
    connection._communicator.error = "NCCL_ERROR_REMOTE_ERROR"
    with pytest.raises(RuntimeError, match="REMOTE_ERROR"):
        connection.done()
    connection.abort()
    assert connection._communicator.calls == ["abort"]


def test_a_communicator_is_never_destroyed_because_that_would_wait_for_the_other_process(nccl):
    connection = CupyNccl().connect(ID, True, None)
    communicator = weakref.ref(connection._communicator)
    del connection
    gc.collect()
    assert communicator() is not None


def test_all_that_goes_one_way_stands_on_one_stream(nccl):
    ours = CupyNccl()
    first, second, other = (ours.connect(ID, sends, None)._stream for sends in (True, True, False))
    assert first is second
    assert other is not first
