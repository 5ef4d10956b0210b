"""Lets PushSum put its tensors on an emulated device."""

from __future__ import annotations

import pytest
from memory.emulated import RANK, EmulatedDevice, EmulatedMemory

from pushsum_opt import memory as memories


@pytest.fixture
def emulate(monkeypatch):
    """Let PushSum put its tensors on an emulated device; returns the memories that were made."""
    monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", "512")
    bind = memories.bind
    made = []

    def use(*, direct, seed=0, eager=0.3, on_host=(), only=None, tight=False, **room):
        def emulated(tensors, names, wire, chunk_bytes, **others):
            if only is not None and RANK.number not in only:
                return bind(tensors, names, wire, chunk_bytes, **others)
            device = EmulatedDevice(seed + len(made), eager)
            device.who = others["who"]
            vars(device).update(room)
            made.append(
                EmulatedMemory(tensors, names, wire, chunk_bytes, device=device, direct=direct, on_host=on_host)
            )
            if tight:
                made[-1]._path.most = 0  # two bounce buffers, whatever the number of chunks
            return made[-1]

        monkeypatch.setattr(memories, "bind", emulated)
        return made

    return use
