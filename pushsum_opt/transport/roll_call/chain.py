"""Who waits for whom for whom: what ranks that wait tell each other, put together to one sentence.

A rank that waits asks the ranks that it waits for. One that waits itself answers for whom it
waits, with what it has learnt about that one in the same way. So a chain comes to each rank link by link.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

__all__ = ["MOST_LINKS", "Link", "blocks", "older", "sentence", "until_again"]

Link = dict[str, Any]
"""What is known of one rank, as it travels in an answer:

``rank``: its number in the job. ``what``: what it is waited for there. ``waits``: whether it waits itself; then the
next link is the rank that it waits for, if that is known. ``doing``: where its program is, and ``since``, for how many
seconds, as it said ``ago`` seconds ago; ``sent``: the last round of which a message came, ``sent_ago`` seconds ago.
Each of these is None where it is not known.
"""

MOST_LINKS = 12
JUST_NOW_S = 2.5
"""An answer that is not older says where a rank is; ranks that answer are asked again every second."""


def blocks(chain: Sequence[Link]) -> bool:
    """Tell whether a chain ends at a rank that does not wait: all others wait for that one."""
    return bool(chain) and not chain[-1]["waits"]


def older(chain: Sequence[Link], seconds: float) -> list[Link]:
    """Return a chain as it is known some seconds later."""
    return [
        {**link, **{key: link[key] + seconds for key in ("ago", "sent_ago") if link.get(key) is not None}}
        for link in chain
    ]


def until_again(chain: Sequence[Link], ranks: Collection[int]) -> list[Link]:
    """Return a chain up to the first of some ranks, which were in it before: they wait for each other."""
    for count, link in enumerate(chain, 1):
        if link["rank"] in ranks:
            return [*chain[: count - 1], {**link, "waits": True}]
    return list(chain)


def sentence(chain: Sequence[Link], name: Callable[[int], int]) -> str:
    """Say what a chain is, beyond its first rank; "" where there is nothing to say.

    Args:
        name: gives the name of a rank of the job, as the user knows it.

    >>> end = {"rank": 5, "what": "its message of round 41", "waits": False, "doing": 'in "forward"', "since": 0.0,
    ...     "ago": 62.0, "sent": 40, "sent_ago": 63.0}
    >>> sentence([{"rank": 2, "what": "its message of round 42", "waits": True}, end], lambda rank: rank)
    'Rank 2 waits for rank 5 (its message of round 41), which was last seen in "forward", 62 s ago'
    >>> sentence([{**end, "doing": None}], lambda rank: rank)
    'The last message of rank 5, of round 40, came 63 s ago, and nothing was heard from it since'
    """
    if not chain:
        return ""
    links = list(chain)
    if len(links) == 1:
        return _end(links[0], f"rank {name(links[0]['rank'])}", alone=True)
    text = f"Rank {name(links[0]['rank'])} waits for rank {name(links[1]['rank'])} ({links[1]['what']})"
    for link in links[2:]:
        text += f", which waits for rank {name(link['rank'])} ({link['what']})"
    end = "" if links[-1]["waits"] else _end(links[-1], "", alone=False)
    return f"{text}, {end}" if end else text


def _end(link: Link, who: str, *, alone: bool) -> str:
    subject = f"{who[:1].upper()}{who[1:]}" if alone else "which"
    if link["doing"] is not None:
        if link["ago"] <= JUST_NOW_S:
            for_s = "" if link["since"] is None else f", for {link['since'] + link['ago']:.0f} s now"
            return f"{subject} is {link['doing']}{for_s}"
        return f"{subject} was last seen {link['doing']}, {link['ago']:.0f} s ago"
    if link["sent"] is not None:
        of = f" of {who}" if alone else ""
        begin = "The" if alone else "whose"
        return (
            f"{begin} last message{of}, of round {link['sent']}, came {link['sent_ago']:.0f} s ago, and nothing was "
            "heard from it since"
        )
    return "" if alone else "from which nothing was heard"
