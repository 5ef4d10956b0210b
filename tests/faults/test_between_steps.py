"""Ranks die in what all ranks do now and then between steps: they add parameters, or a checkpoint cannot be written."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch._dynamo  # the first optimizer would import it, and take longer than a timeout on a busy machine

import pushsum_opt as ps
from pushsum_opt.channel import Channel
from pushsum_opt.errors import CheckpointError, RanksLost
from pushsum_opt.testing import Faults, Moment
from pushsum_opt.transport.loopback.injection import Killed

pytestmark = pytest.mark.filterwarnings("ignore::pushsum_opt.graphs.speed.SlowMixingWarning")

MODES = [0, 1, 2, "unbounded"]


class Training:
    """One rank's steps; now and then it gets new parameters, which start with values of its own."""

    def __init__(self, comm, staleness):
        self.me = comm.rank
        self.z = torch.full((3,), float(self.me), requires_grad=True)
        self.wrapped = torch.optim.SGD([self.z], lr=0.0)
        self.added = []
        self.optimizer = ps.PushSumOptimizer(
            self.wrapped, comm=comm, staleness=staleness, on_loss="continue", timeout=20
        )

    def new(self):
        self.added.append(torch.full((2 + len(self.added),), 10.0 * len(self.added) + self.me, requires_grad=True))
        return {"params": [self.added[-1]]}

    def step(self):
        for tensor in (self.z, *self.added):
            tensor.grad = torch.zeros_like(tensor)
        self.optimizer.step()

    def save_in_vain(self, folder):
        """Catch the error, as a script does that would rather train on than end for a full disk."""
        with pytest.raises(CheckpointError, match="rank"):
            ps.checkpoint.save(folder / "a file", self.optimizer)

    def said(self):
        self.optimizer.drain()
        exchanged = list(self.optimizer.push_sum.memory.tensors)
        said = self.optimizer.members, self.optimizer.round, exchanged, [tensor.tolist() for tensor in self.added]
        mass = ps.sum(self.optimizer.push_weight)
        self.optimizer.close()
        return *said, mass


def check(said, steps, added):
    left = [one for one in said if one is not None]
    for members, round, exchanged, values, mass in left:
        assert members == left[0][0]
        assert round == steps
        assert len(exchanged) == 1 + added
        assert [len(value) for value in values] == [2 + k for k in range(added)]
        assert mass == pytest.approx(len(left), abs=1e-12) or len(left) < len(members)
        for k, value in enumerate(values):  # all began with the values of one rank, and none has moved them since
            assert value == pytest.approx(left[0][3][k])
            assert value[0] - 10 * k == pytest.approx(round_of(value[0] - 10 * k))


def round_of(value):
    return float(np.round(value))


@pytest.mark.parametrize("staleness", MODES)
@pytest.mark.parametrize(
    "what", ["comparing the set-up", "comparing states", "broadcast_parameters", "every rank to end its call"]
)
@pytest.mark.parametrize("quietly", [False, True])
def test_parameters_that_are_added_while_a_rank_dies_are_added_on_all_that_are_left(quietly, what, staleness):
    """Rank 0, whose values the others take, dies in the middle; then they are those of the lowest that is left."""

    def train(comm):
        training = Training(comm, staleness)
        for k in range(8):
            if k == 4:
                add = training.wrapped if quietly else training.optimizer
                add.add_param_group(training.new())
            training.step()
        return training.said()

    call = "step() with new parameters" if quietly else "add_param_group()"
    faults = Faults({0: Moment(call=call, what=what)} if what[0] != "e" else {0: Moment(what=what, count=2)})
    said = ps.testing.run(4, train, faults=faults, timeout=60)
    assert faults.died == [0]
    check(said, 8, 1)


def test_a_checkpoint_error_is_raised_by_all_survivors_or_by_none(tmp_path, monkeypatch):
    """Rank 1 hears of the death before it knows that all ranks have the error; rank 0 knows it, and wants to go on."""
    (tmp_path / "a file").touch()
    barrier, worlds = Channel.barrier, []

    def hears_of_a_death(channel, what, **options):
        barrier(channel, what, **options)
        if channel.rank == 1 and what.startswith("everyone to see the error") and not worlds[0].dead:
            worlds[0].kill(2)
            raise RanksLost("as where MPI has ended the barrier on other ranks, and not on this one")

    monkeypatch.setattr(Channel, "barrier", hears_of_a_death)

    def train(comm):
        worlds.append(comm.world)
        training = Training(comm, 0)
        training.step()
        training.save_in_vain(tmp_path)
        if comm.rank == 2:
            raise Killed(2)
        training.step()
        return training.said()

    check(ps.testing.run(3, train, faults=Faults({}), timeout=60), 2, 0)


@pytest.mark.parametrize("seed", range(40))
def test_survivors_stay_in_step_whoever_dies_at_whatever_moment(seed, tmp_path):
    (tmp_path / "a file").touch()
    draw = random.Random(3000 + seed)
    size, staleness = draw.randint(2, 6), draw.choice(MODES)
    dying = draw.sample(range(size), draw.randint(1, size - 1) if draw.random() < 0.4 else 1)
    calls = ["add_param_group()", "new parameters", "checkpoint", "recovery", ""]
    moments = {rank: Moment(call=draw.choice(calls), count=draw.randint(1, 25)) for rank in dying}
    script = [draw.choice(["step", "step", "add", "quietly", "save"]) for _ in range(14)]

    def train(comm):
        training = Training(comm, staleness)
        for what in script:
            if what == "add":
                training.optimizer.add_param_group(training.new())
            elif what == "quietly":
                training.wrapped.add_param_group(training.new())
                training.step()
            elif what == "save":
                training.save_in_vain(tmp_path)
            else:
                training.step()
        return training.said()

    faults = Faults(moments, seed=seed, spread=draw.choice([0.0, 1e-3, 3e-3]))
    said = ps.testing.run(size, train, faults=faults, timeout=60)
    steps = sum(what in ("step", "quietly") for what in script)
    check(said, steps, sum(what in ("add", "quietly") for what in script))
