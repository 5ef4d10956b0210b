"""What is collective says so first; everything else may be called on rank 0 alone, and nobody waits for it."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch
from optimizer.common import FIRST_ORDER, KINDS, network, star, train

import pushsum_opt as ps
from pushsum_opt import collectives

COLLECTIVE = {"add_param_group", "averaged", "averaged_state_dict", "close", "drain", "join"}
ROUNDS = {"step", "gossip"}
CONSTANT = {"OptimizerPreHook", "OptimizerPostHook", "profile_hook_step"}  # torch's own: types and a decorator


def save(optimizer):
    torch.save(optimizer.state_dict(), io.BytesIO())


def without_averaging(optimizer):
    with optimizer.no_sync():
        pass


LOCAL = {
    "buffers": lambda o: o.buffers,
    "defaults": lambda o: o.defaults,
    "eval": lambda o: hasattr(o, "eval"),
    "load_state_dict": lambda o: o.load_state_dict(copy.deepcopy(o.state_dict())),
    "no_sync": without_averaging,
    "optimizer": lambda o: o.optimizer,
    "param_groups": lambda o: o.param_groups[0].update(lr=0.05),
    "losses": lambda o: o.losses,
    "means": lambda o: o.means(),
    "members": lambda o: o.members,
    "on_change": lambda o: o.on_change(list),
    "points": lambda o: o.points,
    "push_weight": lambda o: o.push_weight,
    "rank": lambda o: o.rank,
    "size": lambda o: o.size,
    "report": lambda o: o.report(loss=1.0),
    "register_load_state_dict_post_hook": lambda o: o.register_load_state_dict_post_hook(lambda *_: None),
    "register_load_state_dict_pre_hook": lambda o: o.register_load_state_dict_pre_hook(lambda *_: None),
    "register_state_dict_post_hook": lambda o: o.register_state_dict_post_hook(lambda *_: None),
    "register_state_dict_pre_hook": lambda o: o.register_state_dict_pre_hook(lambda *_: None),
    "register_step_post_hook": lambda o: o.register_step_post_hook(lambda *_: None),
    "register_step_pre_hook": lambda o: o.register_step_pre_hook(lambda *_: None),
    "round": lambda o: o.round,
    "staleness": lambda o: o.staleness,
    "state": lambda o: o.state,
    "state_dict": lambda o: o.state_dict(),
    "stats": lambda o: o.stats(),
    "synchronize": lambda o: o.synchronize(),  # collective over a host, where there is one
    "train": lambda o: hasattr(o, "train"),
    "zero_grad": lambda o: o.zero_grad(),
}
UNNAMED = {
    "repr": repr,
    "str": str,
    "torch.save": save,
    "hasattr": lambda o: hasattr(o, "found_inf"),
    "loading a plain state": lambda o: o.load_state_dict(copy.deepcopy(o.optimizer.state_dict())),
    "making a scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 5),
    "clipping": lambda o: torch.nn.utils.clip_grad_norm_(o.param_groups[0]["params"], 1.0),
}


def test_every_public_name_is_known_to_be_collective_a_round_or_local():
    public = {name for name in dir(ps.PushSumOptimizer) if not name.startswith("_")}
    assert public == COLLECTIVE | ROUNDS | CONSTANT | set(LOCAL)


@pytest.mark.parametrize("name", sorted(COLLECTIVE))
def test_docstrings_of_collective_methods_begin_with_that_word(name):
    assert inspect.getdoc(getattr(ps.PushSumOptimizer, name)).startswith("Collective.")


@pytest.mark.parametrize("name", sorted(set(LOCAL) - {"state", "param_groups", "defaults"}))
def test_docstrings_of_local_methods_do_not(name):
    assert not (inspect.getdoc(getattr(ps.PushSumOptimizer, name)) or "").startswith("Collective.")


@pytest.mark.parametrize("name", collectives.__all__)
def test_docstrings_of_collective_functions_begin_with_that_word(name):
    assert inspect.getdoc(getattr(collectives, name)).startswith("Collective.")


@pytest.mark.parametrize(
    ("kind", "staleness"),
    [
        *((kind, 0) for kind in FIRST_ORDER),
        *(pytest.param("AdamW", staleness, marks=pytest.mark.slow) for staleness in (1, "unbounded")),
    ],
)
def test_rank_0_alone_may_use_everything_that_is_local(kind, staleness):
    """The others are in their next round meanwhile; nobody hangs, and the rounds go on."""
    uses = LOCAL | UNNAMED

    def rank(comm):
        model = network()
        options = {"graph": star, "staleness": staleness, "comm": comm, "timeout": 20.0}
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, **options) as wrapped:
            train(wrapped, model, 2, comm.rank)
            for what, use in uses.items():
                begin = wrapped.round
                try:
                    if comm.rank == 0:
                        use(wrapped)
                    train(wrapped, model, 2, comm.rank, start=begin)
                except Exception as error:
                    raise AssertionError(f"rank {comm.rank}, after rank 0 alone used {what}: {error!r}") from error
                assert wrapped.round == begin + 2, what
            return wrapped.round

    assert ps.testing.run(3, rank, timeout=200) == [2 + 2 * len(uses)] * 3
