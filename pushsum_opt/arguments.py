"""The types of arguments that several functions share, for type checkers and editors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.distributed import ProcessGroup

    from .graphs import Graph

__all__ = [
    "Adaptive",
    "Buffers",
    "Communicator",
    "DType",
    "GraphLike",
    "Nonfinite",
    "OnLoss",
    "Staleness",
    "WithinHost",
]

Staleness: TypeAlias = int | Literal["unbounded"]
WithinHost: TypeAlias = Literal["gradients", "ddp", "fsdp"]
Buffers: TypeAlias = Literal["local", "average", "gossip"]
Adaptive: TypeAlias = Literal["plain", "corrected"]
Nonfinite: TypeAlias = Literal["raise", "skip"]
OnLoss: TypeAlias = Literal["stop", "continue"]


class NetworkxGraph(Protocol):
    """A directed or undirected graph of networkx, of which two methods tell it from others."""

    @property
    def nodes(self) -> Any: ...

    @property
    def edges(self) -> Any: ...

    def is_directed(self) -> bool: ...


class RankAndSize(Protocol):
    """An mpi4py communicator, or what :func:`pushsum_opt.testing.run` gives to each rank."""

    def Get_rank(self) -> int: ...

    def Get_size(self) -> int: ...


Communicator: TypeAlias = "RankAndSize | ProcessGroup"
"""Some ranks: a communicator, or a process group of torch.distributed."""

GraphLike: TypeAlias = (
    "Graph | Callable[[int, int, int], Iterable[int]] | NetworkxGraph"
    " | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]]"
)
"""A graph, a function (rank, size, round) -> out-peers, a graph of networkx, edges, or edges of each round."""

DType: TypeAlias = (
    "Literal['bfloat16', 'float16', 'float32', 'float64', 'int8'] | torch.dtype | np.dtype[Any] | type[np.generic]"
)
