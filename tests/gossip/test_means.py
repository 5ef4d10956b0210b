"""Means that ride in the headers: what ranks report, averaged without a message of its own."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from support.problems import Irregular

import pushsum_opt as ps
from pushsum_opt.errors import ConfigurationError, MismatchError, PeerFailed
from pushsum_opt.gossip.means import Means
from pushsum_opt.gossip.sketch import Sketch
from pushsum_opt.gossip.windows import window_of
from pushsum_opt.gossip.wire import HEADER_BYTES
from pushsum_opt.graphs import BaseK, Complete, OnePeerExponential, Ring
from pushsum_opt.transport.loopback.world import EAGER_BYTES

EXACT_SIZES = {2: OnePeerExponential(), 3: BaseK(), 4: OnePeerExponential(), 6: BaseK(), 8: OnePeerExponential()}


def watched(size, rounds, report, *, together=False, asks=True, run=None, **options):
    """Return the means after every round, by rank; ``report(rank, round)`` is what a rank reports before it."""
    all_come = threading.Barrier(size) if together else None

    def rank(comm):
        path = []
        with ps.PushSum([np.zeros(3)], comm=comm, **options) as push_sum:
            for k in range(rounds):
                if (values := report(comm.rank, k)) is not None:
                    push_sum.report(**values)
                push_sum.mix()
                path.append(push_sum.means() if asks else push_sum.member.means.read(size))
                if all_come is not None:
                    all_come.wait(timeout=30)
        return path

    return ps.testing.run(size, rank, **(run or {}))


@pytest.mark.parametrize("tau", [0, 1, 2])
@pytest.mark.parametrize("size", EXACT_SIZES)
def test_values_that_stand_still_give_the_exact_mean_after_one_window_in_step(size, tau):
    graph = EXACT_SIZES[size]
    window = window_of(graph, size, tau).rounds
    found = watched(size, window, lambda rank, k: {"loss": rank**2}, graph=graph, staleness=tau, data_weight=1.0)
    for path in found:
        assert all("loss" not in means for means in path[:-1])
        assert path[-1]["loss"] == pytest.approx(sum(r**2 for r in range(size)) / size, rel=1e-14)


def test_a_window_of_a_synchronous_run_is_one_period_of_a_graph_that_averages_exactly():
    for size, graph in EXACT_SIZES.items():
        assert window_of(graph, size, 0).rounds == graph.period(size)


@pytest.mark.parametrize("graph", [OnePeerExponential(), Irregular(3)], ids=repr)
def test_asynchronous_ranks_come_to_the_exact_mean_of_values_that_stand_still(graph):
    found = watched(4, 300, lambda rank, k: {"loss": rank}, together=True, graph=graph, staleness="unbounded")
    for path in found:
        assert path[-1]["loss"] == pytest.approx(1.5, rel=1e-9)


@pytest.mark.parametrize("tau", [0, 1])
def test_the_mean_is_plain_on_any_graph_whatever_the_data_weights_are(tau):
    def rank(comm):
        options = {"graph": Irregular(1), "staleness": tau, "data_weight": 1.0 + comm.rank}
        with ps.PushSum([np.zeros(3)], comm=comm, **options) as push_sum:
            push_sum.report(loss=comm.rank)
            for _ in range(200):
                push_sum.mix()
            return push_sum.means()["loss"], push_sum.push_weight

    found = ps.testing.run(5, rank, seed=0)
    assert [mean for mean, _ in found] == pytest.approx([2.0] * 5, rel=1e-12)
    assert len({weight for _, weight in found}) > 1, "a plain quotient by the push weight would have passed"


@pytest.mark.parametrize("tau", [0, 1, 2])
def test_what_changes_is_read_on_all_ranks_alike_one_to_two_windows_later(tau):
    window = window_of(OnePeerExponential(), 4, tau).rounds
    found = watched(4, 6 * window, lambda rank, k: {"loss": 10.0**rank * k}, graph=OnePeerExponential(), staleness=tau)
    factor = 1111 / 4
    for k in range(window - 1, 6 * window):
        read = [path[k]["loss"] for path in found]
        assert read == pytest.approx([read[0]] * 4, rel=1e-12)
        moment = (k + 1) // window * window - window  # the values of the beginning of the last window that is over
        assert read[0] == pytest.approx(factor * moment, rel=1e-12)
        assert window - 1 <= k - moment < 2 * window


def test_only_ranks_that_report_count():
    found = watched(4, 8, lambda rank, k: {"loss": rank} if rank in (1, 3) else None)
    assert [path[-1].get("loss") for path in found] == [None, 2.0, None, 2.0]
    found = watched(4, 8, lambda rank, k: {"loss": 1.0, **({"accuracy": 0.5} if rank == 0 and k > 3 else {})})
    assert found[0][-1]["accuracy"] == 0.5
    assert "accuracy" not in found[1][-1]


@pytest.mark.parametrize("tau", [0, 1, "unbounded"])
@pytest.mark.parametrize("spike", [math.nan, math.inf, 1e200])
def test_nothing_is_left_of_a_value_that_was_huge_or_not_finite(spike, tau):
    window = window_of(OnePeerExponential(), 4, tau).rounds
    before, after = 2 * window, 100 * window if tau == "unbounded" else 6 * window

    def report(rank, k):
        return {"loss": spike if rank == 2 and before <= k < before + window else rank, "accuracy": 0.5}

    found = watched(4, after, report, together=tau == "unbounded", graph=OnePeerExponential(), staleness=tau)
    for path in found:
        assert path[-1]["loss"] == pytest.approx(1.5, rel=1e-12)
        assert path[-1]["accuracy"] == pytest.approx(0.5, rel=1e-12)
        if tau != "unbounded":
            assert not path[before + window]["loss"] < 1e199, "the mean is what it is meanwhile"


def test_late_messages_change_nothing():
    plain, late = (
        watched(5, 30, lambda rank, k: {"loss": rank * k}, staleness=1, run=run) for run in ({}, {"seed": 3})
    )
    assert plain == late


def test_where_nobody_reports_the_headers_hold_zeros_and_no_window_is_found(monkeypatch):
    seen = []
    take = Means.take
    monkeypatch.setattr(Means, "take", lambda self, numbers, *a: (seen.append(numbers), take(self, numbers, *a)))
    monkeypatch.setattr(Means, "_in_window", lambda self: pytest.fail("something was reported"))
    found = watched(4, 5, lambda rank, k: None, asks=False)
    assert found == [[{}] * 5] * 4
    assert seen
    assert not any(any(numbers) for numbers in seen)
    assert HEADER_BYTES < EAGER_BYTES, "loopback sends what is larger as MPI sends large messages"


def test_a_tensor_on_an_accelerator_is_read_once_per_window_only():
    reads = []

    class OnDevice:
        """What a tensor on a device has, of which it is counted how often it is read."""

        device = type("device", (), {"type": "cuda"})

        def __init__(self, value):
            self.value = value

        def detach(self):
            return self

        clone = detach

        def numel(self):
            return 1

        def __float__(self):
            reads.append(self.value)
            return self.value

    def rank(comm):
        with ps.PushSum([np.zeros(3)], graph=OnePeerExponential(), comm=comm) as push_sum:
            for k in range(6 * 3):  # a window has 3 rounds
                push_sum.report(loss=OnDevice(float(k)))
                push_sum.mix()
            return push_sum.means()["loss"]

    assert ps.testing.run(8, rank) == pytest.approx([15.0] * 8)
    assert sorted(reads) == [float(3 * window) for window in range(6) for _ in range(8)]


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("tau", [0, 1, "unbounded"])
def test_other_names_on_some_rank_are_a_mismatch_that_every_rank_hears_of(tau):
    def rank(comm):
        with ps.PushSum([np.zeros(3)], comm=comm, staleness=tau) as push_sum:
            push_sum.report(**{"loss" if comm.rank != 2 else "losses": 1.0})
            with pytest.raises((MismatchError, PeerFailed)) as caught:
                while True:
                    push_sum.mix()
        return type(caught.value), str(caught.value)

    found = ps.testing.run(4, rank, timeout=30)
    assert MismatchError in {kind for kind, _ in found}
    assert all("report" in text and "the same keywords on every rank" in text for _, text in found), found
    assert all(kind is MismatchError or "MismatchError" in text for kind, text in found)


def test_ranks_may_come_to_a_name_at_different_times():
    def report(rank, k):
        return {"loss": 1.0, "accuracy": rank} if k >= 2 * rank else None

    found = watched(4, 20, report)
    assert [path[-1]["accuracy"] for path in found] == [1.5] * 4


def test_a_name_in_the_place_of_another_one_is_refused_where_it_is_first_used():
    def rank(comm):
        with ps.PushSum([np.zeros(3)], comm=comm) as push_sum:
            if comm.rank == 0:
                push_sum.report(loss=1.0)
            push_sum.mix()
            if comm.rank == 1:
                with pytest.raises(MismatchError, match="rank 1: another rank reports other names than accuracy"):
                    push_sum.report(accuracy=1.0)
                push_sum.report(loss=3.0)
            for _ in range(4):
                push_sum.mix()
            return push_sum.means()["loss"]

    assert ps.testing.run(2, rank) == [2.0, 2.0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({f"number_{k}": 1.0 for k in range(17)}, r"17 names in all \(number_0, .*room for 16"),
        ({"mass_held": 1.0}, r"report\(mass_held=...\): means\(\) has this name already"),
        ({"mass_in_flight": 1.0}, r"report\(mass_in_flight=...\): means\(\) has this name already"),
        ({"loss": "low"}, r"report\(loss=...\): expected a number, or a tensor of one element; got str"),
        ({"loss": np.zeros(2)}, "expected a number, or a tensor of one element; got ndarray"),
    ],
)
def test_what_cannot_be_reported_is_refused_and_the_run_goes_on(values, said):
    def rank(comm):
        with ps.PushSum([np.zeros(3)], comm=comm) as push_sum:
            with pytest.raises(ConfigurationError, match=said):
                push_sum.report(**values)
            push_sum.mix()

    ps.testing.run(2, rank)


# ---------------------------------------------------------------------- what else happens to mass


def test_an_exact_average_makes_the_means_exact_at_once():
    def rank(comm):
        with ps.PushSum([np.zeros(3)], graph=Ring(), staleness=1, comm=comm) as push_sum:
            if comm.rank != 4:
                push_sum.report(loss=comm.rank)
            push_sum.mix()
            push_sum.average()
            exact = push_sum.means().get("loss")
            push_sum.report(loss=2.0 * comm.rank)
            for _ in range(300):
                push_sum.mix()
            return exact, push_sum.means()["loss"]

    exact, later = zip(*ps.testing.run(5, rank), strict=True)
    assert exact[:4] == pytest.approx([1.5] * 4, rel=1e-15)
    assert exact[4] is None
    assert later == pytest.approx([4.0] * 5, rel=1e-9)


def test_survivors_of_a_loss_have_the_mean_over_survivors():
    moment = ps.testing.Moment(call="step()", what="header", count=5)

    def rank(comm):
        import torch

        model = torch.nn.Linear(2, 1)
        optimizer = ps.PushSumOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm, on_loss="continue", staleness=1
        )
        for _ in range(60):
            optimizer.report(loss=torch.tensor(float(optimizer.members[optimizer.rank]), requires_grad=True))
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        found = optimizer.members, optimizer.means()["loss"]
        optimizer.close()
        return found

    faults = ps.testing.Faults({1: moment})
    found = [one for one in ps.testing.run(5, rank, faults=faults, timeout=60) if one is not None]
    assert [members for members, _ in found] == [(0, 2, 3, 4)] * 4
    assert [mean for _, mean in found] == pytest.approx([2.25] * 4, rel=1e-12)


@pytest.mark.parametrize("tau", [0, 1])
def test_after_a_load_on_all_or_on_one_rank_the_mean_is_that_of_what_was_reported(tau):
    def rank(comm, loads):
        with ps.PushSum([np.zeros(3)], graph=OnePeerExponential(), staleness=tau, comm=comm) as push_sum:
            push_sum.report(loss=comm.rank)
            for k in range(40):
                if k == 5 and comm.rank in loads:
                    push_sum.load_state(push_sum.state())
                push_sum.mix()
            return push_sum.means()["loss"]

    for loads in (range(4), [2]):
        if tau and loads == [2]:
            continue  # the messages that one rank alone forgets are missed by the others
        assert ps.testing.run(4, lambda comm, loads=loads: rank(comm, loads)) == pytest.approx([1.5] * 4, rel=1e-12)


# ---------------------------------------------------------------------- what the library itself reports


def pulled_apart(size, rounds=120, scale=1.0, asks=lambda rank: True, **options):
    """Each rank is drawn to a point of its own; return the distance that each reads, and the exact one."""

    def rank(comm):
        random = np.random.default_rng(comm.rank)
        tensors = {"a": np.full(3_000, 5.0), "b": np.full((30, 40), 5.0), "c": np.full(3, 5.0)}
        points = {name: scale * random.normal(size=tensor.shape) for name, tensor in tensors.items()}
        with ps.PushSum(tensors, comm=comm, **options) as push_sum:
            for _ in range(rounds):
                with push_sum.local_step():
                    for name, tensor in tensors.items():
                        tensor -= 0.1 * (tensor - points[name])
                push_sum.mix()
                if asks(comm.rank):
                    push_sum.means()
            return push_sum.means().get("consensus_distance"), ps.consensus_distance(push_sum)

    found = ps.testing.run(size, rank)
    return [live for live, _ in found], found[0][1]


@pytest.mark.parametrize("tau", [0, 1])
@pytest.mark.parametrize(("size", "graph"), [(4, OnePeerExponential()), (8, OnePeerExponential()), (6, BaseK())])
def test_the_live_consensus_distance_is_near_the_exact_one(size, graph, tau):
    live, exact = pulled_apart(size, graph=graph, staleness=tau)
    assert live == pytest.approx([exact] * size, rel=0.35)
    tenfold, _ = pulled_apart(size, graph=graph, staleness=tau, scale=10.0)
    assert tenfold == pytest.approx([10.0 * one for one in live], rel=0.2)


def test_after_the_first_rounds_a_sketch_is_taken_in_every_sixteenth_at_most(monkeypatch):
    taken = []
    counted = Sketch.__call__

    def count(self):
        taken[-1] += 1
        return counted(self)

    monkeypatch.setattr(Sketch, "__call__", count)
    with ps.PushSum([np.zeros(3)], graph=OnePeerExponential()) as push_sum:  # a window has one round
        for _ in range(160):
            taken.append(0)
            push_sum.mix()
            push_sum.means()
    assert sum(taken[:128]) >= 126
    assert [round for round, count in enumerate(taken) if count and round > 128] == [143, 159]


def test_many_ranks_make_it_more_exact():
    live, exact = pulled_apart(32, rounds=80, graph=OnePeerExponential())
    assert live == pytest.approx([exact] * 32, rel=0.2)


def test_where_one_rank_asks_all_ranks_measure():
    alone, _ = pulled_apart(4, graph=OnePeerExponential(), asks=lambda rank: rank == 2)
    together, _ = pulled_apart(4, graph=OnePeerExponential())
    assert alone == pytest.approx(together, rel=1e-6)


def test_ranks_that_hold_the_same_are_at_no_distance():
    live, exact = pulled_apart(4, graph=Complete())
    assert exact < 1e-9
    assert live == pytest.approx([0.0] * 4, abs=1e-9)


def test_tensors_that_are_no_parameters_are_left_out_of_the_distance():
    def rank(comm):
        z, moment = np.full(100, float(comm.rank)), np.full(50, 100.0 * comm.rank)
        with ps.PushSum([z, moment], comm=comm) as push_sum:
            push_sum.member.moments = lambda: frozenset({id(moment)})
            sketch = push_sum.member.means._sketch
            first = sketch().result()
            moment += 1.0
            assert (sketch().result() == first).all()
            z += 1.0
            assert (sketch().result() != first).any()

    ps.testing.run(2, rank)


@pytest.mark.parametrize(("tau", "held"), [(0, 4.0), (1, 8 / 3), (2, 2.0)])
def test_the_mass_that_ranks_hold_is_what_is_not_in_flight(tau, held):
    found = watched(4, 60, lambda rank, k: None, graph=OnePeerExponential(), staleness=tau, data_weight=1.0)
    assert [path[-1]["mass_held"] for path in found] == pytest.approx([held] * 4, rel=1e-9)
    assert [path[-1]["mass_in_flight"] for path in found] == pytest.approx([4.0 - held] * 4, rel=1e-9)
