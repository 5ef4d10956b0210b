"""A rank that has waited for a while asks the ranks that it waits for, and learns why they do not come.

The questions are small messages, sent only by a rank that has waited for half a second (:mod:`.asking`). A rank that
computes answers where a thread moves its messages, and at the spans of its program; otherwise it does not, and nothing
follows from that (:mod:`.answering`). Three kinds of answers prove that a wait will never end:

* the other rank has ended its program;
* the other rank says that it has left, such as a test that has failed on it;
* the other rank waits too, and for this one.

What a rank waits for is always that others *reach* a number on a channel: the 3rd collective of a communicator, round 7
of an exchange. Each rank counts what it has reached, and an answer says how far the rank is that answers. So an answer
is conclusive only where the other rank has not begun what this one waits for: a message that is under way, or a rank
that is slow, raises no alarm.
"""

from __future__ import annotations

from .answering import LISTEN_AFTER_S, Message, Post, RollCall
from .asking import Waiting
from .needs import Need, Progress, group_name

__all__ = ["LISTEN_AFTER_S", "Message", "Need", "Post", "Progress", "RollCall", "Waiting", "group_name"]
