"""What ranks over torch.distributed ask and answer arrives, however much there is to say."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

from pushsum_opt.transport.roll_call import Need, RollCall, Waiting
from pushsum_opt.transport.torch_distributed.job import MeshPost
from pushsum_opt.transport.torch_distributed.mesh import INSIDE_BYTES, Mesh

CHANNEL = "0123456789ab.1 rounds"


class Frames(Mesh):
    """One process's end of connections; what it says is kept."""

    def __init__(self, ranks, me):
        self.ranks, self.me, self.said, self.on_words = ranks, me, [], lambda: None

    def _send_quietly(self, to, frame):
        assert len(frame) <= INSIDE_BYTES + 64
        self.said.append((to, json.loads(frame[frame.index(b"{") :])))

    def words(self):
        self.on_words()
        return [b"{}"]


def post_of(size, me):
    mesh = Frames(tuple(range(size)), me)
    job = SimpleNamespace(rank=me, meshes={mesh.ranks: mesh})
    return MeshPost(job), mesh


def answers_along_a_chain(size):
    """Each rank waits for the next one, and is asked by the one before; return the answers, from the last one on."""
    heard, found = None, []
    for rank in reversed(range(size)):
        post, mesh = post_of(size, rank)
        roll = RollCall(post)
        if rank < size - 1:
            waiting = Waiting(roll, rank, lambda rank: rank, "PushSumOptimizer.step() in round 123456").__enter__()
            waiting.needs, waiting._what = (Need(CHANNEL, 123457, (rank + 1,)),), "its message of round 123456"
            roll.sent[rank + 1] = 123455, time.monotonic()
            if heard is not None:
                waiting.heard(heard)
        post.send(rank - 1, roll.answer({"id": 1, "from": rank - 1, "channel": CHANNEL, "number": 123457}))
        heard = mesh.said[-1][1] if mesh.said else None
        found.append(heard)
    return found[:-1]


def test_an_answer_of_a_rank_with_many_others_behind_it_arrives():
    answers = answers_along_a_chain(16)
    assert None not in answers
    assert [len(answer["chain"]) for answer in answers[:4]] == [0, 1, 2, 3]
    for answer in answers[1:]:
        assert answer["call"]
        assert [link["rank"] for link in answer["chain"]] == list(
            range(answer["from"] + 1, answer["from"] + 1 + len(answer["chain"]))
        )


def test_an_answer_from_a_place_with_a_long_name_arrives():
    post, mesh = post_of(2, 0)
    roll = RollCall(post)
    roll.whereabouts = lambda: (f'in "{"é" * 2000}"', 1.0)
    post.send(1, roll.answer({"id": 1, "from": 1, "channel": CHANNEL, "number": 1}))
    assert [answer["reached"] for _, answer in mesh.said] == [0]


def test_words_are_received_while_another_thread_makes_new_connections():
    post, mesh = post_of(2, 0)
    mesh.on_words = lambda: post._job.meshes.update({(0,): Frames((0,), 0)})
    assert post.receive() == [{}]
