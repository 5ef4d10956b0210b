"""torch.distributed, on connections of gloo that belong to this library alone.

Every communicator uses the same mesh of connections, each transport with a *context* of its own, which goes with its
messages. Neither the program's process groups nor their collectives are used, so nothing here can disturb them.

GPU memory that is handed to this transport is moved by NCCL; see :mod:`.device_messages`.
"""

from __future__ import annotations

from .transport import TorchTransport

__all__ = ["TorchTransport"]
