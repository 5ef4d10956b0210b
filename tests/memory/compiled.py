"""The CUDA kernels, compiled for the host by g++: the threads of a block are threads, blocks run one after the other.

``CompiledDevice`` launches them by the code that launches them on a GPU, and is as late as the emulated device that it
is otherwise. What it cannot show is what a GPU alone has: its memory, its caches and its speed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from memory.emulated import EmulatedDevice

from pushsum_opt.memory import kernels
from pushsum_opt.memory.cuda import CudaDevice

THREADS = 8  # of a block; a power of two, as on a GPU

CUDA = r"""
#include <barrier>
#include <cmath>
#include <cstring>
#include <mutex>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>
#define __global__
#define __device__
#define __shared__ static
struct Dim { unsigned x; };
static thread_local Dim threadIdx, blockIdx;
static Dim blockDim, gridDim;
static std::barrier<>* block_barrier;
static std::mutex adding;
inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline int atomicAdd(int* at, int more) { std::lock_guard lock(adding); const int old = *at; *at += more; return old; }
template <class To, class From> To bits_of(From x) { To y; std::memcpy(&y, &x, sizeof y); return y; }
inline unsigned __float_as_uint(float x) { return bits_of<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return bits_of<float>(x); }
inline long long __double_as_longlong(double x) { return bits_of<long long>(x); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline double __dmul_rn(double x, double y) { return x * y; }
"""

PTX = {  # what g++ does not know, by what it does know
    'asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));': "y = bits_of<_Float16>(x.bits);",
    'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));': "y.bits = bits_of<unsigned short>(_Float16(x));",
}

LAUNCH = r"""
template <class... P, std::size_t... I>
void run(void (*kernel)(P...), unsigned blocks, unsigned threads, void** values, std::index_sequence<I...>) {
  std::barrier barrier(threads);
  block_barrier = &barrier;
  blockDim.x = threads;
  gridDim.x = blocks;
  std::vector<std::thread> team;
  for (unsigned number = 0; number < threads; ++number) {
    team.emplace_back([=, &barrier] {
      threadIdx.x = number;
      for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        kernel(*static_cast<P*>(values[I])...);
        barrier.arrive_and_wait();
      }
    });
  }
  for (std::thread& one : team) one.join();
}
template <class... P> void launch(void (*kernel)(P...), unsigned blocks, unsigned threads, void** values) {
  run(kernel, blocks, threads, values, std::index_sequence_for<P...>());
}
"""


def _why_not():
    if shutil.which("g++") is None:
        return "there is no g++"
    if platform.machine() == "x86_64" and "AVX" not in torch.backends.cpu.get_cpu_capability():
        return "this processor has no fused multiply-add, by which GPUs round"
    return ""


needs_compiler = [pytest.mark.skipif(bool(_why_not()), reason=f"kernels cannot be compiled for the host: {_why_not()}")]


@cache
def compiled():
    """Return the library with all kernels, compiled once for each version of their source."""
    source = kernels.SOURCE
    for ptx, plain in PTX.items():
        assert ptx in source
        source = source.replace(ptx, plain)
    entries = [
        f'extern "C" void run_{number}(unsigned blocks, unsigned threads, void** values) '
        f"{{ launch({name}, blocks, threads, values); }}"
        for number, name in enumerate(kernels.names())
    ]
    text = "\n".join((CUDA, source, LAUNCH, *entries))
    # Nothing is fused that the source does not fuse; -O1 takes half the time of -O2.
    options = ["-std=c++20", "-O1", "-ffp-contract=off", "-pthread", "-shared", "-fPIC", "-w"]
    options += ["-mfma"] if platform.machine() == "x86_64" else []
    digest = hashlib.sha256(f"{text}{options}".encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"pushsum_opt-kernels-{os.getuid()}-{digest}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            program, made = Path(folder, "kernels.cpp"), Path(folder, "kernels.so")
            program.write_text(text)
            subprocess.run(["g++", *options, "-o", str(made), str(program)], check=True, timeout=120)
            made.replace(library)
    return ctypes.CDLL(str(library))


def function(number):
    """Return a kernel as cupy would, to be called with blocks, threads and typed arguments."""
    entry = getattr(compiled(), f"run_{number}")

    def call(blocks, threads, arguments):
        assert threads == (kernels.THREADS,)
        values = [np.array(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*[value.ctypes.data for value in values])
        entry(blocks[0], THREADS, pointers)

    return call


class CompiledDevice(EmulatedDevice):
    """The passes are the kernels; the rest is emulated."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._cuda = cuda = object.__new__(CudaDevice)
        cuda.name = "cpu"
        cuda._functions = {name: function(number) for number, name in enumerate(kernels.names())}
        cuda._here, cuda._on = nullcontext, lambda stream: nullcontext()

    def table(self, views):
        return self._cuda.table(views)

    def coded_table(self, views):
        return self._cuda.coded_table(views)


def _later(name):
    def work(self, *arguments):
        self._queue(arguments[-1], lambda: getattr(self._cuda, name)(*arguments))

    return work


for _name in ("pack", "check", "merge", "merge_half", "pack_coded", "check_coded", "merge_coded"):
    setattr(CompiledDevice, _name, _later(_name))
