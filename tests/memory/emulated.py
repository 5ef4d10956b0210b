"""A device that is emulated on the host, with streams that are as late as they may be.

Work on a stream waits in a queue. Every call lets a random part of what may run run, and no more, so that a missing
event, a slab that is used too early or a bounce buffer that is overwritten shows up as wrong numbers.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from contextlib import contextmanager

import torch

from pushsum_opt.memory.device import Device
from pushsum_opt.memory.host import DTYPES
from pushsum_opt.memory.on_device import DeviceMemory

NAME = "emulated:0"


class Event:
    def __init__(self, device, stream):
        self.device, self.stream, self.done = device, stream, False

    def query(self):
        self.device.run_some()
        return self.done


class EmulatedDevice(Device):
    """The passes are plain torch; only their time is emulated.

    Args:
        seed: which work runs when.
        eager: the part of what may run that does run at each call, 0 to 1.
    """

    name = NAME

    def __init__(self, seed=0, eager=0.3):
        self.random = random.Random(seed)
        self.eager = eager
        self.lock = threading.RLock()
        self.own, self.checking, self.outward, self.inward = (deque() for _ in range(4))
        self.allocated = 0
        self.threads = set()  # that have ever chosen it
        self.chosen = set()  # whose current device it is
        self.relaxed = set()

    def use(self):
        self.threads.add(threading.get_ident())
        self.chosen.add(threading.get_ident())

    @contextmanager
    def in_use(self):
        self.use()
        yield
        self.chosen.remove(threading.get_ident())

    def let_captures_be(self):
        self.relaxed.add(threading.get_ident())

    def allocate(self, nbytes):
        self.allocated += 1
        return torch.full((nbytes,), 0xFF, dtype=torch.uint8)

    allocate_pinned = allocate

    def wire(self, memory):
        return memory.numpy()

    # ------------------------------------------------------------------ order

    def current(self):
        return self.own

    def record(self, stream):
        event = Event(self, stream)
        self._queue(stream, lambda: setattr(event, "done", True))
        return event

    def wait(self, stream, event):
        with self.lock:
            stream.append(event)

    def _queue(self, stream, work):
        with self.lock:
            stream.append(work)
            self.run_some()

    def run_some(self):
        with self.lock:
            while self.random.random() < self.eager:
                self._run_one(self.random.choice((self.own, self.checking, self.outward, self.inward)))

    def _run_one(self, stream):
        if stream and isinstance(stream[0], Event):
            if stream[0].done:
                stream.popleft()
        elif stream:
            stream.popleft()()

    def finish(self, stream):
        """Run a stream to its end, and of the others what it waits for."""
        with self.lock:
            while stream:
                if isinstance(stream[0], Event) and not stream[0].done:
                    self._until(stream[0])
                self._run_one(stream)

    def _until(self, event):
        while not event.done:
            head = event.stream[0]
            if isinstance(head, Event) and not head.done:
                self._until(head)
            self._run_one(event.stream)

    # ------------------------------------------------------------------ work

    def copy(self, destination, source, stream):
        self._queue(stream, lambda: destination.copy_(source))

    def table(self, views):
        return list(views)

    def pack(self, table, target, dtype, wire, keep, stream):
        def work():
            parts = target.view(DTYPES[wire]).split([len(view) for view in table])
            for view, sent in zip(table, parts, strict=True):
                sent.copy_(view)
                if keep:
                    view += keep * (view - sent.to(view.dtype))

        self._queue(stream, torch.no_grad()(work))

    def merge(self, table, source, dtype, wire, fraction, stream):
        def work():
            parts = source.view(DTYPES[wire]).split([len(view) for view in table])
            torch._foreach_lerp_(table, [part.to(DTYPES[dtype]) for part in parts], fraction)

        self._queue(stream, torch.no_grad()(work))

    def merge_half(self, table, source, residual, dtype, weight, mass, stream):
        def work():
            sizes = [len(view) for view in table]
            parts = source.view(DTYPES[dtype]).split(sizes)
            for view, part, left in zip(table, parts, residual.split(sizes), strict=True):
                total = weight + mass
                estimate = (weight * view.float() + left + mass * part.float()) / total
                view.copy_(estimate)
                left.copy_(total * (estimate - view.float()))

        self._queue(stream, torch.no_grad()(work))

    def finite(self, source, wire, stream):
        answer = []
        self._queue(stream, lambda: answer.append(bool(source.view(DTYPES[wire]).isfinite().all())))
        self.finish(stream)
        return answer[0]

    def pieces_finite(self, table, dtype, stream):
        self.finish(stream)
        return all(bool(view.isfinite().all()) for view in table)

    def synchronize(self):
        for stream in (self.own, self.checking, self.outward, self.inward):
            self.finish(stream)


class EmulatedMemory(DeviceMemory):
    """Host tensors of which all, or all but some, pass for tensors on the emulated device.

    What torch does at once here stands in for work on the caller's stream: it is done after what is queued there.

    Args:
        on_host: names of tensors that stay what they are.
    """

    def __init__(self, *arguments, on_host=(), **keywords):
        self._on_host = set(on_host)
        super().__init__(*arguments, **keywords)

    def _where(self, local, name):
        return "cpu" if name in self._on_host else self._device.name

    def _allocate(self, count, dtype, device):
        return torch.full((count,), float("nan") if dtype != "uint8" else 0xFF, dtype=DTYPES[dtype])

    def _from_numpy(self, values, device):
        return torch.from_numpy(values)

    def _catch_up(self):
        self._device.finish(self._device.own)

    def _copy(self, destinations, sources):
        self._catch_up()
        super()._copy(destinations, sources)

    def _lerp(self, destinations, others, fraction):
        self._catch_up()
        super()._lerp(destinations, others, fraction)

    def _widen(self, array, dtype):
        self._catch_up()
        return super()._widen(array, dtype)

    def _all_finite(self, array):
        self._catch_up()
        return super()._all_finite(array)

    def _on_wire(self, chunk, slab):
        flat = super()._on_wire(chunk, slab)
        self._catch_up()
        return flat
