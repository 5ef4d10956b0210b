"""A file in memory is whole or says that it is not, whatever byte its writer is killed at; and all comes back."""

from __future__ import annotations

import collections
import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from pushsum_opt.checkpoint import memory_file
from pushsum_opt.checkpoint.apart import Place, pack_tree, put_together, take_apart, unpack_tree
from pushsum_opt.checkpoint.memory_file import About, MemoryFile, read_about, read_part
from pushsum_opt.errors import CheckpointError

ABOUT = About("run", 1, 0, 2, 20, (0, 0, 1), 1.0, 0.0, 1.0, True)


class Killed(BaseException):
    """Stands for the end of a process: no handler of an Exception sees it."""


def state(number: int) -> dict[str, object]:
    tied = torch.full((3, 2), float(number))
    model = collections.OrderedDict(weight=tied, alias=tied)
    model._metadata = {"": {"version": 2}}
    return {"model": model, "round": number, "list": [torch.arange(number % 7 + 1), ("text", None, 1.5)]}


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return type(one) is type(other) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_state_that_was_taken_apart_and_put_together_is_the_same():
    sliced = torch.arange(20).reshape(4, 5)[:, 1:3]
    values = {
        **state(5),
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "complex": torch.randn(3, dtype=torch.complex64),
        "half": torch.randn(3).bfloat16(),
        "sliced": sliced,
        "expanded": torch.ones(1).expand(4),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "sparse": torch.eye(3).to_sparse(),
        "mine": (0, 0),
    }
    apart = take_apart(values)
    assert len(apart.tensors) < 10, "a tied tensor is there once"
    places = [Place.of(tensor) for tensor in apart.tensors]
    copies = []
    for tensor, place in zip(apart.tensors, places, strict=True):
        view = place.view(torch.empty(place.nbytes, dtype=torch.uint8))
        copies.append(view.copy_(tensor))
    again = put_together(unpack_tree(pack_tree(apart.tree)), apart.mark, copies)
    assert same(again.pop("sparse").to_dense(), values.pop("sparse").to_dense())
    assert same(again, values)
    assert again["model"]._metadata == {"": {"version": 2}}
    assert again["model"]["weight"] is again["model"]["alias"]
    assert again["last"].stride() == values["last"].stride()


def test_state_that_holds_itself_or_an_open_file_is_refused():
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(CheckpointError, match="holds itself"):
        take_apart({"extra": endless})
    with pytest.raises(CheckpointError, match="extra= holds a"):
        pack_tree(take_apart({"extra": io.StringIO("open file")}).tree)


def write(file: MemoryFile, number: int) -> None:
    file.write(take_apart(state(number)), replace(ABOUT, generation=number, round=number))


def test_files_that_are_written_again_hold_the_newer_state_also_a_longer_or_shorter_one(tmp_path):
    file = MemoryFile(tmp_path / "0000.a")
    for number in (1, 6, 2, 13):
        write(file, number)
        about = read_about(file.path)
        assert (about.generation, about.place) == (number, (0, 0, 1))
        assert same(read_part(file.path, about), state(number))
    with pytest.raises(CheckpointError, match="and it is gone"):
        read_part(file.path, replace(about, generation=6))
    assert oct(file.path.stat().st_mode & 0o777) == "0o600"


def test_writer_that_is_killed_at_any_byte_leaves_a_file_that_is_not_valid_or_whole(tmp_path, monkeypatch):
    """Every store is cut off at its first, a middle, and its last byte; nothing is stored after that."""
    stores: list[int] = []
    budget = [-1]
    plain = MemoryFile._store, MemoryFile._store_tensor

    def cut(file, start, data):
        if budget[0] >= 0:
            left = budget[0]
            budget[0] -= len(data)
            if budget[0] < 0:
                plain[0](file, start, bytes(data[:left]))
                raise Killed
        stores.append(len(data))
        plain[0](file, start, data)

    def store_tensor(file, start, place, tensor):
        flat = torch.empty(place.nbytes, dtype=torch.uint8)
        place.view(flat).copy_(tensor)
        cut(file, start, flat.numpy().tobytes())

    monkeypatch.setattr(MemoryFile, "_store", cut)
    monkeypatch.setattr(MemoryFile, "_store_tensor", store_tensor)
    pair = [MemoryFile(tmp_path / f"0000.{one}") for one in "ab"]
    for number, file in enumerate(pair, 1):
        write(file, number)
    stores.clear()
    write(pair[0], 3)
    sizes = stores.copy()
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    write(pair[0], 1)
    places = {place for end, size in zip(ends, sizes, strict=True) for place in (end - size, end - size // 2, end - 1)}
    assert len(places) > 10
    for place in sorted(places):
        budget[0] = place
        with pytest.raises(Killed):
            write(pair[0], 3)
        budget[0] = -1
        about = read_about(pair[0].path)
        # Up to the first byte that is stored it is the old one; never something between old and new.
        assert about is None or (place == 0 and about.generation == 1), place
        assert same(read_part(pair[1].path, read_about(pair[1].path)), state(2)), "the other one is whole"
        write(pair[0], 1)


WRITES = """
import itertools, sys
from pathlib import Path
import torch
from pushsum_opt.checkpoint.apart import take_apart
from pushsum_opt.checkpoint.memory_file import About, MemoryFile
files = [MemoryFile(Path(sys.argv[1]) / name) for name in ("0000.a", "0000.b")]
for number in itertools.count(1):
    tensors = [torch.full((50_000,), float(number)) for _ in range(20)]
    about = About("run", number, 0, 1, number, (0, 0, 1), 1.0, 0.0, 1.0, True)
    files[number % 2].write(take_apart({"tensors": tensors, "number": number}), about)
    if number == 2:
        print("written", flush=True)
"""


def test_process_that_is_killed_while_it_writes_leaves_one_of_two_files_whole(tmp_path):
    for milliseconds in (1, 4, 9, 17):
        writer = subprocess.Popen([sys.executable, "-c", WRITES, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "written\n"
        time.sleep(milliseconds / 1000)
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)
        writer.stdout.close()
        found = [(path, about) for path in sorted(tmp_path.iterdir()) if (about := read_about(path)) is not None]
        assert found
        for path, about in found:
            part = read_part(path, about)
            assert part["number"] == about.generation
            assert all(bool((tensor == about.generation).all()) for tensor in part["tensors"])


def test_file_that_was_changed_or_is_not_ours_is_not_read(tmp_path):
    file = MemoryFile(tmp_path / "0000.a")
    write(file, 4)
    about, whole = read_about(file.path), file.path.read_bytes()
    for place in (0, 20, 60, 120):  # the word, the hash, the length and what it says
        changed = bytearray(whole)
        changed[place] ^= 1
        file.path.write_bytes(changed)
        assert read_about(file.path) is None, place
    changed = bytearray(whole)
    changed[whole.rindex(b"round")] ^= 1
    file.path.write_bytes(changed)
    with pytest.raises(CheckpointError, match="it was changed"):
        read_part(file.path, about)
    for foreign in (b"", b"pushsum1", b"x" * 20_000, memory_file.VALID + bytes(20_000)):
        file.path.write_bytes(foreign)
        assert read_about(file.path) is None


def test_no_room_is_an_error_and_not_the_end_of_the_process(tmp_path, monkeypatch):
    def full(handle, start, length):
        os.truncate(handle, max(os.fstat(handle).st_size, start + length - 1))  # it takes all that there is
        raise OSError(28, "No space left on device")

    held = MemoryFile(tmp_path / "0000.b")
    write(held, 1)
    held.close()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        write(MemoryFile(tmp_path / "0000.a"), 1)
    assert read_about(tmp_path / "0000.a") is None
    with pytest.raises(OSError, match="No space left"):
        write(held, 13)
    assert same(read_part(held.path, read_about(held.path)), state(1)), "what it held before is still there"
