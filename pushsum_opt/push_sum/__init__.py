"""The heart: one rank's tensors and its mass, and the rounds that mix them."""

from __future__ import annotations

from .following import Follower
from .options import WrapperOptions
from .push_sum import PushSum, push_sum_of

__all__ = ["Follower", "PushSum", "WrapperOptions", "push_sum_of"]
