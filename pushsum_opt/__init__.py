"""Stochastic Gradient Push for PyTorch: one line wraps an optimizer, and training stops waiting for all-reduce.

::

    import pushsum_opt as ps
    optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model)

Names are loaded when they are first used: importing this package starts neither MPI nor CUDA and needs no torch.
"""

from __future__ import annotations

import atexit
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .job import forked_end, process_groups

if TYPE_CHECKING:
    from . import algorithms, checkpoint, errors, graphs, mixing, observe, testing
    from .all_ranks import allgather, barrier, sum
    from .collectives import average, broadcast_object, broadcast_parameters, consensus_distance
    from .errors import PushSumError
    from .faults import Loss
    from .graphs import Graph
    from .job.world import rank, size
    from .local import local_device, local_rank, local_size
    from .metric import Metric
    from .observe import Listener
    from .optimizer import PushSumOptimizer
    from .push_sum import PushSum

__version__ = "0.1.0"

_HOMES = {
    "Graph": "graphs",
    "Listener": "observe",
    "Loss": "faults",
    "Metric": "metric",
    "PushSum": "push_sum",
    "PushSumError": "errors",
    "PushSumOptimizer": "optimizer",
    "allgather": "all_ranks",
    "average": "collectives",
    "barrier": "all_ranks",
    "broadcast_object": "collectives",
    "broadcast_parameters": "collectives",
    "consensus_distance": "collectives",
    "local_device": "local",
    "local_rank": "local",
    "local_size": "local",
    "rank": "job.world",
    "size": "job.world",
    "sum": "all_ranks",
}
_MODULES = ("algorithms", "checkpoint", "errors", "graphs", "mixing", "observe", "testing")

__all__ = [
    "Graph",
    "Listener",
    "Loss",
    "Metric",
    "PushSum",
    "PushSumError",
    "PushSumOptimizer",
    "algorithms",
    "allgather",
    "average",
    "barrier",
    "broadcast_object",
    "broadcast_parameters",
    "checkpoint",
    "consensus_distance",
    "errors",
    "graphs",
    "local_device",
    "local_rank",
    "local_size",
    "mixing",
    "observe",
    "rank",
    "size",
    "sum",
    "testing",
]


forked_end.watch()
_process = os.getpid()


@atexit.register
def _leave_the_job() -> None:
    """The last thing that a rank does, whatever it used of this library: others may wait for it."""
    if os.getpid() != _process:
        return
    if process_groups.job_of_torch() is not None:
        import_module(".transport.torch_distributed.job", __name__).leave()
    if "mpi4py.MPI" in sys.modules:
        import_module(".transport.mpi.post", __name__).leave()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
