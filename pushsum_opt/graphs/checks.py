"""What is checked of a graph before ranks rely on it, and what they compare."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import GraphError

if TYPE_CHECKING:
    from .base import Graph

__all__ = ["check", "check_peers", "declares", "fingerprint"]

PAIRS = 1 << 12  # (rank, round) pairs looked at, and hashed
PROVEN_PAIRS = 1 << 10  # the same, of a family whose promises are proven ...
PROVEN_SAMPLE = 1 << 8  # ... and how many of them where there are more
CHECKED_EDGES = 1 << 20  # no more pairs are looked at after so many edges ...
PROVEN_EDGES = 1 << 14  # ... or, of a family whose promises are proven, so many
CONNECTING_EDGES = 1 << 21  # edges, and pairs, after which connectivity is left open
INVERTED = 16  # in-peers and out-peers of a pair that are asked in return
HASHED_EDGES = 1 << 17


def check(graph: Graph, size: int) -> None:
    """Check every promise; see :meth:`Graph.check`."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise GraphError(f"{graph!r}: size={size!r}: expected a whole number of ranks, at least 1")
    graph.check_size(size)
    if size == 1:
        return
    parts = graph.parts(size)
    if parts:
        for part, its_size in parts:
            part.check(its_size)
        return
    period = graph.period(size)
    if period is not None and period < 1:
        raise GraphError(f"{graph!r}: period({size}) is {period}: expected at least 1 round, or None for never")
    window = graph.window(size)
    proven = declares(graph, "promises_proven")
    sampled = proven and size * window > PROVEN_PAIRS
    edges = 0
    for rank, round in _spread(size, window, PROVEN_SAMPLE if sampled else PAIRS):
        edges += _check_pair(graph, rank, size, round)
        if edges > (PROVEN_EDGES if proven else CHECKED_EDGES):
            break
    if not sampled:
        _check_connected(graph, size, window)


def declares(graph: Graph, name: str) -> bool:
    """Say whether the graph's own class, not one that it inherits from, declares a proven property."""
    return bool(vars(type(graph)).get(name, False))


def _check_pair(graph: Graph, rank: int, size: int, round: int) -> int:
    """Check one rank in one round; return the number of its out-peers."""
    peers = graph.out_peers(rank, size, round)
    check_peers(graph, rank, size, round, peers)
    shares = graph.shares(rank, size, round)
    if len(shares) != len(peers):
        where = _where(graph, rank, size, round)
        raise GraphError(f"{where}: {len(shares)} shares {shares} for the out-peers {peers}: expected one each")
    # "not (a < b)" rather than "a >= b", so that nan is refused too.
    if any(not 0.0 < share < 1.0 for share in shares) or not sum(shares) < 1.0:
        raise GraphError(
            f"{_where(graph, rank, size, round)}: shares {shares} for the out-peers {peers} sum to {sum(shares):g}: "
            "each must be above 0 and their sum below 1, so that the rank keeps some mass and its column of the "
            "mixing matrix sums to 1"
        )
    _check_pure(graph, rank, size, round, peers, shares)
    _check_in_peers(graph, rank, size, round, peers)
    return len(peers)


def check_peers(graph: Graph, rank: int, size: int, round: int, peers: tuple[int, ...]) -> None:
    """Check that the out-peers of one rank and round are distinct ranks other than itself."""
    if not isinstance(peers, tuple):
        raise GraphError(f"{_where(graph, rank, size, round)}: out_peers is {peers!r}: expected a tuple of ranks")
    for peer in peers:
        if isinstance(peer, bool) or not isinstance(peer, int):
            problem = f"{peer!r} is a {type(peer).__name__}: expected an int"
        elif not 0 <= peer < size:
            problem = f"{peer} is out of range: expected 0 to {size - 1}. Is a `% size` missing?"
        elif peer == rank:
            problem = f"{peer} is the rank itself: what it keeps is not an edge, leave it out"
        else:
            continue
        raise GraphError(f"{_where(graph, rank, size, round)}: among its out-peers {peers}, {problem}")
    if len(peers) > 1 and len(set(peers)) != len(peers):
        raise GraphError(
            f"{_where(graph, rank, size, round)}: its out-peers {peers} name a rank twice; to give one peer more, "
            "give shares"
        )


def _check_pure(
    graph: Graph, rank: int, size: int, round: int, peers: tuple[int, ...], shares: tuple[float, ...]
) -> None:
    again = graph.out_peers(rank, size, round), graph.shares(rank, size, round)
    if again != (peers, shares):
        first, second = (peers, again[0]) if again[0] != peers else (shares, again[1])
        raise GraphError(
            f"{_where(graph, rank, size, round)}: asked twice, it gave {first} and then {second}: a graph must be a "
            "pure function of (rank, size, round), or the ranks disagree. Derive random choices from a seed and the "
            "round, as graphs.RandomPeer does"
        )


def _check_in_peers(graph: Graph, rank: int, size: int, round: int, peers: tuple[int, ...]) -> None:
    if graph.derives_in_peers:
        return
    senders = graph.in_peers(rank, size, round)
    if list(senders) != sorted(set(senders)):
        where = _where(graph, rank, size, round)
        raise GraphError(f"{where}: its in-peers {senders} are not ascending and distinct")
    for sender in senders[:: 1 + len(senders) // INVERTED]:
        if not 0 <= sender < size or rank not in graph.out_peers(sender, size, round):
            named = graph.out_peers(sender, size, round) if 0 <= sender < size else "nothing: there is no such rank"
            raise GraphError(
                f"{_where(graph, rank, size, round)}: its in-peers are {senders}, but rank {sender} sends to {named}"
            )
    for peer in peers[:: 1 + len(peers) // INVERTED]:
        received = graph.in_peers(peer, size, round)
        if rank not in received:
            raise GraphError(
                f"{_where(graph, rank, size, round)}: it sends to {peers}, but the in-peers of rank {peer} are "
                f"{received}: in_peers must be the inverse of out_peers"
            )


def _check_connected(graph: Graph, size: int, window: int) -> None:
    forward: list[set[int]] = [set() for _ in range(size)]
    backward: list[set[int]] = [set() for _ in range(size)]
    seen = edges = 0
    while seen < window:
        until = min(window, max(1, 2 * seen))
        for round in range(seen, until):
            for rank in range(size):
                peers = graph.out_peers(rank, size, round)
                check_peers(graph, rank, size, round, peers)
                edges += 1 + len(peers)
                if edges > CONNECTING_EDGES:
                    return
                forward[rank].update(peers)
                for peer in peers:
                    backward[peer].add(rank)
        seen = until
        missed = _unreached(forward), _unreached(backward)
        if not any(missed):
            return
    verb, ranks = ("never reaches", missed[0]) if missed[0] else ("is never reached by", missed[1])
    fix = ", or give its period if that is longer" if graph.period(size) is None else ""
    raise GraphError(
        f"{graph!r}: over rounds 0 to {window - 1} of {size} ranks, rank 0 {verb} "
        f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks[:8]))}{' ...' if len(ranks) > 8 else ''} "
        f"(rank 0 sends to {_list(forward[0])}, rank {ranks[0]} to {_list(forward[ranks[0]])}): the graph must be "
        f"strongly connected over a period, or the ranks never agree. Add edges{fix}"
    )


def _unreached(edges: Sequence[Iterable[int]]) -> list[int]:
    found, frontier = {0}, [0]
    while frontier:
        for peer in edges[frontier.pop()]:
            if peer not in found:
                found.add(peer)
                frontier.append(peer)
    return [] if len(found) == len(edges) else sorted(set(range(len(edges))) - found)


def fingerprint(graph: Graph, size: int) -> str:
    """Digest peers and shares; see :meth:`Graph.fingerprint`."""
    window = graph.window(size)
    digest = hashlib.blake2b(struct.pack("<qq", size, window), digest_size=16)
    edges = 0
    for rank, round in _spread(size, window, PAIRS):
        gives = graph.gives(rank, size, round)
        digest.update(struct.pack(f"<{2 * len(gives) + 1}d", len(gives), *(value for give in gives for value in give)))
        edges += len(gives)
        if edges > HASHED_EDGES:
            break
    return digest.hexdigest()


def _spread(size: int, window: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield all pairs (rank, round), or ``most`` of them, evenly spread over both."""
    pairs = size * window
    # A step near the golden ratio of the whole, prime to it, visits everything once and any beginning evenly.
    step = max(1, int(pairs * 0.6180339887498949))
    while math.gcd(step, pairs) != 1:
        step += 1
    for index in range(min(pairs, most)):
        round, rank = divmod(index * step % pairs, size)
        yield rank, round


def _where(graph: Graph, rank: int, size: int, round: int) -> str:
    return f"{graph!r}: round {round}, rank {rank} of {size}"


def _list(ranks: Iterable[int]) -> str:
    shown = sorted(ranks)
    return ", ".join(map(str, shown[:8])) + (" ..." if len(shown) > 8 else "") if shown else "nobody"
