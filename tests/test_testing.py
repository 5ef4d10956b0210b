"""A rank of ``testing.run`` is a rank to every function, as a process of mpirun is."""

from __future__ import annotations

import threading

import numpy as np
import torch

import pushsum_opt as ps


def test_questions_without_a_communicator_are_answered_for_the_rank_of_the_thread():
    def rank(comm):
        return ps.rank(), ps.size(), ps.local_rank(), ps.local_size(), str(ps.local_device())

    device = "cpu" if not torch.cuda.is_available() else "cuda:0"
    found = ps.testing.run(5, rank, local_size=2)
    assert [row[:4] for row in found] == [(0, 5, 0, 2), (1, 5, 1, 2), (2, 5, 0, 2), (3, 5, 1, 2), (4, 5, 0, 1)]
    assert found[0][4] == device


def test_calls_without_a_communicator_are_over_the_ranks_of_the_run():
    def rank(comm):
        model = torch.nn.Linear(1, 1)
        with torch.no_grad():
            model.weight.fill_(ps.rank())
        ps.broadcast_parameters(model, root=2)
        with ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, data_weight=1 + ps.rank()) as own:
            same = own.push_sum.comm is comm
        z = np.array([float(ps.rank())])
        with ps.PushSum([z]) as push_sum:
            push_sum.mix()
        return model.weight.item(), same, ps.average(float(ps.rank())), ps.broadcast_object(ps.rank(), root=1)

    assert ps.testing.run(3, rank) == [(2.0, True, 1.0, 1)] * 3


def test_average_without_arguments_takes_the_data_weight_of_the_ranks_own_optimizer():
    def rank(comm):
        model = torch.nn.Linear(1, 1)
        with ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, data_weight=1 + 2 * ps.rank()):
            return ps.average(float(ps.rank()))

    assert ps.testing.run(2, rank) == [0.75, 0.75]


def test_after_a_run_and_beside_it_this_process_is_what_it_was():
    def rank(comm):
        seen = []
        thread = threading.Thread(target=lambda: seen.append(ps.size()))
        thread.start()
        thread.join()
        return seen[0]

    assert ps.testing.run(2, rank) == [1, 1]
    assert (ps.rank(), ps.size()) == (0, 1)


def test_a_run_inside_a_run_has_ranks_of_its_own():
    def outer(comm):
        return ps.testing.run(3, lambda inner: (ps.rank(), ps.size())), ps.rank()

    assert ps.testing.run(2, outer) == [([(0, 3), (1, 3), (2, 3)], rank) for rank in range(2)]
