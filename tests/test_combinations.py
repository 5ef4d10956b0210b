"""Arguments that do not go together are refused; all others go together; and the page says which."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import pushsum_opt as ps
from pushsum_opt import combinations
from pushsum_opt.errors import ConfigurationError

ARGUMENTS = {
    "staleness": [0, 1, "unbounded"],
    "within_host": [None, "gradients"],
    "algorithm": [None, "PeriodicAverage", "SlowMomentum", "NoLoCo", "DiLoCo"],
    "gossip_every": [1, 2],
    "gossip_state": [(), ("momentum_buffer",)],
    "buffers": [None, "average"],
    "model": [True, False],
    "rate_correction": [False, True],
}
WITH_OUTER_STEPS = ("NoLoCo", "DiLoCo")
MOVE_ALONE = ("SlowMomentum", *WITH_OUTER_STEPS)
REFUSED = [  # what the page says, written down a second time
    lambda staleness, rate_correction, **_: rate_correction and staleness != "unbounded",
    lambda staleness, within_host, **_: within_host is not None and staleness == "unbounded",
    lambda staleness, algorithm, **_: algorithm is not None and staleness == "unbounded",
    lambda algorithm, gossip_state, **_: algorithm in MOVE_ALONE and gossip_state != (),
    lambda staleness, algorithm, **_: algorithm in WITH_OUTER_STEPS and staleness != 0,
    lambda gossip_every, algorithm, **_: algorithm in WITH_OUTER_STEPS and gossip_every != 1,
    lambda buffers, model, **_: buffers == "average" and not model,
]
MADE = {
    "PeriodicAverage": lambda: ps.algorithms.PeriodicAverage(every=2),
    "SlowMomentum": lambda: ps.algorithms.SlowMomentum(every=2),
    "NoLoCo": lambda: ps.algorithms.NoLoCo(every=2),
    "DiLoCo": lambda: ps.algorithms.DiLoCo(every=2),
}


def take_two_steps(comm, options):
    model = torch.nn.Linear(2, 1)
    algorithm = options["algorithm"] and MADE[options["algorithm"]]()
    given = {**options, "algorithm": algorithm, "comm": comm}
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with ps.PushSumOptimizer(inner, model if given.pop("model") else None, **given) as optimizer:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()


@pytest.mark.parametrize("staleness", ARGUMENTS["staleness"])
def test_every_combination_is_refused_with_the_reason_or_works(staleness):
    def rank(comm):
        counts = {True: 0, False: 0}
        for values in itertools.product(*ARGUMENTS.values()):
            options = dict(zip(ARGUMENTS, values, strict=True))
            if options["staleness"] != staleness:
                continue
            refused = any(rule(**options) for rule in REFUSED)
            counts[refused] += 1
            try:
                take_two_steps(comm, options)
            except ConfigurationError as error:
                assert refused, (options, str(error))
                assert any(rule.why in str(error) and rule.use in str(error) for rule in combinations.RULES)
                assert str(error).startswith("rank 0: ")
            else:
                assert not refused, options
        return counts

    counts = ps.testing.run(1, rank)[0]
    assert counts[True] > 10
    assert counts[False] > 3


def test_what_a_block_does_not_go_with_is_refused():
    def rank(comm):
        parameter = torch.zeros(2, requires_grad=True)
        inner = torch.optim.SGD([parameter], lr=0.1)
        optimizer = ps.PushSumOptimizer(inner, staleness="unbounded", comm=comm)
        with optimizer, pytest.raises(ConfigurationError, match="divide_by_active=True with staleness='unbounded'"):
            optimizer.join(divide_by_active=True).__enter__()
        optimizer = ps.PushSumOptimizer(inner, within_host="gradients", comm=comm)
        with optimizer, pytest.raises(ConfigurationError, match=r"join\(\) with within_host='gradients'"):
            optimizer.join().__enter__()

    ps.testing.run(1, rank)


def test_the_page_prints_the_table():
    page = Path(__file__).parents[1] / "docs" / "variants.md"
    assert combinations.table() in page.read_text(encoding="utf-8")
