"""Each rank has one device: the GPU of its number on the host."""

from __future__ import annotations

import torch

import pushsum_opt as ps
from pushsum_opt import local


def test_without_a_gpu_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert ps.local_device() == torch.device("cpu")


def test_ranks_of_a_host_take_its_gpus_in_turn_and_make_them_current(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for rank in range(6):
        monkeypatch.setattr(local, "local_rank", lambda rank=rank: rank)
        ps.local_device()
    assert chosen == [torch.device("cuda", index) for index in (0, 1, 2, 3, 0, 1)]
