"""The passes in eight bits as CUDA source: pack, check, merge. They follow on the source of ``kernels.py``.

Elements share a theta by blocks of 512 (see ``coded.py`` and ``modulo.py``). One block of threads takes one of these,
whose tiles end where it ends; it holds the elements in shared memory between its passes over them. What goes over the
wire has the bits that torch gives it on the host. Sums are of whole numbers, so their order does not matter.
"""

from __future__ import annotations

from . import modulo
from .plan import HEAD_BYTES

__all__ = ["CONSTANTS", "PASSES"]

CONSTANTS = (
    f"const int BLOCK = {modulo.BLOCK};",
    f"const int HEAD = {HEAD_BYTES};",
    f"const int PRIME = {modulo.PRIME};",
    f"const double SAFETY = {modulo.SAFETY!r};",
    f"const double FAR = {modulo.FAR!r};",
    f"const double LEAST_SHARE = {modulo.LEAST_SHARE!r};",
    f"const double LEAST_THETA = {modulo.LEAST_THETA!r};",
)

PASSES = r"""
// ---------------------------------------------------------------- in eight bits

// What is told of a chunk beside [0] and [1]: [2] blocks that came out wrong, [3] the rounds for which the sender wants
// whole messages, [4] bounds are too slow: our own elements are not finite, or a block that came out wrong was far.
// Bounds are how far blocks were apart lately.

const int MOST = 8192;  // a multiple of 256 steps that no finite block has: larger ones count as this one

template <class A> __device__ inline A larger(A x, A y) { return x > y || x != x ? x : y; }  // nan, if one is nan
template <class A> __device__ inline A size_of(A x) { return x < A(0) ? -x : x; }

// What the threads of a block find together.
template <class A> struct Found {
  A largest;
  int first, second;  // the check sums
  __device__ void take(const Found& other) {
    largest = larger(largest, other.largest);
    first += other.first;
    second += other.second;
  }
  __device__ void sum_up(int position, A multiples) {
    const int whole = multiples >= A(-MOST) && multiples <= A(MOST) ? static_cast<int>(multiples) : MOST;
    first += position * whole;
    second += position * position % PRIME * whole;
  }
};

template <class A> __device__ inline Found<A> together(Found<A> mine, Found<A>* room) {
  room[threadIdx.x] = mine;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) room[threadIdx.x].take(room[threadIdx.x + half]);
    __syncthreads();
  }
  const Found<A> all = room[0];
  __syncthreads();
  return all;
}

// The parts of a chunk on the wire, behind its head of two numbers: whole or not, and rounds to be whole.
template <class A> struct Parts {
  int* head;
  A* whole;
  float* theta;
  float* sums;
  unsigned char* places;
  __device__ Parts(unsigned char* data, long long blocks)
      : head(reinterpret_cast<int*>(data)), whole(reinterpret_cast<A*>(data + HEAD)),
        theta(reinterpret_cast<float*>(data + HEAD)), sums(theta + blocks),
        places(reinterpret_cast<unsigned char*>(sums + 2 * blocks)) {}
};

// Calls use(z, i) for each of our elements in this block; i is its place in the block.
template <class T, class F>
__device__ inline void each(const Tile* tiles, const long long* firsts, F use) {
  for (long long number = firsts[blockIdx.x]; number < firsts[blockIdx.x + 1]; ++number) {
    const Tile tile = tiles[number];
    T* z = reinterpret_cast<T*>(tile.address);
    const int place = static_cast<int>(tile.offset % BLOCK);
    for (int i = threadIdx.x; i < tile.count; i += blockDim.x) use(z[i], place + i);
  }
}

template <class T>
__global__ void pack_coded(const Tile* tiles, const long long* firsts, unsigned char* data, long long count,
                           const typename Wide<T>::type* bounds, float* residual, int whole, int rounds, double left,
                           double given) {
  typedef typename Wide<T>::type A;
  __shared__ A own[BLOCK];
  __shared__ Found<A> room[THREADS];
  const Parts<A> parts(data, gridDim.x);
  const long long block = blockIdx.x, start = block * BLOCK;
  const int length = static_cast<int>(count - start < BLOCK ? count - start : BLOCK);
  if (block == 0 && threadIdx.x == 0) {
    parts.head[0] = whole;
    parts.head[1] = rounds;
  }
  if (whole) {
    each<T>(tiles, firsts, [&](T& z, int i) { parts.whole[start + i] = widen(z); });
    return;
  }
  each<T>(tiles, firsts, [&](T& z, int i) { own[i] = widen(z); });
  __syncthreads();
  Found<A> found = {A(0), 0, 0};
  for (int i = threadIdx.x; i < length; i += blockDim.x) found.largest = larger(found.largest, size_of(own[i]));
  const A peak = together(found, room).largest;
  A theta = larger(A(LEAST_THETA), larger(bounds[block] * A(SAFETY), peak * A(LEAST_SHARE)));
  if (!is_finite(peak)) theta = peak;
  const float sent = static_cast<float>(theta);
  const bool good = is_finite(sent);
  const A step = static_cast<A>(sent) / A(128), inverse = A(1) / step;
  const A keep = residual ? static_cast<A>(given) : static_cast<A>(given / left);
  found = {A(0), 0, 0};
  for (int i = threadIdx.x; i < length; i += blockDim.x) {
    const A k = good ? nearest(times(own[i], inverse)) : A(0);
    found.sum_up(i + 1, below(k / A(256)));
    parts.places[start + i] = static_cast<unsigned char>(static_cast<int>(k) & 255);
    const A lost = good ? plus_product(-k, step, own[i]) : A(0);
    if (residual) {
      residual[start + i] = plus_product(static_cast<float>(lost), static_cast<float>(keep), residual[start + i]);
    } else if (good) {
      own[i] = plus_product(lost, keep, own[i]);
    }
  }
  const Found<A> all = together(found, room);
  if (threadIdx.x == 0) {
    parts.theta[block] = sent;
    parts.sums[block] = static_cast<float>(all.first);
    parts.sums[gridDim.x + block] = static_cast<float>(all.second);
  }
  if (!residual && given != 0.0) each<T>(tiles, firsts, [&](T& z, int i) { narrow(own[i], z); });
}

template <class T>
__global__ void check_coded(unsigned char* data, long long count, int* flag, int* told) {
  typedef typename Wide<T>::type A;
  const long long blocks = (count + BLOCK - 1) / BLOCK;
  const Parts<A> parts(data, blocks);
  if (blockIdx.x == 0 && threadIdx.x == 0 && parts.head[1]) told[3] = parts.head[1];
  const bool good = parts.head[0] ? finds_finite<A>(parts.whole, count) : finds_finite<float>(parts.theta, blocks);
  if (!good) *flag = told[0] = 1;
}

template <class T>
__global__ void merge_coded(const Tile* tiles, const long long* firsts, unsigned char* data, long long count,
                            typename Wide<T>::type* bounds, float* residual, double weight, double mass,
                            const int* flag, int heal, int* told) {
  typedef typename Wide<T>::type A;
  if (*flag) return;
  __shared__ A own[BLOCK];
  __shared__ A theirs[BLOCK];
  __shared__ Found<A> room[THREADS];
  const Parts<A> parts(data, gridDim.x);
  const bool whole = parts.head[0];
  const long long block = blockIdx.x, start = block * BLOCK;
  const int length = static_cast<int>(count - start < BLOCK ? count - start : BLOCK);
  const A theta = whole ? A(0) : static_cast<A>(parts.theta[block]);
  const A step = theta / A(128), inverse = A(1) / step;
  each<T>(tiles, firsts, [&](T& z, int i) { own[i] = widen(z); });
  __syncthreads();
  Found<A> found = {A(0), 0, 0};
  for (int i = threadIdx.x; i < length; i += blockDim.x) {
    if (whole) {
      theirs[i] = parts.whole[start + i];
    } else {
      const A place = static_cast<A>(parts.places[start + i]);
      const A multiples = nearest(plus_product(-own[i], inverse, place) * A(-1.0 / 256));
      found.sum_up(i + 1, multiples);
      theirs[i] = times(place + multiples * A(256), step);
    }
    found.largest = larger(found.largest, size_of(theirs[i] - own[i]));
  }
  const Found<A> all = together(found, room);
  const bool near = is_finite(all.largest);
  const bool right = near && (whole || (static_cast<float>(all.first) == parts.sums[block] &&
                                        static_cast<float>(all.second) == parts.sums[gridDim.x + block]));
  if (threadIdx.x == 0) {
    const A heard = theta / A(SAFETY);  // 0 where the chunk is whole
    if (right) {
      bounds[block] = larger(larger(bounds[block], all.largest), heard);
    } else if (whole) {
      told[4] = 1;
    } else {
      if (bounds[block] > A(FAR) * heard) told[4] = 1;
      bounds[block] = larger(bounds[block], A(2) * heard);
      atomicAdd(told + 2, 1);
    }
  }
  const bool use = whole || right;  // otherwise ours are kept, and the mass is accepted
  const double fraction = mass / (weight + mass);
  bool bad = false;
  each<T>(tiles, firsts, [&](T& z, int i) {
    if constexpr (sizeof(T) == 2) {
      bad |= merge_half_one<T>(z, use ? theirs[i] : own[i], residual[start + i], static_cast<float>(weight),
                               static_cast<float>(mass), heal && use);
    } else if (use) {
      bad |= merge_one<T, A>(z, theirs[i], fraction, heal);
    }
  });
  if (bad) told[1] = 1;
}
"""
