"""What is built on rounds: algorithms that now and then do something else than gossip.

Pass one as ``PushSumOptimizer(..., algorithm=PeriodicAverage(every=16))``.
"""

from __future__ import annotations

from .base import Algorithm
from .diloco import DiLoCo
from .noloco import NoLoCo
from .periodic_average import PeriodicAverage
from .plain import Gossip
from .slow_momentum import SlowMomentum

__all__ = ["Algorithm", "DiLoCo", "Gossip", "NoLoCo", "PeriodicAverage", "SlowMomentum"]
