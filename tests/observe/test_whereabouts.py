"""Where a rank is, as another thread tells it while the program goes on."""

from __future__ import annotations

import gc
import weakref

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


class Rank:
    """What answers other ranks; it has the tensors too."""

    def __init__(self):
        self.answers = 0
        self.here = Whereabouts(self.answer)

    def answer(self):
        self.answers += 1


def test_who_answers_lives_no_longer_for_that_the_roll_call_still_asks_where_it_is():
    rank = Rank()
    here, gone = rank.here, weakref.ref(rank)
    here.span_begins("forward")
    assert rank.answers == 1
    del rank
    gc.collect()
    assert gone() is None
    here.span_ends("forward")
    assert here()[0] == "before its first round"
