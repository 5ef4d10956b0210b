"""Small trainings as functions of one rank's communicator, whose every bit is the same over any transport."""

from __future__ import annotations

import hashlib
import time

import numpy as np

import pushsum_opt as ps


def shift(rank, size, round):
    """One peer, another offset in every round; beyond three ranks every third rank sends to a second one."""
    if size == 1:
        return ()
    first = (rank + 1 + round % (size - 1)) % size
    second = (rank + 1 + (round + 1) % (size - 1)) % size
    return (first, second) if size > 3 and rank % 3 == 0 else (first,)


def numpy_training(comm, rounds=15, sleepy=None, staleness=0):
    """Train on quadratics with irregular gossip, large and small arrays; return a digest of all that this rank saw."""
    values = np.random.default_rng(comm.rank)
    naps = None if sleepy is None else np.random.default_rng([sleepy, comm.rank])
    tensors = {
        "large": values.normal(size=(700, 400)),
        "small": values.normal(size=7),
        "single": values.normal(size=(33, 5)).astype(np.float32),
        "complex": values.normal(size=6) + 1j * values.normal(size=6),
        "empty": np.zeros((0, 3)),
    }
    digest = hashlib.sha256()
    options = {"graph": shift, "staleness": staleness, "data_weight": 1.0 + comm.rank, "comm": comm}
    with ps.PushSum(tensors, **options) as push_sum:
        for _ in range(rounds):
            if naps is not None:
                time.sleep(naps.uniform(0, 0.01))
            with push_sum.local_step():
                for tensor in tensors.values():
                    tensor *= 0.99
            push_sum.mix()
            digest.update(np.float64(push_sum.push_weight).tobytes())
            for tensor in tensors.values():
                digest.update(tensor.tobytes())
    assert push_sum.closed
    return digest.hexdigest(), push_sum.push_weight
