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
from pushsum_opt.memory.host import DTYPES, HostMemory
from pushsum_opt.memory.modulo import BLOCK
from pushsum_opt.memory.on_device import DeviceMemory
from pushsum_opt.memory.room import HostRoom, Room

NAME = "emulated:0"
RANK = threading.local()
"""``number`` is the rank that a thread is, for memories that only some ranks have on the device."""


class Event:
    def __init__(self, device, stream):
        self.device, self.stream, self.done = device, stream, False

    def query(self):
        self.device.run_some()
        return self.done

    def synchronize(self):
        with self.device.lock:
            self.device._until(self)


class EmulatedDevice(Device):
    """The passes are plain torch; only their time is emulated.

    Args:
        seed: which work runs when.
        eager: the part of what may run that does run at each call, 0 to 1.

    ``free`` and ``pinned_free`` are the bytes that it and its host still have, None for no end of them; ``pool`` and
    ``pinned_pool`` what torch would give back. Memory that is freed does not count.
    """

    name = NAME
    free = pinned_free = None
    pool = pinned_pool = 0

    def __init__(self, seed=0, eager=0.3):
        self.random = random.Random(seed)
        self.eager = eager
        self.lock = threading.RLock()
        self.own, self.outward, self.inward = (deque() for _ in range(3))
        self.allocated = 0
        self.prepared = set()
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

    def _malloc(self, nbytes):
        if self.free is not None:
            if nbytes > self.free:
                raise MemoryError("cudaErrorMemoryAllocation")
            self.free -= nbytes
        self.allocated += 1
        return torch.full((nbytes,), 0xFF, dtype=torch.uint8)

    def _malloc_pinned(self, nbytes):
        if self.pinned_free is not None:
            if nbytes > self.pinned_free:
                raise MemoryError("cudaErrorMemoryAllocation")
            self.pinned_free -= nbytes
        self.allocated += 1
        return torch.full((nbytes,), 0xFF, dtype=torch.uint8)

    def _empty_pool(self):
        if self.free is not None:
            self.free, self.pool = self.free + self.pool, 0

    def _empty_pinned_pool(self):
        if self.pinned_free is not None:
            self.pinned_free, self.pinned_pool = self.pinned_free + self.pinned_pool, 0

    def _room(self):
        return Room(free=self.free, total=1 << 30, pool=self.pool + (1 << 29), in_tensors=1 << 29)

    def _host_room(self):
        return HostRoom(available=self.pinned_free, total=1 << 31)

    def prepare(self, dtypes):
        self.prepared |= set(dtypes)

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
                self._run_one(self.random.choice((self.own, self.outward, self.inward)))

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

    def by_torch(self, work, stream):
        self._queue(stream, work)

    def table(self, views):
        return list(views)

    def pack(self, table, target, dtype, wire, keep, stream):
        assert (dtype, wire) in self.prepared

        def work():
            parts = target.view(DTYPES[wire]).split([len(view) for view in table])
            for view, sent in zip(table, parts, strict=True):
                sent.copy_(view)
                if keep:
                    view += keep * (view - sent.to(view.dtype))

        self._queue(stream, torch.no_grad()(work))

    def check(self, source, wire, flag, stream):
        def work():
            if not source.view(DTYPES[wire]).isfinite().all():
                flag.raised[0] = flag.told[0] = 1

        self._queue(stream, work)

    def _heal(self, view, part, flag):
        if not view.isfinite().all():
            flag.told[1] = 1
            view.copy_(torch.where(view.isfinite(), view, part))

    def merge(self, table, source, dtype, wire, fraction, flag, heal, stream):
        assert (dtype, wire) in self.prepared

        def work():
            if flag.raised[0]:
                return
            parts = [part.to(DTYPES[dtype]) for part in source.view(DTYPES[wire]).split([len(v) for v in table])]
            for view, part in zip(table, parts, strict=True) if heal else ():
                self._heal(view, part, flag)
            torch._foreach_lerp_(table, parts, fraction)

        self._queue(stream, torch.no_grad()(work))

    def merge_half(self, table, source, residual, dtype, weight, mass, flag, heal, stream):
        def work():
            if flag.raised[0]:
                return
            sizes = [len(view) for view in table]
            parts = source.view(DTYPES[dtype]).split(sizes)
            for view, part, left in zip(table, parts, residual.split(sizes), strict=True):
                if heal:
                    self._heal(view, part, flag)
                    left.copy_(torch.where(left.isfinite(), left, torch.zeros_like(left)))
                total = weight + mass
                estimate = (weight * view.float() + left + mass * part.float()) / total
                view.copy_(estimate)
                left.copy_(total * (estimate - view.float()))

        self._queue(stream, torch.no_grad()(work))

    def coded_table(self, views):
        return list(views)

    def _on_host(self, table, bounds, residual):
        """What does the same on the host, at once: with its own plan, and these bounds and residuals."""
        memory = HostMemory(table, list(map(str, range(len(table)))), "int8", 1 << 40)
        memory._bounds[0][:] = bounds
        if residual is not None:
            memory._residual[0][:] = residual
        return memory, memory.chunks[0]

    def pack_coded(self, table, target, bounds, residual, dtype, form, left, given, stream):
        assert (dtype, "int8") in self.prepared

        def work():
            memory, chunk = self._on_host(table, bounds, residual)
            memory._whole, memory._whole_left = form
            data = torch.empty(chunk.nbytes, dtype=torch.uint8)
            memory._encode(chunk, data, left, given)
            target.copy_(data[: len(target)])
            if residual is not None:
                residual.copy_(memory._residual[0])

        self._queue(stream, torch.no_grad()(work))

    def check_coded(self, source, dtype, count, flag, stream):
        def work():
            whole, flag.told[3] = source[:8].view(torch.int32)
            wide = torch.float64 if dtype == "float64" else torch.float32
            length = count * wide.itemsize if whole else 4 * -(-count // BLOCK)
            if not source[16 : 16 + length].view(wide if whole else torch.float32).isfinite().all():
                flag.raised[0] = flag.told[0] = 1

        self._queue(stream, work)

    def merge_coded(self, table, source, bounds, residual, dtype, weight, mass, flag, heal, stream):
        def work():
            if flag.raised[0]:
                return
            memory, chunk = self._on_host(table, bounds, residual)
            memory._whole_left = 0
            memory._reach = 1
            slab = source.clone()
            slab[4:8] = 0
            outcome = memory.merge_if_finite(chunk, slab, weight, mass, heal=heal).outcome()
            flag.told[1], flag.told[2] = outcome.healed, outcome.missed
            few = outcome.missed <= len(bounds) / 8
            flag.told[4] = few and memory._whole_left > 0
            bounds.copy_(memory._bounds[0])
            if residual is not None:
                residual.copy_(memory._residual[0])

        self._queue(stream, torch.no_grad()(work))

    def synchronize(self):
        for stream in (self.own, self.outward, self.inward):
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

    def begin_round(self):
        self._catch_up()
        super().begin_round()

    def _encode(self, chunk, data, left, given):
        self._catch_up()
        super()._encode(chunk, data, left, given)

    def _slab_bytes(self, chunk, slab):
        flat = super()._slab_bytes(chunk, slab)
        self._catch_up()
        return flat


class MemoryByTorch(HostMemory):
    """The host, where passes in eight bits are operations of torch, as without numba."""

    def _compiled(self, chunk):
        return None


def settle(push_sum):
    """Let the caller's stream end, as torch would before it touches a tensor."""
    if isinstance(push_sum.memory, EmulatedMemory):
        push_sum.memory._catch_up()
