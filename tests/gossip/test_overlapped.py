"""Bounded staleness: the paper's trajectories, equal bits under any delay, and every message accounted for."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracle import irregular_column_stochastic, overlapped_push
from support.problems import Irregular, problem
from support.scenarios import numpy_training, shift

import pushsum_opt as ps
from pushsum_opt.collectives import averaged
from pushsum_opt.errors import LayoutError, PeerFailed
from pushsum_opt.graphs import OnePeerExponential, Ring

ROUNDS = 14


def trajectory(size, tau, graph, z0, data_weights, gradient, rate=0.1, rounds=ROUNDS, **options):
    def rank(comm):
        z = z0[comm.rank].copy()
        path = [(z.copy(), data_weights[comm.rank] * size / data_weights.sum())]
        with ps.PushSum([z], graph=graph, staleness=tau, data_weight=data_weights[comm.rank], comm=comm) as push_sum:
            for k in range(rounds):
                with push_sum.local_step():
                    z -= rate * gradient(comm.rank, k, z)
                push_sum.mix()
                path.append((z.copy(), push_sum.push_weight))
        return path, push_sum.push_weight, z

    return ps.testing.run(size, rank, **options)


@pytest.mark.parametrize("tau", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_trajectories_follow_algorithm_2(size, tau):
    z0, data_weights, gradient = problem(size)
    expected = overlapped_push(
        z0, data_weights, lambda k: irregular_column_stochastic(size, k, 3)[1], gradient, 0.1, ROUNDS, tau
    )
    results = trajectory(size, tau, Irregular(3), z0, data_weights, gradient)
    for k in range(ROUNDS + 1):
        np.testing.assert_allclose([path[k][0] for path, *_ in results], expected.z[k], rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose([path[k][1] for path, *_ in results], expected.w[k], rtol=1e-12)
    assert sum(weight for _, weight, _ in results) == pytest.approx(size, rel=1e-12), "close() brought all mass home"


def test_leaving_out_the_push_weight_visibly_fails_the_same_test():
    size, tau = 5, 2
    z0, data_weights, gradient = problem(size)
    biased = overlapped_push(
        z0, data_weights, lambda k: irregular_column_stochastic(size, k, 3)[1], gradient, 0.1, ROUNDS, tau, biased=True
    )
    results = trajectory(size, tau, Irregular(3), z0, data_weights, gradient)
    assert np.abs(np.array([path[ROUNDS][0] for path, *_ in results]) - biased.z[ROUNDS]).max() > 0.05


@pytest.mark.parametrize("tau", [1, 2, 4])
@pytest.mark.parametrize("size", [2, 7, 8])
def test_the_weight_settles_at_its_steady_value_and_never_falls_below(size, tau):
    z0 = np.zeros((size, 3))
    results = trajectory(size, tau, OnePeerExponential(), z0, np.ones(size), lambda i, k, z: 0 * z, rounds=3 * tau + 3)
    steady = 2 / (2 + tau)
    for path, *_ in results:
        weights = [weight for _, weight in path]
        assert min(weights) >= steady - 1e-12
        np.testing.assert_allclose(weights[tau:], steady, rtol=1e-12)


@pytest.mark.parametrize("tau", [1, 3])
def test_the_mean_moves_as_plain_sgd_with_full_step_and_full_weight_decay(tau):
    """With the same linear gradient everywhere, the weighted mean is one SGD run, whatever is in flight."""
    size, rate, decay, rounds = 6, 0.05, 0.1, 20
    z0 = np.random.default_rng(0).normal(size=(size, 4))

    def rank(comm):
        z = z0[comm.rank].copy()
        means = []
        with ps.PushSum([z], graph=shift, staleness=tau, comm=comm) as push_sum:
            for _ in range(rounds):
                with push_sum.local_step():
                    z -= rate * (1.0 + decay * z0.mean(0))
                push_sum.mix()
                with averaged(push_sum):
                    means.append(z.copy())
        return means

    for means in ps.testing.run(size, rank):
        for k, mean in enumerate(means, 1):
            np.testing.assert_allclose(mean, z0.mean(0) - k * rate * (1.0 + decay * z0.mean(0)), rtol=0, atol=1e-13)


@settings(max_examples=10, deadline=None)
@given(size=st.integers(1, 7), tau=st.integers(1, 4), seed=st.integers(0, 100))
def test_no_delay_changes_a_bit_and_all_mass_comes_home(size, tau, seed):
    late = ps.testing.run(size, lambda comm: numpy_training(comm, 8, staleness=tau), seed=seed)
    assert late == ps.testing.run(size, lambda comm: numpy_training(comm, 8, sleepy=seed, staleness=tau))
    assert sum(weight for _, weight in late) == pytest.approx(size, rel=1e-12)


def test_prescribed_delays_up_to_tau_steps_change_no_bit():
    slow_link = lambda sender, receiver, count: 0.03 if (sender, receiver) == (0, 1) else 0.0  # noqa: E731
    run = lambda **options: ps.testing.run(4, lambda comm: numpy_training(comm, 8, staleness=2), **options)  # noqa: E731
    assert run(delays=slow_link) == run()


@pytest.mark.parametrize("tau", [1, 2])
def test_saving_and_evaluating_every_three_steps_changes_no_bit(tau):
    def rank(comm, evaluates):
        z = np.random.default_rng(comm.rank).normal(size=50)
        with ps.PushSum([z], graph=shift, staleness=tau, comm=comm) as push_sum:
            for k in range(12):
                with push_sum.local_step():
                    z *= 0.9
                push_sum.mix()
                if evaluates and k % 3 == 0:
                    push_sum.state()
                    with averaged(push_sum):
                        pass
                    ps.consensus_distance(push_sum)
            return z.tobytes(), push_sum.push_weight

    assert ps.testing.run(5, lambda comm: rank(comm, True)) == ps.testing.run(5, lambda comm: rank(comm, False))


def test_drain_brings_every_message_home_and_training_goes_on():
    def rank(comm):
        z = np.full(10, float(comm.rank))
        weights = []
        with ps.PushSum([z], graph=OnePeerExponential(), staleness=3, comm=comm) as push_sum:
            for _ in range(4):
                for _ in range(5):
                    push_sum.mix()
                push_sum.drain()
                weights.append(push_sum.push_weight)
        return weights, z

    results = ps.testing.run(6, rank)
    for drained in range(4):
        assert sum(weights[drained] for weights, _ in results) == pytest.approx(6, rel=1e-13)
    np.testing.assert_allclose([z for _, z in results], 2.5, atol=0.05)


def test_rounding_on_the_wire_keeps_the_mean_exact_with_messages_in_flight():
    torch = pytest.importorskip("torch")
    start = np.random.default_rng(3).normal(size=(5, 200))

    def rank(comm):
        z = torch.from_numpy(start[comm.rank].copy())
        with ps.PushSum([z], graph=Irregular(7), staleness=2, wire_dtype="bfloat16", comm=comm) as push_sum:
            for _ in range(25):
                push_sum.mix()
            push_sum.drain()
            return push_sum.push_weight * z.numpy(), push_sum.push_weight

    results = ps.testing.run(5, rank)
    assert sum(weight for _, weight in results) == pytest.approx(5, rel=1e-13)
    np.testing.assert_allclose(sum(x for x, _ in results) / 5, start.mean(0), atol=1e-12)


def test_an_exception_in_the_thread_surfaces_in_the_next_round_with_its_traceback():
    def rank(comm):
        z = np.zeros(4)
        push_sum = ps.PushSum([z], graph=Ring(), staleness=1, comm=comm)
        push_sum.mix()
        if comm.rank == 1:
            with pytest.raises(PeerFailed, match="rank 0 stopped: OSError: the network card is gone"):
                for _ in range(100):
                    push_sum.mix()
            return

        caller, look = threading.get_ident(), push_sum.transport._inner.poll

        def poll(seconds):
            if threading.get_ident() == caller:
                return look(seconds)
            looked.set()
            raise OSError("the network card is gone")

        looked = threading.Event()
        push_sum.transport._inner.poll = poll
        assert looked.wait(60.0)
        with pytest.raises(OSError, match="network card") as caught:
            for _ in range(3):
                push_sum.mix()
        assert "_work" in [entry.name for entry in caught.traceback]
        push_sum.close()

    ps.testing.run(2, rank)


@pytest.mark.parametrize("tau", [1, 3, 9])
def test_push_weights_stay_above_0_when_rounds_begin_anew_after_a_drain_on_an_irregular_graph(tau):
    """Some ranks hold much less than a_i then, and nothing comes back for tau rounds."""

    def star(rank, size, round):
        return tuple(range(1, size)) if rank == 0 else (0,)

    def rank(comm):
        lowest = []
        with ps.PushSum([np.zeros(1)], graph=star, staleness=tau, data_weight=1.0 + 9 * comm.rank, comm=comm) as one:
            for _ in range(3):
                for _ in range(2 * tau + 3):
                    one.mix()
                    lowest.append(one.push_weight)
                one.drain()
        return min(lowest), one.push_weight

    results = ps.testing.run(5, rank)
    assert min(lowest for lowest, _ in results) > 0
    assert sum(weight for _, weight in results) == pytest.approx(5, rel=1e-13)


def test_strides_that_change_with_messages_in_flight_are_refused_with_the_way_out():
    torch = pytest.importorskip("torch")

    def rank(comm):
        parameter = torch.zeros(2, 3, 4, 4)
        holder = torch.nn.Parameter(parameter)
        push_sum = ps.PushSum({"weight": holder}, graph=Ring(), staleness=1, comm=comm)
        push_sum.mix()
        push_sum.drain()
        holder.data = holder.data.to(memory_format=torch.channels_last)
        push_sum.mix()  # drained: fine
        holder.data = holder.data.contiguous()
        with pytest.raises(LayoutError, match=r"drain\(\)"):
            push_sum.mix()

    ps.testing.run(2, rank)


@pytest.mark.parametrize("staleness", [-1, 1.5, True, "fast"])
def test_a_staleness_that_means_nothing_is_refused_with_its_value(staleness):
    with pytest.raises(ps.testing.RankErrors, match=f"staleness={staleness!r}"):
        ps.testing.run(1, lambda comm: ps.PushSum([np.zeros(1)], staleness=staleness, comm=comm))
