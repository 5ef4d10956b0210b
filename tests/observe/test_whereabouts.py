"""Where a rank is, as another thread tells it while the program goes on."""

from __future__ import annotations

from pushsum_opt.observe.whereabouts import Whereabouts


class EndsNow(list):
    """The open spans, of which the last one ends as soon as somebody has seen that there is one."""

    def __bool__(self):
        there = len(self) > 0
        self.clear()
        return there

    def __getitem__(self, place):
        found = super().__getitem__(place)
        self.clear()
        return found


def test_a_span_that_ends_while_it_is_asked_for_is_no_error():
    """An error would end for good what the thread that moves messages answers to other ranks."""
    here = Whereabouts(lambda: None)
    assert here()[0] == "before its first round"
    here._spans = EndsNow()
    here.span_begins("forward")
    assert here()[0] in ('in "forward"', "before its first round")
    assert here()[0] == "before its first round"
