"""What all ranks call together: broadcast, average, consensus distance.

Every public function here is collective: all ranks call it, in the same order.
"""

from __future__ import annotations

from ..channel.together import together
from .over_communicator import average, broadcast_object, broadcast_parameters
from .over_push_sum import averaged, consensus_distance

__all__ = ["average", "averaged", "broadcast_object", "broadcast_parameters", "consensus_distance", "together"]
