"""n ranks in one process, a thread each: for tests, and for trying things out without an MPI launcher.

It promises no more than MPI does. The bytes of a send are read when it completes, not when it is posted. Nothing larger
than a header completes before its receive is posted. A receive buffer holds 0xff bytes (nan) until its message is
there. With a seed, messages are late, and overtake each other between peers.
"""

from __future__ import annotations

from .comm import LoopbackComm
from .transport import LoopbackTransport

__all__ = ["LoopbackComm", "LoopbackTransport"]
