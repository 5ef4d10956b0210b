"""The fused passes of push-sum as CUDA source: pack, check, merge, merge_half, and those in eight bits.

Every pass walks a table of tiles. A tile is a run of elements of one tensor: where it lies, which place its first
element has in the chunk, and how many elements it has. One block of threads takes one tile, so one launch serves any
number of tensors. All indices are 64 bits wide. Half types are computed in float32, and no CUDA header is needed.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .coded_kernels import CONSTANTS, PASSES
from .plan import CODED

__all__ = ["SOURCE", "THREADS", "TILE", "TYPES", "name_of", "names", "needed", "typed"]

TILE = 4096  # elements that a block takes
THREADS = 256
TYPES = {"float64": "double", "float32": "float", "float16": "Half", "bfloat16": "BFloat"}
WIDTH = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
HALF = ("float16", "bfloat16")

SOURCE = r"""
struct Half { unsigned short bits; };
struct BFloat { unsigned short bits; };
struct Tile { long long address; long long offset; long long count; };

template <class T> struct Wide { typedef float type; };
template <> struct Wide<double> { typedef double type; };

// ---------------------------------------------------------------- one element: to its wide type, back, and its check

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(BFloat x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
__device__ inline float widen(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

__device__ inline void narrow(double x, double& y) { y = x; }
__device__ inline void narrow(double x, float& y) { y = static_cast<float>(x); }
__device__ inline void narrow(float x, BFloat& y) {
  const unsigned bits = __float_as_uint(x);
  // To the nearest, ties to even; a nan stays a nan.
  y.bits = x != x ? 0x7fc0 : static_cast<unsigned short>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
__device__ inline void narrow(float x, Half& y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }

__device__ inline bool is_finite(double x) {
  return (__double_as_longlong(x) & 0x7ff0000000000000LL) != 0x7ff0000000000000LL;
}
__device__ inline bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
__device__ inline bool is_finite(BFloat x) { return (x.bits & 0x7f80) != 0x7f80; }
__device__ inline bool is_finite(Half x) { return (x.bits & 0x7c00) != 0x7c00; }

template <class T, class W> __device__ inline W cast(T x) {
  W y;
  if (sizeof(T) == 8 && sizeof(W) == 2) {  // there is no direct way from double to a half type
    narrow(static_cast<float>(widen(x)), y);
  } else {
    narrow(widen(x), y);
  }
  return y;
}

// ---------------------------------------------------------------- arithmetic whose rounding is the same as torch's

__device__ inline float times(float x, float y) { return __fmul_rn(x, y); }  // never fused with a sum
__device__ inline double times(double x, double y) { return __dmul_rn(x, y); }
__device__ inline float nearest(float x) { return rintf(x); }
__device__ inline double nearest(double x) { return rint(x); }
__device__ inline float below(float x) { return floorf(x); }
__device__ inline double below(double x) { return floor(x); }
__device__ inline float plus_product(float x, float y, float sum) { return fmaf(x, y, sum); }
__device__ inline double plus_product(double x, double y, double sum) { return fma(x, y, sum); }

// ---------------------------------------------------------------- four elements at a time where they are aligned

template <class T> struct alignas(4 * sizeof(T)) Four { T at[4]; };

template <class T> __device__ inline bool in_fours(const T* x) {
  return reinterpret_cast<unsigned long long>(x) % sizeof(Four<T>) == 0;
}

// ---------------------------------------------------------------- the passes

template <class T, class W> __device__ inline W pack_one(T& z, double keep) {
  const W q = cast<T, W>(z);
  if (keep != 0.0) {
    typedef typename Wide<T>::type A;
    narrow(widen(z) + static_cast<A>(keep) * (widen(z) - static_cast<A>(widen(q))), z);
  }
  return q;
}

template <class T, class W> __global__ void pack(const Tile* tiles, W* target, double keep) {
  const Tile tile = tiles[blockIdx.x];
  T* z = reinterpret_cast<T*>(tile.address);
  W* q = target + tile.offset;
  long long done = 0;
  if (in_fours(z) && in_fours(q)) {
    const long long fours = tile.count / 4;
    for (long long i = threadIdx.x; i < fours; i += blockDim.x) {
      Four<T> own = reinterpret_cast<Four<T>*>(z)[i];
      Four<W> sent;
      for (int j = 0; j < 4; ++j) sent.at[j] = pack_one<T, W>(own.at[j], keep);
      reinterpret_cast<Four<W>*>(q)[i] = sent;
      if (keep != 0.0) reinterpret_cast<Four<T>*>(z)[i] = own;
    }
    done = 4 * fours;
  }
  for (long long i = done + threadIdx.x; i < tile.count; i += blockDim.x) {
    T own = z[i];
    q[i] = pack_one<T, W>(own, keep);
    if (keep != 0.0) z[i] = own;
  }
}

// A merge looks at the flag first: `check` has raised it where what came is not finite, and then nothing is merged.
// With `heal`, elements of z that are not finite are first replaced by what came. `told` is two words in pinned host
// memory, for the processor to read later, written only where there is something to tell: [0] not finite, [1] healed.

template <class T, class W> __device__ inline bool merge_one(T& z, W theirs, double fraction, int heal) {
  typedef typename Wide<T>::type A;
  const A other = static_cast<A>(widen(theirs));
  const bool bad = heal && !is_finite(z);
  if (bad) narrow(other, z);
  const A own = widen(z);
  const A part = static_cast<A>(fraction);
  // From the nearer end, so that fraction 1 gives exactly what came.
  const bool near = part < A(0.5);
  narrow(plus_product(near ? part : part - A(1), other - own, near ? own : other), z);
  return bad;
}

template <class T, class W>
__global__ void merge(const Tile* tiles, const W* source, double fraction, const int* flag, int heal, int* told) {
  if (*flag) return;
  const Tile tile = tiles[blockIdx.x];
  T* z = reinterpret_cast<T*>(tile.address);
  const W* theirs = source + tile.offset;
  long long done = 0;
  bool bad = false;
  if (in_fours(z) && in_fours(theirs)) {
    const long long fours = tile.count / 4;
    for (long long i = threadIdx.x; i < fours; i += blockDim.x) {
      Four<T> own = reinterpret_cast<Four<T>*>(z)[i];
      const Four<W> come = reinterpret_cast<const Four<W>*>(theirs)[i];
      for (int j = 0; j < 4; ++j) bad |= merge_one<T, W>(own.at[j], come.at[j], fraction, heal);
      reinterpret_cast<Four<T>*>(z)[i] = own;
    }
    done = 4 * fours;
  }
  for (long long i = done + threadIdx.x; i < tile.count; i += blockDim.x) {
    bad |= merge_one<T, W>(z[i], theirs[i], fraction, heal);
  }
  if (bad) told[1] = 1;
}

template <class T>
__device__ inline bool merge_half_one(T& z, float theirs, float& r, float weight, float mass, int heal) {
  const bool bad = heal && !is_finite(z);
  if (bad) narrow(theirs, z);
  if (heal && !is_finite(r)) r = 0;
  const float total = weight + mass;
  const float u = (weight * widen(z) + r + mass * theirs) / total;
  z = cast<float, T>(u);
  r = total * (u - widen(z));
  return bad;
}

template <class T>
__global__ void merge_half(const Tile* tiles, const T* source, float* residual, double weight, double mass,
                           const int* flag, int heal, int* told) {
  if (*flag) return;
  const Tile tile = tiles[blockIdx.x];
  T* z = reinterpret_cast<T*>(tile.address);
  const T* theirs = source + tile.offset;
  float* r = residual + tile.offset;
  const float w = static_cast<float>(weight), m = static_cast<float>(mass);
  long long done = 0;
  bool bad = false;
  if (in_fours(z) && in_fours(theirs) && in_fours(r)) {
    const long long fours = tile.count / 4;
    for (long long i = threadIdx.x; i < fours; i += blockDim.x) {
      Four<T> own = reinterpret_cast<Four<T>*>(z)[i];
      const Four<T> come = reinterpret_cast<const Four<T>*>(theirs)[i];
      Four<float> left = reinterpret_cast<Four<float>*>(r)[i];
      for (int j = 0; j < 4; ++j) {
        bad |= merge_half_one<T>(own.at[j], widen(come.at[j]), left.at[j], w, m, heal);
      }
      reinterpret_cast<Four<T>*>(z)[i] = own;
      reinterpret_cast<Four<float>*>(r)[i] = left;
    }
    done = 4 * fours;
  }
  for (long long i = done + threadIdx.x; i < tile.count; i += blockDim.x) {
    bad |= merge_half_one<T>(z[i], widen(theirs[i]), r[i], w, m, heal);
  }
  if (bad) told[1] = 1;
}

// Tell whether the elements that this thread looks at, of those that a launch looks at, are finite.
template <class W> __device__ inline bool finds_finite(const W* source, long long count) {
  const long long first = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  bool good = true;
  long long done = 0;
  if (in_fours(source)) {
    const long long fours = count / 4;
    for (long long i = first; i < fours; i += step) {
      const Four<W> four = reinterpret_cast<const Four<W>*>(source)[i];
      for (int j = 0; j < 4; ++j) good = good && is_finite(four.at[j]);
    }
    done = 4 * fours;
  }
  for (long long i = done + first; i < count; i += step) good = good && is_finite(source[i]);
  return good;
}

template <class W> __global__ void check(const W* source, long long count, int* flag, int* told) {
  if (!finds_finite(source, count)) *flag = told[0] = 1;
}
"""

SOURCE = "\n".join((f"const int THREADS = {THREADS};", *CONSTANTS)) + SOURCE + PASSES


def name_of(kernel: str, *dtypes: str) -> str:
    """Return the C++ name of a kernel for some dtypes.

    >>> name_of("pack", "float32", "bfloat16")
    'pack<float, BFloat>'
    """
    return f"{kernel}<{', '.join(TYPES[dtype] for dtype in dtypes)}>"


def needed(own: str, wire: str) -> list[str]:
    """Return the names of the kernels for tensors of one dtype that travel in another.

    >>> needed("bfloat16", "bfloat16")
    ['pack<BFloat, BFloat>', 'merge_half<BFloat>', 'check<BFloat>']
    >>> needed("float32", "int8")
    ['pack_coded<float>', 'merge_coded<float>', 'check_coded<float>']
    """
    if wire == CODED:
        return [name_of(kernel, own) for kernel in ("pack_coded", "merge_coded", "check_coded")]
    merge = name_of("merge_half", own) if own in HALF else name_of("merge", own, wire)
    return [name_of("pack", own, wire), merge, name_of("check", wire)]


def names() -> list[str]:
    """Return the names of all kernels that any plan can ask for."""
    pairs = [(own, wire) for own in TYPES for wire in TYPES if own == wire or WIDTH[wire] < WIDTH[own]]
    pairs += [(own, CODED) for own in TYPES]
    return list(dict.fromkeys(name for pair in pairs for name in needed(*pair)))


# ---------------------------------------------------------------------- what a kernel is called with


def _pointer(value: Any) -> np.uint64:
    """Return an address; of a tensor, that of its first element."""
    return np.uint64(value.data_ptr() if hasattr(value, "data_ptr") else operator.index(value))


def _whole(kind: type[np.signedinteger[Any]]) -> Callable[[Any], Any]:
    """Return a conversion to an integer type, which refuses what does not fit."""
    limits = np.iinfo(kind)

    def convert(value: Any) -> Any:
        number = operator.index(value)
        if not limits.min <= number <= limits.max:
            raise OverflowError(f"{number} does not fit into {kind.__name__}")
        return kind(number)

    return convert


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "*": _pointer,
    "int": _whole(np.int32),
    "long long": _whole(np.int64),
    "double": lambda value: np.float64(float(value)),
}


def _parameters(source: str) -> dict[str, list[str]]:
    """Return the declared type of every parameter of every kernel; "*" for any pointer."""
    declared = {}
    for kernel, parameters in re.findall(r"__global__ void (\w+)\(([^)]*)\)", source):
        types = [parameter.split()[:-1] for parameter in parameters.split(",")]
        declared[kernel] = ["*" if "*" in parts[-1] else " ".join(parts) for parts in types]
    return declared


PARAMETERS = _parameters(SOURCE)
"""By kernel: the declared C type of each parameter."""


def typed(name: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Return arguments as numpy scalars of the types that a kernel declares, whatever Python type they have.

    A tensor is passed as its address.

    Args:
        name: as :func:`name_of` gives it.

    >>> [(value.dtype.name, value.item()) for value in typed("pack<float, float>", (64, 128, 1))]
    [('uint64', 64), ('uint64', 128), ('float64', 1.0)]
    """
    kinds = PARAMETERS[name.partition("<")[0]]
    return tuple(_CONVERSIONS[kind](value) for kind, value in zip(kinds, arguments, strict=True))
