"""One link of NCCL between two processes: when its connection is left, and what a transfer on it never does."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from torchrun.fake_nccl import device_bytes

from pushsum_opt.errors import PeerFailed
from pushsum_opt.transport import torch_device_messages, torch_nccl
from pushsum_opt.transport.torch_device_messages import DeviceMessages
from pushsum_opt.transport.torch_nccl import Link, Transfer
from pushsum_opt.transport.torch_waits import Waits

BUFFER = device_bytes(np.zeros(8, np.uint8))


class Connection:
    hangs = False

    def __init__(self):
        self.begun, self.aborted = 0, False

    def begin(self, buffer):
        assert not self.aborted
        self.begun += 1

    def done(self):
        return not self.hangs

    def abort(self):
        self.aborted = True


class Nccl:
    """``made`` are its connections, with the ids by which they were asked for."""

    def __init__(self, make=Connection):
        self.make, self.made, self.ids = make, [], 0

    def new_id(self):
        self.ids += 1
        return b"%d" % self.ids

    def connect(self, id, sends, buffer):
        self.made.append((id, self.make()))
        return self.made[-1][1]


class Hanging(Connection):
    hangs = True


def link(nccl, gone=lambda: None, sends=True):
    return Link(nccl, sends, gone, "rank 0: NCCL cannot send GPU memory to rank 1")


def error_of(transfer):
    """Do a transfer, which may not hang here; return its error."""
    errors = []

    def carry():
        try:
            transfer.wait(None)
        except PeerFailed as error:
            errors.append(str(error))

    thread = threading.Thread(target=carry, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it hangs"
    return errors[0]


def test_one_connection_carries_all_transfers_until_the_receiver_chooses_another():
    nccl = Nccl()
    sender = link(nccl)
    for id in (b"a", b"a", b"b", b"b"):
        Transfer(sender, id, BUFFER).wait(None)
    (first, old), (second, new) = nccl.made
    assert (first, old.begun, old.aborted) == (b"a", 2, True)
    assert (second, new.begun, new.aborted) == (b"b", 2, False)


def test_a_connection_that_broke_is_never_used_again_and_the_receiver_chooses_another():
    nccl = Nccl(Hanging)
    receiver = link(nccl, sends=False)
    id = receiver.id()
    assert receiver.id() == id
    given_up, waiting = Transfer(receiver, id, BUFFER), Transfer(receiver, id, BUFFER)
    threading.Timer(0.05, lambda: setattr(given_up, "given_up", True)).start()
    assert "it was given up" in error_of(given_up)
    assert "their connection was given up" in error_of(waiting)
    ((_, connection),) = nccl.made
    assert (connection.begun, connection.aborted) == (1, True)
    assert receiver.id() != id


def test_what_was_given_up_while_it_connected_does_not_begin():
    def connected_late():
        transfer.given_up = True
        return Connection()

    nccl = Nccl(connected_late)
    transfer = Transfer(link(nccl), b"a", BUFFER)
    assert "it was given up" in error_of(transfer)
    ((_, connection),) = nccl.made
    assert (connection.begun, connection.aborted) == (0, True)


def test_a_transfer_that_does_not_end_looks_whether_the_other_process_has_died(monkeypatch):
    monkeypatch.setattr(torch_nccl, "LOOK_FOR_THE_DEAD_AFTER_S", 0.01)
    looks = iter([None, None, "rank 0: rank 1 has died"])
    nccl = Nccl(Hanging)
    assert error_of(Transfer(link(nccl, lambda: next(looks)), b"a", BUFFER)) == "rank 0: rank 1 has died"
    assert nccl.made[0][1].aborted


def until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(1e-3)


class Ends:
    """A mesh of which only the lock and the answers count."""

    def __init__(self):
        self.lock = threading.RLock()
        self.said = []

    def say_clear(self, to, number, id):
        self.said.append((to, number, id))

    def why_gone(self, peer):
        return None

    def job_rank(self, number=None):
        return 0 if number is None else number


@pytest.mark.parametrize("context", [b"mine", None], ids=["of one context", "of all"])
def test_what_is_under_way_is_given_up_and_is_over_when_that_returns(monkeypatch, context):
    nccl = Nccl(Hanging)
    monkeypatch.setattr(torch_device_messages, "make_nccl", lambda: nccl)
    ends, errors = Ends(), []
    messages = DeviceMessages(ends, Waits("a test waits"))
    messages.clear(1, 7, b"mine", BUFFER, errors.append)
    messages.post(2, 8, b"yours", BUFFER, errors.append)
    messages.cleared(2, 8, b"another id")
    until(lambda: len(nccl.made) == 2 and all(connection.begun for _, connection in nccl.made))
    assert ends.said == [(1, 7, b"1")]
    messages.give_up(context)
    aborted = {id: connection.aborted for id, connection in nccl.made}
    assert aborted == {b"1": True, b"another id": context is None}
    messages.give_up()
    until(lambda: len(errors) == 2)
    assert not messages._under_way
    assert not messages._uncleared
