"""The exceptions of pushsum_opt.

::

    PushSumError
    ├── LaunchError           the ranks were not started as one job
    ├── ConfigurationError    an argument, or a setting, cannot be used (also a ValueError)
    │   └── GraphError        a graph breaks one of its promises
    ├── MismatchError         the ranks disagree about what they exchange
    ├── LayoutError           the parameters changed in a way that cannot be exchanged
    ├── NonFiniteError        a message carried inf or nan and ``nonfinite="raise"``
    ├── OutOfMemoryError      there is no memory for the buffers of messages (also a MemoryError)
    ├── PeerError             another rank is the reason that this one stops
    │   ├── PeerTimeout       nothing came from it before the deadline (also a TimeoutError)
    │   ├── PeerFinished      it finished after fewer rounds
    │   ├── PeerFailed        it stopped with an error of its own
    │   └── RanksLost         ranks have died, says MPI (or :class:`pushsum_opt.testing.Faults`)
    ├── CallOrderError        a call at a moment when it is not allowed: inside averaged() or join()
    ├── CheckpointError       a checkpoint cannot be written, or what is read is not one
    └── ClosedError           used after ``close()``, or after an error ended the exchange

Every message says who (the rank), what (expected and got), when (the round), the likely cause and the fix.
"""

from __future__ import annotations

__all__ = [
    "CallOrderError",
    "CheckpointError",
    "ClosedError",
    "ConfigurationError",
    "GraphError",
    "LaunchError",
    "LayoutError",
    "MismatchError",
    "NonFiniteError",
    "OutOfMemoryError",
    "PeerError",
    "PeerFailed",
    "PeerFinished",
    "PeerTimeout",
    "PushSumError",
    "RanksLost",
]


class PushSumError(Exception):
    """The root of every exception that pushsum_opt raises by itself."""

    on_all_ranks = False
    """Whether every rank raises it, in the same call: then the ranks are still in step."""


class LaunchError(PushSumError):
    """The ranks were not started as one job."""


class ConfigurationError(PushSumError, ValueError):
    """An argument or a setting has a value that cannot be used."""


class GraphError(ConfigurationError):
    """A graph breaks a promise: peers in range, no self-edge, columns that sum to 1, strongly connected."""


class MismatchError(PushSumError):
    """The ranks disagree about what they exchange: shapes, strides, dtypes, graph or mode."""


class LayoutError(PushSumError):
    """The parameters changed since construction in a way that cannot be exchanged."""


class NonFiniteError(PushSumError):
    """A message carried inf or nan; it was not merged."""


class OutOfMemoryError(PushSumError, MemoryError):
    """There is no memory for the buffers of messages, on a GPU or pinned on the host."""


class PeerError(PushSumError):
    """Another rank is the reason that this rank stops."""


class PeerTimeout(PeerError, TimeoutError):
    """Nothing came from a peer before the deadline."""


class PeerFinished(PeerError):
    """A peer finished after fewer rounds than this rank."""


class PeerFailed(PeerError):
    """A peer stopped with an error and told this rank its reason."""


class RanksLost(PeerError):
    """Ranks have died: they were killed, crashed, or raised. With ``on_loss="continue"`` the library catches it."""


class CallOrderError(PushSumError):
    """A call at a moment when it is not allowed: inside ``averaged()``, inside ``join()``, during a graph capture."""


class CheckpointError(PushSumError):
    """A checkpoint cannot be written; or what is read is missing, cut off, changed, or does not fit this run."""


class ClosedError(PushSumError):
    """The object was closed, or an earlier error ended its exchange."""
