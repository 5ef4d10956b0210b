"""What the first line says, and when it warns that the ranks of a host crowd its network card."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pushsum_opt.graphs import Ring
from pushsum_opt.memory import compiled_passes
from pushsum_opt.memory.host import HostMemory
from pushsum_opt.start.line import Host, compose, crowded_links


def exchange(size, nbytes, transport="mpi"):
    return SimpleNamespace(
        size=size,
        rank=0,
        graph=Ring(),
        staleness=1,
        memory=SimpleNamespace(name="host", nbytes=nbytes, lacks_numba=False),
        transport=SimpleNamespace(name=transport),
        bytes_per_round=lambda: float(nbytes),
    )


def hosts(*ranks):
    return [Host(ranks=count, threads=count, cores=set(range(64))) for count in ranks]


def test_the_line_counts_ranks_and_hosts():
    assert compose(exchange(16, 1024), hosts(8, 8), has_model=True) == (
        "16 ranks on 2 hosts; graph Ring(); staleness 1; host memory over mpi; 1.0 KiB sent per rank and step"
    )


def test_the_line_says_how_many_local_steps_there_are_to_a_round():
    assert "1.0 KiB sent per rank every 50 steps" in compose(exchange(16, 1024), hosts(8, 8), has_model=True, steps=50)


def test_where_eight_bits_could_be_faster_the_line_says_what_to_install():
    facts = exchange(16, 1024)
    facts.memory.lacks_numba = True
    assert "six times the processor time where numba is missing or cannot be used: pip install" in compose(
        facts, hosts(8, 8), has_model=True
    )
    facts.size = 1
    assert "numba" not in compose(facts, hosts(1), has_model=True)


@pytest.mark.parametrize(
    ("wire", "compiled", "said"), [("int8", False, True), ("int8", True, False), (None, False, False)]
)
def test_numba_is_lacking_where_eight_bits_are_not_compiled(monkeypatch, wire, compiled, said):
    monkeypatch.setattr(compiled_passes, "compiled_for", lambda work: object() if compiled else None)
    assert HostMemory([torch.zeros(3)], ["a"], wire, 1 << 20).lacks_numba is said


def test_ranks_that_each_send_a_model_through_one_card_are_told_what_else_there_is():
    """8 models of 1 MiB per card, against 2 (4 - 1) / 4 = 1.5 of an all-reduce over 4 hosts."""
    warning = crowded_links(exchange(32, 2**20), hosts(8, 8, 8, 8))
    assert "up to 8 ranks share a host" in warning
    assert "up to 8.0 MiB per network card and step" in warning
    assert "a hierarchical all-reduce sends 1.5 MiB" in warning
    assert "within_host='gradients'" in warning


@pytest.mark.parametrize(("ranks", "transport"), [((1, 1, 1), "mpi"), ((8,), "mpi"), ((4, 4), "loopback")], ids=str)
def test_nothing_is_said_where_no_card_is_crowded(ranks, transport):
    assert crowded_links(exchange(sum(ranks), 2**20, transport), hosts(*ranks)) is None
