"""Which arguments do not go together: one table, by which constructors refuse, and which a page of the docs prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigurationError
from .job import world

__all__ = ["RULES", "Rule", "refuse", "table"]

Given = Mapping[str, Any]
"""Arguments by name; one that a call does not have is missing."""


@dataclass(frozen=True)
class Rule:
    """Two arguments that do not go together."""

    first: str
    """The one that is refused, as a user writes it."""

    second: str
    """The one that it is refused with."""

    broken: Callable[[Given], bool]
    """Tells whether the arguments break the rule."""

    shown: Callable[[Given], str]
    """Gives what was passed, for the error."""

    why: str
    use: str
    """What to do instead."""


def _asynchronous(given: Given) -> bool:
    return given.get("staleness") == "unbounded"


def _pair(first: str, second: str) -> Callable[[Given], str]:
    return lambda given: f"{first}={given[first]!r} with {second}={given[second]!r}"


RULES = (
    Rule(
        "rate_correction=True",
        "staleness=0, 1, 2, ...",
        lambda given: bool(given.get("rate_correction")) and not _asynchronous(given),
        _pair("rate_correction", "staleness"),
        "where rounds are in step, all ranks take equally many steps, and there is nothing to correct",
        'It is for staleness="unbounded"',
    ),
    Rule(
        "within_host",
        'staleness="unbounded"',
        lambda given: given.get("within_host") is not None and _asynchronous(given),
        _pair("within_host", "staleness"),
        "the lanes of a host would merge different messages, and its parts of the model would not belong together",
        "Use staleness=0, 1, 2, ...",
    ),
    Rule(
        "algorithm=NoLoCo(...) or DiLoCo(...)",
        'staleness=1, 2, ... or "unbounded"',
        lambda given: getattr(given.get("algorithm"), "synchronous", False) and given.get("staleness", 0) != 0,
        _pair("algorithm", "staleness"),
        "what an outer step merges would be of an earlier one, from which the slow weights have moved on",
        "Use staleness=0: a rank waits for its peers only once in `every` steps",
    ),
    Rule(
        "algorithm=NoLoCo(...) or DiLoCo(...)",
        "gossip_every=2, 3, ...",
        lambda given: (
            getattr(given.get("algorithm"), "local_steps", None) is not None and given.get("gossip_every", 1) != 1
        ),
        _pair("algorithm", "gossip_every"),
        "its `every` counts local steps already",
        "Leave gossip_every out, and give the algorithm another `every`",
    ),
    Rule(
        "algorithm=PeriodicAverage(...) or SlowMomentum(...)",
        'staleness="unbounded"',
        lambda given: getattr(given.get("algorithm"), "in_step", False) and _asynchronous(given),
        _pair("algorithm", "staleness"),
        "asynchronous ranks take different numbers of rounds, so they would not meet for the exact average",
        "Use staleness=0, 1, 2, ... with it",
    ),
    Rule(
        "algorithm=SlowMomentum(...), NoLoCo(...) or DiLoCo(...)",
        "gossip_state",
        lambda given: getattr(given.get("algorithm"), "moves_alone", False) and bool(given.get("gossip_state")),
        _pair("algorithm", "gossip_state"),
        "the slow step moves the parameters alone, and the points would stay behind",
        "Use PeriodicAverage, or gossip in every round",
    ),
    Rule(
        'buffers="average" or "gossip"',
        "no model",
        lambda given: given.get("buffers") in ("average", "gossip") and given.get("model") is None,
        lambda given: f"buffers={given['buffers']!r} without a model",
        "its buffers are not known",
        "Pass PushSumOptimizer(optimizer, model)",
    ),
    Rule(
        "join()",
        "within_host",
        lambda given: bool(given.get("join")) and given.get("within_host") is not None,
        lambda given: f"join() with within_host={given['within_host']!r}",
        "the ranks of a host average their gradients in every step, so they take equally many",
        "Give them equally many batches",
    ),
    Rule(
        'on_loss="continue"',
        'within_host="ddp" or "fsdp"',
        lambda given: given.get("on_loss") == "continue" and given.get("within_host") in ("ddp", "fsdp"),
        _pair("on_loss", "within_host"),
        "torch.distributed does not return from what it does with a rank that has died, or is in a recovery",
        'Use within_host="gradients"; or on_loss="stop", and start again from a checkpoint',
    ),
    Rule(
        "join(divide_by_active=True)",
        'staleness="unbounded"',
        lambda given: bool(given.get("divide_by_active")) and _asynchronous(given),
        _pair("divide_by_active", "staleness"),
        "asynchronous ranks have no round in common in which they could count the active ones",
        "Use staleness=0, 1, 2, ... with it",
    ),
)


def refuse(comm: Any = None, **given: Any) -> None:
    """Raise ConfigurationError for the first rule that arguments break.

    Args:
        comm: names this rank in the error.
    """
    for rule in RULES:
        if rule.broken(given):
            rank = world.communicator(comm).Get_rank()
            raise ConfigurationError(f"rank {rank}: {rule.shown(given)}: {rule.why}. {rule.use}")


def table() -> str:
    """Return the rules as a table in Markdown."""
    rows = [f"| `{rule.first}` | {_code(rule.second)} | {rule.why} | {rule.use} |" for rule in RULES]
    return "\n".join(["| this | not with | because | instead |", "|---|---|---|---|", *rows])


def _code(text: str) -> str:
    return text if " model" in text else f"`{text}`"
