"""A rank that fails tells all who may wait for it, whatever else fails meanwhile."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pushsum_opt.push_sum.lifetime import Lifetime


def broken(*args, **more):
    raise OSError("this fails too")


@pytest.mark.parametrize("breaks", ["tell", "poll", "participant"])
def test_what_fails_on_the_way_out_keeps_no_other_rank_from_being_told(breaks):
    """After an error of the thread that moves messages, every poll raises that error again."""
    told = []

    def tells(name):
        return broken if name == breaks else lambda *args, **more: told.append((name, more.get("reason")))

    channel = SimpleNamespace(tell=tells("tell"), transport=SimpleNamespace(poll=tells("poll")))
    host = SimpleNamespace(tell=tells("participant"), size=4, rank=0)
    lifetime = Lifetime(channel, {1}, host, lambda: 7)
    with pytest.raises(ValueError, match="it does not fit"), lifetime.failing_together():
        raise ValueError("it does not fit")
    reason = "ValueError: it does not fit"
    expected = {"tell": reason, "poll": None, "participant": reason}
    assert dict(told) == {name: said for name, said in expected.items() if name != breaks}
