"""Every named point of a run fires when its name says so, in every mode."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import pushsum_opt as ps
from pushsum_opt.gossip.wire import HEADER_BYTES

STALENESS = [0, 1, 2, "unbounded"]


class Diary(ps.observe.Listener):
    """Writes down every point, with what the tensor held at that moment."""

    def __init__(self, z):
        self.z, self.lines = z, []

    def _write(self, name, **values):
        self.lines.append({"name": name, "z": self.z.copy(), **values})

    def named(self, *names):
        return [line for line in self.lines if line["name"] in names]

    def local_step_begins(self, round):
        self._write("local step begins", round=round)

    def local_step_ends(self, round):
        self._write("local step ends", round=round)

    def round_begins(self, round):
        self._write("round begins", round=round)

    def message_posted(self, round, peer, nbytes, mass):
        self._write("posted", round=round, peer=peer, nbytes=nbytes, mass=mass)

    def message_arrived(self, round, peer, age):
        self._write("arrived", round=round, peer=peer, age=age)

    def message_merged(self, round, peer, age):
        self._write("merged", round=round, peer=peer, age=age)

    def round_ends(self, round, push_weight):
        self._write("round ends", round=round, push_weight=push_weight)

    def call_begins(self, call, round):
        self._write("call begins", call=call, round=round)

    def call_ends(self, call, round):
        self._write("call ends", call=call, round=round)

    def wait_begins(self, call, peer, round):
        self._write("wait begins", call=call, peer=peer, round=round)

    def wait_ends(self, call, peer, round, seconds):
        self._write("wait ends", call=call, peer=peer, round=round, seconds=seconds)


def diaries(ranks, staleness, rounds, also=lambda push_sum: None, graph=None):
    """Return every rank's diary of some rounds; rank r starts at r, in one chunk."""

    def rank(comm):
        z = np.full(100_000, float(comm.rank))
        with ps.PushSum([z], graph=graph or ps.graphs.Ring(), staleness=staleness, comm=comm) as push_sum:
            diary = Diary(z)
            push_sum.subscribe(diary)
            for _ in range(rounds):
                push_sum.mix()
            also(push_sum)
            push_sum.drain()
            push_sum.unsubscribe(diary)
            return diary, push_sum.push_weight

    return ps.testing.run(ranks, rank)


@pytest.mark.parametrize("staleness", STALENESS)
def test_a_message_arrives_before_it_is_merged_and_changes_nothing_until_then(staleness):
    for diary, _ in diaries(2, staleness, 8):
        points = diary.named("arrived", "merged")
        assert points
        for arrived, merged in zip(points[::2], points[1::2], strict=True):
            assert (arrived["name"], merged["name"]) == ("arrived", "merged")
            assert (arrived["peer"], arrived["age"], arrived["round"]) == (
                merged["peer"], merged["age"], merged["round"]
            )  # fmt: skip
            before, after = arrived["z"], merged["z"]
            assert (before == before[0]).all(), "merged in part when it had only arrived"
            assert (after == after[0]).all()
    first = diaries(2, staleness, 8)[0][0].named("arrived", "merged")[:2]
    assert first[0]["z"][0] == 0.0
    assert first[1]["z"][0] > 0.0


@pytest.mark.parametrize("staleness", STALENESS)
def test_masses_posted_and_merged_account_for_the_push_weight(staleness):
    found = diaries(3, staleness, 6)
    for rank, (diary, weight) in enumerate(found):
        given = sum(line["mass"] for line in diary.named("posted"))
        taken = sum(line["mass"] for other, _ in found for line in other.named("posted") if line["peer"] == rank)
        assert weight == pytest.approx(1.0 - given + taken, rel=1e-12)
        assert all(line["nbytes"] == HEADER_BYTES + 800_000 for line in diary.named("posted"))


@pytest.mark.parametrize("staleness", STALENESS)
def test_rounds_begin_and_end_in_turn_with_their_messages_inside(staleness):
    for diary, _ in diaries(3, staleness, 5):
        rounds = [(line["name"], line["round"]) for line in diary.named("round begins", "round ends")]
        assert rounds == [(f"round {point}", k) for k in range(5) for point in ("begins", "ends")]
        inside = None
        for line in diary.lines:
            if line["name"].startswith("round"):
                inside = line["round"] if line["name"] == "round begins" else None
            elif line["name"] == "posted":
                assert line["round"] == inside


@pytest.mark.parametrize("staleness", STALENESS)
def test_calls_and_waits_come_in_pairs_and_name_the_call(staleness):
    def both(push_sum):
        push_sum.drain()
        push_sum.average()

    for rank, (diary, _) in enumerate(diaries(3, staleness, 4, also=both)):
        calls = [(line["name"], line["call"]) for line in diary.named("call begins", "call ends")]
        names = ["drain()", "an exact average", "drain()"]
        assert calls == [(f"call {point}", name) for name in names for point in ("begins", "ends")]
        waits = diary.named("wait begins", "wait ends")
        assert waits
        for begin, end in zip(waits[::2], waits[1::2], strict=True):
            assert (begin["name"], end["name"]) == ("wait begins", "wait ends")
            assert [begin[key] for key in ("call", "round")] == [end[key] for key in ("call", "round")]
            assert begin["call"] in {"mix()", *names}
            for peer in (begin["peer"], end["peer"]):
                assert peer in (None, (rank + 1) % 3, (rank - 1) % 3)
            assert end["seconds"] >= 0


@pytest.mark.parametrize("late", [0, 2, 3])
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_wait_for_several_messages_is_for_the_one_that_comes_last(staleness, late):
    def rank(comm):
        z = np.zeros(10)
        with ps.PushSum([z], graph=ps.graphs.Complete(), staleness=staleness, comm=comm) as push_sum:
            diary = Diary(z)
            push_sum.subscribe(diary)
            for _ in range(3):
                push_sum.mix()
            push_sum.unsubscribe(diary)
            return diary

    def delays(sender, receiver, sent_before):
        return 0.2 if sender == late else 0.0

    for number, diary in enumerate(ps.testing.run(4, rank, delays=delays)):
        waited = Counter()
        for line in diary.named("wait ends"):
            waited[line["peer"]] += line["seconds"]
        if number != late:
            assert max(waited, key=waited.get) == late


def test_the_local_step_is_told_before_and_after_the_parameters_change():
    torch = pytest.importorskip("torch")

    def rank(comm):
        z = torch.zeros(3, requires_grad=True)
        with ps.PushSumOptimizer(torch.optim.SGD([z], lr=0.5), comm=comm) as optimizer:
            diary = Diary(z.detach().numpy())
            optimizer.push_sum.subscribe(diary)
            for _ in range(2):
                optimizer.zero_grad()
                z.sum().backward()
                optimizer.step()
            optimizer.push_sum.unsubscribe(diary)
        return [(line["name"], line["round"], float(line["z"][0])) for line in diary.named(
            "local step begins", "local step ends", "round begins"
        )]  # fmt: skip

    for found in ps.testing.run(2, rank):
        assert found == [
            ("local step begins", 0, 0.0),
            ("local step ends", 0, -0.5),
            ("round begins", 0, -0.5),
            ("local step begins", 1, -0.5),
            ("local step ends", 1, -1.0),
            ("round begins", 1, -1.0),
        ]


def test_averages_and_checkpoints_are_told(tmp_path):
    torch = pytest.importorskip("torch")

    def rank(comm):
        z = torch.zeros(3, requires_grad=True)
        with ps.PushSumOptimizer(torch.optim.SGD([z], lr=0.5), comm=comm) as optimizer:
            diary = Diary(z.detach().numpy())
            optimizer.push_sum.subscribe(diary)
            with optimizer.averaged():
                pass
            ps.checkpoint.save(tmp_path, optimizer)
            ps.checkpoint.load(tmp_path, optimizer)
        return [(line["name"], line["call"]) for line in diary.named("call begins", "call ends")]

    for found in ps.testing.run(2, rank):
        for call in ("averaged()", "checkpoint.save()", "checkpoint.load()", "close()"):
            assert ("call begins", call) in found
            assert found.index(("call begins", call)) < found.index(("call ends", call))
