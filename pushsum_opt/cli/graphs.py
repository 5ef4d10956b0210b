"""``pushsum graphs``: compare graphs at a number of ranks, look at one, draw them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import graphs
from ..errors import ConfigurationError
from ..mixing import Mixing, analyse
from .graph_names import named_graph

__all__ = ["HELP", "NAME", "add_arguments", "main"]

NAME = "graphs"
HELP = "Compare peer-selection graphs at a number of ranks: how fast they mix and what they cost."

_SHOWN_ROUNDS = 8
_SHOWN_RANKS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--size", type=int, required=True, metavar="N", help="number of ranks")
    parser.add_argument(
        "--graph",
        action="append",
        default=[],
        metavar="NAME",
        help="only this one, in detail; repeat it to compare several. A family, such as Ring or 'BaseK(2)', or one of "
        "your own, as file.py:name (default: all families)",
    )
    parser.add_argument(
        "--budget",
        type=int,
        default=1,
        metavar="M",
        help="messages that a rank can afford to send, and to receive, in a round; graphs that ask for more come last "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--parameters", type=float, default=25.6e6, metavar="P", help="parameters of the model (default: %(default)g)"
    )
    parser.add_argument(
        "--bytes", type=float, default=4.0, metavar="B", help="bytes per parameter on the wire (default: %(default)g)"
    )
    parser.add_argument(
        "--local-size", type=int, metavar="G", help="ranks per host, for Hierarchical (default: a divisor of N, <= 8)"
    )
    parser.add_argument(
        "--data-weights", metavar="V,V,...", help="the data weight of every rank, by commas (default: all equal)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw mixing curves, and the rounds of each --graph")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.epilog = "docs/graphs.md explains the columns and says which graph to choose."


def main(args: argparse.Namespace) -> int:
    """Analyse the graphs, print the table or the details, draw."""
    if args.size < 1:
        raise ConfigurationError(f"--size {args.size}: expected at least 1 rank")
    if args.local_size is not None and args.local_size < 1:
        raise ConfigurationError(f"--local-size {args.local_size}: expected at least 1 rank per host")
    weights = _weights(args.data_weights, args.size)
    chosen = [named_graph(name) for name in args.graph] or graphs.families(args.size, args.local_size)
    for graph in chosen:
        graph.check(args.size)
    found = [(graph, analyse(graph, args.size, data_weights=weights)) for graph in chosen]
    found.sort(key=lambda pair: _rank(pair[1], args.budget))
    if args.plot is not None:
        from .graph_plots import draw

        draw(args.plot, found, with_rounds=bool(args.graph))
    megabytes = args.parameters * args.bytes / 1e6
    if args.json:
        print(json.dumps([_record(mixing, megabytes) for _, mixing in found], indent=2))
    elif args.graph and len(found) == 1:
        print(_details(*found[0], megabytes, weights))
    else:
        print(_table([mixing for _, mixing in found], args.size, args.budget, megabytes))
    return 0


def _weights(text: str | None, size: int) -> list[float] | None:
    if text is None:
        return None
    try:
        weights = [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigurationError(f"--data-weights {text}: expected numbers, separated by commas") from None
    if len(weights) != size or not all(0 < weight < math.inf for weight in weights):
        raise ConfigurationError(f"--data-weights {text}: expected {size} numbers above 0, one for each rank")
    return weights


def _rank(mixing: Mixing, budget: int) -> tuple[Any, ...]:
    """Sort: what the budget allows first, then what mixes in fewer rounds, then what costs less; then the default."""
    return (
        mixing.busiest > budget,
        _or_never(mixing.rounds_to(1e-3)),
        _or_never(mixing.rounds_to_exact),
        mixing.busiest,
        mixing.messages,
        mixing.graph != repr(graphs.default(mixing.size)),
    )


def _or_never(rounds: int | None) -> float:
    return math.inf if rounds is None else rounds


# ---------------------------------------------------------------------- what is printed


def _table(found: Sequence[Mixing], size: int, budget: int, megabytes: float) -> str:
    rows = [
        ("", "rounds to", "exact", "messages", "most", "MB per", "sigma_2", "", ""),
        ("graph", "1e-3", "after", "a round", "at once", "round", "of a period", "period", "push weight"),
    ]
    rows += [(mixing.graph, *_cells(mixing, megabytes)) for mixing in found]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, len(row) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    head, body = lines[:2], lines[2:]
    within = sum(mixing.busiest <= budget for mixing in found)
    peers = "1 message" if budget == 1 else f"up to {budget} messages"
    out = [f"{size} rank{'s' * (size > 1)}, messages of {megabytes:g} MB", "", *head]
    if within:
        out += [f"-- {peers} per rank and round, best first", *body[:within]]
    if within < len(body):
        out += [f"-- more than {peers.removeprefix('up to ')}", *body[within:]]
    return "\n".join(out)


def _cells(mixing: Mixing, megabytes: float) -> tuple[str, str, str, str, str, str, str, str]:
    return (
        _rounds(mixing.rounds_to(1e-3)),
        _rounds(mixing.rounds_to_exact),
        f"{mixing.messages:.2f}",
        f"{mixing.busiest}",
        f"{mixing.messages * megabytes:.1f}",
        "-" if mixing.second_singular_value is None else _small(mixing.second_singular_value),
        "-" if mixing.period is None else f"{mixing.period}",
        _span(mixing.push_weights),
    )


def _details(graph: graphs.Graph, mixing: Mixing, megabytes: float, weights: Sequence[float] | None) -> str:
    size = mixing.size
    second = mixing.second_singular_value
    period = "never repeats" if mixing.period is None else f"{mixing.period} round{'s' * (mixing.period > 1)}"
    lines = [
        f"{mixing.graph} at {size} rank{'s' * (size > 1)}",
        "",
        f"  period                 {period}",
        f"  messages               {mixing.messages:.2f} per rank and round, at most {mixing.busiest} at once",
        f"  bytes                  {mixing.messages * megabytes:.1f} MB per rank and round",
        f"  rounds to 1e-3         {_rounds(mixing.rounds_to(1e-3))}",
        f"  exact after            {_rounds(mixing.rounds_to_exact)}",
        f"  sigma_2 of a period    {'-' if second is None else _small(second)}",
        f"  doubly stochastic      {'yes' if mixing.doubly_stochastic else 'no: the push weights differ'}",
        f"  push weight w          {_span(mixing.push_weights)}",
        f"  steps scaled by a / w  {_span(mixing.step_scales)}",
    ]
    if weights is not None:
        equal = analyse(graph, size)
        lines += [
            "  with equal data weights instead",
            f"    rounds to 1e-3       {_rounds(equal.rounds_to(1e-3))}",
            f"    push weight w        {_span(equal.push_weights)}",
            f"    steps scaled by      {_span(equal.step_scales)}",
        ]
    lines += ["", "  worst-case consensus error after k rounds"]
    some = range(min(len(mixing.rounds), 13))
    lines += [f"    {mixing.rounds[index]:>4}  {_small(mixing.errors[index])}" for index in some]
    lines += ["", "  rank > out-peers, with their shares"]
    for round in range(min(graph.window(size), _SHOWN_ROUNDS)):
        lines += [f"    round {round}", *_edges(graph, size, round)]
    return "\n".join(lines)


def _edges(graph: graphs.Graph, size: int, round: int) -> list[str]:
    lines = []
    for rank in range(min(size, _SHOWN_RANKS)):
        gives = graph.gives(rank, size, round)
        shown = ", ".join(f"{peer} ({share:.3g})" for peer, share in gives[:6]) or "nobody"
        lines.append(f"      {rank:>3} > {shown}{' ...' if len(gives) > 6 else ''}")
    return [*lines, "      ..."] if size > _SHOWN_RANKS else lines


def _rounds(rounds: int | None) -> str:
    return "never" if rounds is None else f"{rounds}"


def _small(value: float) -> str:
    return "0" if value < 1e-12 else f"{value:.3g}"


def _span(span: tuple[float, float]) -> str:
    low, high = span
    return f"{low:.3g}" if high - low < 1e-9 else f"{low:.3g} to {high:.3g}"


def _record(mixing: Mixing, megabytes: float) -> dict[str, Any]:
    return {
        **dataclasses.asdict(mixing),
        "rounds_to_thousandth": mixing.rounds_to(1e-3),
        "megabytes_per_round": mixing.messages * megabytes,
    }
