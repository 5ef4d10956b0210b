"""What a transport over torch.distributed keeps does not grow with what it has done."""

from __future__ import annotations

import numpy as np
import pytest

from pushsum_opt.job import ending
from pushsum_opt.job.process_groups import Job
from pushsum_opt.transport.torch_distributed import TorchTransport, job


@pytest.fixture
def transport(monkeypatch):
    """One process alone, which can send to itself."""
    monkeypatch.setattr(job, "_roll", None)
    for name in ("when_the_end_begins", "when_all_is_closed", "when_stopped"):
        monkeypatch.setattr(ending, name, lambda callback: None)
    made = TorchTransport(Job(None, 0, 1, "a test").everyone())
    yield made
    made.close()


@pytest.mark.parametrize("early", [True, False])
def test_nothing_is_kept_of_messages_that_were_received(transport, early):
    """Every collective has a tag of its own, and a run makes millions of them."""
    for tag in range(5):
        box = np.zeros(4, np.uint8)
        begin = [
            lambda tag=tag: transport.post(np.full(4, tag, np.uint8), 0, tag, "it"),
            lambda tag=tag, box=box: transport.expect(box, 0, tag, "it"),
        ]
        tickets = [one() for one in (begin if early else begin[::-1])]
        while not all(ticket.done for ticket in tickets):
            transport.poll(1.0)
        assert (box == tag).all()
    assert not transport._arrived
    assert not transport._expected
    assert transport.under_way == 0
