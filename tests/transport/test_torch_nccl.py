"""One link of NCCL between two processes: when its connection is left, and what a transfer on it never does."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from torchrun.fake_nccl import device_bytes

from pushsum_opt.errors import PeerFailed
from pushsum_opt.transport.torch_distributed import device_messages, link, looks
from pushsum_opt.transport.torch_distributed.device_messages import DeviceMessages
from pushsum_opt.transport.torch_distributed.link import Inward, Outward, Transfer
from pushsum_opt.transport.torch_distributed.waits import Waits

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


def give_up(transfer):
    """What a connection answers that hangs, when it is asked whether it is done: its transfer is given up just then."""
    transfer.given_up = GIVEN_UP
    return False


WHOM = "rank 0: NCCL cannot do it"
GIVEN_UP = "this one has given up the message"


def nothing():
    return None


def error_of(transfer):
    """Do a transfer, which may not hang here; return its error, or None."""
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
    return errors[0] if errors else None


def test_a_sender_takes_the_connection_that_the_receiver_has_chosen():
    nccl = Nccl()
    sender = Outward(nccl, nothing, WHOM, pytest.fail)
    for number, id in enumerate((b"a", b"a", b"b", b"b")):
        assert error_of(Transfer(sender, number, BUFFER, id)) is None
    (first, old), (second, new) = nccl.made
    assert (first, old.begun, old.aborted) == (b"a", 2, True)
    assert (second, new.begun, new.aborted) == (b"b", 2, False)


def test_a_sender_never_uses_a_connection_again_that_it_has_given_up_and_says_so():
    class Hangs(Connection):
        def done(self):
            return give_up(given_up)

    nccl, refused = Nccl(Hangs), []
    sender = Outward(nccl, nothing, WHOM, refused.append)
    given_up, waiting = Transfer(sender, 1, BUFFER, b"a"), Transfer(sender, 2, BUFFER, b"a")
    assert error_of(given_up) == f"{WHOM}: {GIVEN_UP}"
    assert "their connection was given up" in error_of(waiting)
    ((_, connection),) = nccl.made
    assert (connection.begun, connection.aborted) == (1, True)
    assert refused == [1, 2]


def test_a_receiver_says_when_each_transfer_begins_and_takes_another_connection_after_one_that_broke():
    nccl, said = Nccl(), []
    receiver = Inward(nccl, nothing, WHOM, lambda number, id: said.append((number, id)))
    for number in (5, 6):
        assert error_of(Transfer(receiver, number, BUFFER)) is None
    broken = Transfer(receiver, 7, BUFFER)
    nccl.made[0][1].done = lambda: give_up(broken)
    assert GIVEN_UP in error_of(broken)
    assert error_of(Transfer(receiver, 8, BUFFER)) is None
    assert said == [(5, b"1"), (6, b"1"), (7, b"1"), (8, b"2")]
    assert [(id, connection.aborted) for id, connection in nccl.made] == [(b"1", True), (b"2", False)]


def test_what_was_given_up_before_is_neither_said_nor_begun():
    nccl = Nccl()
    receiver = Inward(nccl, nothing, WHOM, lambda number, id: pytest.fail("its sender would begin"))
    assert GIVEN_UP in error_of(Transfer(receiver, 1, BUFFER, given_up=GIVEN_UP))
    assert not nccl.made


def test_what_was_given_up_while_it_connected_does_not_begin():
    def connected_late():
        transfer.given_up = GIVEN_UP
        return Connection()

    nccl = Nccl(connected_late)
    refused = []
    transfer = Transfer(Outward(nccl, nothing, WHOM, refused.append), 1, BUFFER, b"a")
    assert GIVEN_UP in error_of(transfer)
    assert refused == [1]
    ((_, connection),) = nccl.made
    assert (connection.begun, connection.aborted) == (0, True)


def test_a_transfer_that_does_not_end_looks_whether_the_other_process_has_died(monkeypatch):
    monkeypatch.setattr(looks, "FIRST_AFTER_S", 0.01)
    found = iter([None, None, "rank 0: rank 1 has died"])
    nccl = Nccl(Hanging)
    sender = Outward(nccl, lambda: next(found), WHOM, [].append)
    assert error_of(Transfer(sender, 1, BUFFER, b"a")) == "rank 0: rank 1 has died"
    assert nccl.made[0][1].aborted


def test_an_abort_that_waits_for_the_other_process_keeps_nobody(monkeypatch):
    monkeypatch.setattr(link, "ABORT_S", 0.05)
    stuck = threading.Event()

    class Stubborn(Connection):
        def done(self):
            return give_up(transfer)

        def abort(self):
            stuck.wait(60)

    transfer = Transfer(Outward(Nccl(Stubborn), nothing, WHOM, [].append), 1, BUFFER, b"a")
    assert GIVEN_UP in error_of(transfer)
    stuck.set()


def until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(1e-3)


class Ends:
    """A mesh of which only the lock and the answers count."""

    def __init__(self):
        self.lock = threading.RLock()
        self.said, self.refused = [], []

    def say_clear(self, to, number, id):
        self.said.append((to, number, id))

    def refuse(self, to, number):
        self.refused.append((to, number))

    def why_gone(self, peer):
        return None

    def job_rank(self, number=None):
        return 0 if number is None else number


@pytest.fixture
def messages(monkeypatch):
    """Messages over connections that hang, if ``nccl.make`` is not changed; ``errors`` has what each ended with."""
    nccl = Nccl(Hanging)
    monkeypatch.setattr(device_messages, "make_nccl", lambda: nccl)
    made = DeviceMessages(Ends(), Waits("a test waits"))
    made.nccl, made.ends, made.errors = nccl, made._ends, []
    yield made
    made.give_up()


def all_begun(messages, count):
    return lambda: len(messages.nccl.made) == count and all(connection.begun for _, connection in messages.nccl.made)


@pytest.mark.parametrize("context", [b"mine", None], ids=["of one context", "of all"])
def test_what_is_under_way_is_given_up_and_is_over_when_that_returns(messages, context):
    messages.receive(1, 7, b"mine", BUFFER, messages.errors.append)
    messages.post(2, 8, b"yours", BUFFER, messages.errors.append)
    messages.cleared(2, 8, b"another id")
    until(all_begun(messages, 2))
    assert messages.ends.said == [(1, 7, b"1")]
    messages.give_up(context)
    aborted = {id: connection.aborted for id, connection in messages.nccl.made}
    assert aborted == {b"1": True, b"another id": context is None}
    messages.give_up()
    until(lambda: len(messages.errors) == 2)
    assert not messages._under_way


def test_a_message_that_was_given_up_is_refused_to_a_receiver_that_comes_later(messages):
    messages.post(1, 7, b"mine", BUFFER, pytest.fail)
    messages.post(1, 8, b"yours", BUFFER, messages.errors.append)
    messages.give_up(b"mine")
    messages.cleared(1, 7, b"id")
    assert messages.ends.refused == [(1, 7)]
    assert list(messages._uncleared) == [(1, 8)]


def test_a_receiver_hears_that_its_message_does_not_come(messages):
    messages.receive(1, 7, b"mine", BUFFER, messages.errors.append)
    until(all_begun(messages, 1))
    messages.refused(1, 6)
    messages.refused(2, 7)
    assert not messages.errors
    messages.refused(1, 7)
    until(lambda: messages.errors)
    assert "that one has given up the message" in str(messages.errors[0])


def test_a_receiver_hears_it_too_where_its_thread_waits_for_the_sender_to_connect(messages):
    inside, free = threading.Event(), threading.Event()

    def connects_never():
        inside.set()
        assert free.wait(60)
        return Connection()

    messages.nccl.make = connects_never
    messages.receive(1, 7, b"mine", BUFFER, messages.errors.append)
    assert inside.wait(20)
    messages.refused(1, 7)
    assert len(messages.errors) == 1
    free.set()
    until(lambda: messages._waits.all_over())
    assert len(messages.errors) == 1, "once is enough"


def test_one_message_at_a_time_is_received_whoever_sends(messages):
    for source in (1, 2, 3):
        messages.receive(source, 7, b"mine", BUFFER, messages.errors.append)
    for source in (1, 2, 3):
        until(all_begun(messages, source))
        assert [to for to, _, _ in messages.ends.said] == [1, 2, 3][:source]
        messages.nccl.made[-1][1].hangs = False
    until(lambda: messages.errors == [None] * 3)


def test_a_thread_that_waits_inside_nccl_is_freed_by_an_abort_from_outside(messages, monkeypatch):
    monkeypatch.setattr(device_messages, "ABORT_AFTER_S", 0.05)
    inside, free = threading.Event(), threading.Event()

    class WaitsInside(Connection):
        def begin(self, buffer):
            inside.set()
            assert free.wait(60)
            raise RuntimeError("NCCL_ERROR_REMOTE_ERROR")

        def abort(self):
            free.set()

    messages.nccl.make = WaitsInside
    messages.receive(1, 7, b"mine", BUFFER, messages.errors.append)
    assert inside.wait(20)
    messages.give_up(b"mine")
    assert free.is_set()
    until(lambda: messages.errors)
    assert "this one has given up the message" in str(messages.errors[0])


def test_nccl_that_cannot_be_had_is_the_error_of_the_message(messages):
    messages.nccl.new_id = messages.nccl.connect = None
    messages.receive(1, 7, b"mine", BUFFER, messages.errors.append)
    messages.post(2, 8, b"mine", BUFFER, messages.errors.append)
    messages.cleared(2, 8, b"id")
    until(lambda: len(messages.errors) == 2)
    assert all("TypeError" in str(error) for error in messages.errors)
