"""Listeners hear of what has happened, when it has, in every mode; and of every wait of their rank."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import pushsum_opt as ps


class Recorder(ps.Listener):
    def __init__(self, z=None):
        self.z, self.at_merge, self.waits, self.merges = z, [], 0.0, 0

    def message_merged(self, round, peer, age):
        self.merges += 1
        if self.z is not None:
            self.at_merge.append(self.z.copy())

    def waited(self, seconds):
        self.waits += seconds


class Late:
    """Lets rank 1 make a call when rank 0 waits for it, and not before."""

    def __init__(self):
        self._begun = threading.Event()

    def on_rank(self, comm, push_sum):
        if comm.rank == 0:
            push_sum.subscribe(self.Watch(self._begun))
        else:
            assert self._begun.wait(60.0), "rank 0 does not wait, or nobody hears of it"

    class Watch(ps.Listener):
        def __init__(self, begun):
            self._begun = begun

        def wait_begins(self, call, peer, round):
            self._begun.set()


@pytest.mark.parametrize("staleness", [0, 1, 2, "unbounded"])
def test_a_message_is_merged_when_the_event_says_so(staleness):
    """Rank 1 starts at 1 and rank 0 at 0: rank 0 is above 0 from its first merge on."""
    in_step = threading.Barrier(2, timeout=60.0)

    def rank(comm):
        z = np.full(100_000, float(comm.rank))
        with ps.PushSum([z], graph=ps.graphs.Ring(), staleness=staleness, comm=comm) as push_sum:
            recorder = Recorder(z)
            push_sum.subscribe(recorder)
            for _ in range(60):
                push_sum.mix()
                in_step.wait()
        return recorder.at_merge

    merged = ps.testing.run(2, rank)[0]
    assert merged, "nothing was merged"
    assert (merged[0] > 0).all()


def test_a_message_is_merged_whole_when_the_event_says_so_also_where_the_ranks_of_a_host_merge_a_part_each():
    torch = pytest.importorskip("torch")

    def rank(comm):
        z = torch.zeros(300_000, requires_grad=True)
        inner = torch.optim.SGD([z], lr=0.0)
        with ps.PushSumOptimizer(inner, within_host="gradients", comm=comm) as optimizer:
            with torch.no_grad():
                z.fill_(float(comm.rank // 2))
            recorder = Recorder(z.detach().numpy())
            optimizer.push_sum.subscribe(recorder)
            z.sum().backward()
            optimizer.step()
        return recorder.at_merge

    for merged in ps.testing.run(4, rank, local_size=2):
        assert [(z.min(), z.max()) for z in merged] == [(0.5, 0.5)]


@pytest.mark.parametrize(
    ("point", "average"),
    [
        *((point, False) for point in ("round_begins", "message_posted", "message_merged", "round_ends")),
        *((point, True) for point in ("round_begins", "round_ends")),
    ],
)
def test_a_listener_that_raises_fails_its_rank_and_the_others_learn_why_at_once(point, average):
    def rank(comm):
        def raises(*_):
            raise ValueError("this listener is broken")

        push_sum = ps.PushSum([np.zeros(1)], graph=ps.graphs.Ring(), comm=comm)
        if comm.rank == 1:
            listener = ps.Listener()
            setattr(listener, point, raises)
            push_sum.subscribe(listener)
        with pytest.raises(ValueError if comm.rank == 1 else ps.errors.PeerFailed, match="this listener is broken"):
            for _ in range(3):
                push_sum.average() if average else push_sum.mix()
        push_sum.close()

    ps.testing.run(2, rank)


def test_a_listener_that_left_hears_nothing():
    def rank(comm):
        with ps.PushSum([np.zeros(1)], graph=ps.graphs.Ring(), comm=comm) as push_sum:
            recorder = Recorder()
            push_sum.subscribe(recorder)
            push_sum.mix()
            push_sum.unsubscribe(recorder)
            push_sum.mix()
        return recorder.merges

    assert ps.testing.run(2, rank) == [1, 1]


CALLS = {
    "average": lambda push_sum, comm: ps.average(1.0, comm=comm),
    "broadcast": lambda push_sum, comm: ps.broadcast_object(1, comm=comm),
    "drain": lambda push_sum, comm: push_sum.drain(),
    "mix": lambda push_sum, comm: push_sum.mix(),
    "making another": lambda push_sum, comm: ps.PushSum([np.zeros(1)], comm=comm).close(),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("warm", [False, True])
def test_waits_of_every_call_are_heard(call, warm):
    late = Late()

    def rank(comm):
        with ps.PushSum([np.zeros(1)], graph=ps.graphs.Ring(), comm=comm) as push_sum:
            if warm:
                CALLS[call](push_sum, comm)
            push_sum.drain()
            recorder = Recorder()
            push_sum.subscribe(recorder)
            late.on_rank(comm, push_sum)
            CALLS[call](push_sum, comm)
            return recorder.waits

    assert ps.testing.run(2, rank)[0] > 0.0


def test_waits_inside_a_host_and_for_votes_are_heard(tmp_path):
    torch = pytest.importorskip("torch")
    to_the_step, to_the_vote = Late(), Late()

    def rank(comm):
        z = torch.zeros(3, requires_grad=True)
        inner = torch.optim.SGD([z], lr=0.1)
        with ps.PushSumOptimizer(inner, within_host="gradients", comm=comm) as optimizer:
            saver = ps.checkpoint.Saver(tmp_path, optimizer, check_every=1)
            recorder = Recorder()
            optimizer.push_sum.subscribe(recorder)
            to_the_step.on_rank(comm, optimizer.push_sum)
            optimizer.step()
            inside, recorder.waits = recorder.waits, 0.0
            optimizer.push_sum.drain()
            recorder.waits = 0.0
            to_the_vote.on_rank(comm, optimizer.push_sum)
            saver.after_step()  # votes
            saver.after_step()  # waits for every rank's vote
            voted = recorder.waits
            saver.close()
        return inside, voted

    inside, voted = ps.testing.run(2, rank)[0]
    assert inside > 0.0
    assert voted > 0.0
