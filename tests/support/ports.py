"""Ports for programs that a test starts."""

from __future__ import annotations

import random
import socket

LOWEST, HIGHEST = 10_000, 30_000
"""Linux gives ports from 32768 on to outgoing connections: one of those may be in use when a slow program listens."""


def free_ports(count: int = 1) -> int:
    """Return a port from which on so many are free: others than those of tests that run at the same time."""
    for _ in range(1000):
        base = random.SystemRandom().randrange(LOWEST, HIGHEST)
        if all(_is_free(base + one) for one in range(count)):
            return base
    raise AssertionError("no ports are free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
