#pragma once

#include "axis.h"

// Gradients of weights, in two steps, so that sums are added in one order whatever the GPU does first:
//
//   grad_weight[q, k] = sum over splits s of partial[s, q, k]
//
// The first step's blocks each sum over a part of the positions, a split, and leave their sums in a workspace of
// Acc<T>; here a block has 32 weights, and 8 threads for each, which add every eighth split, then each other's sums. It
// is rounded here.
namespace torch_ext::cuda {

// A thread of the first step sums for some taps of a list (axis.h), a group of taps: `size` of them if so many are
// left.
struct TapGroups {
  int lists, apart;  // of a row, and how far apart their taps are
  int rows, kernel;  // of taps, taps of a row
  int per_list, size;

  TapGroups() = default;
  TapGroups(const Triple<Axis>& axes, int most)
      : lists(axes[2].filled),
        apart(axes[2].lists),
        rows(axes[0].kernel * axes[1].kernel),
        kernel(axes[2].kernel),
        per_list(static_cast<int>(simt::ceil_div(taps_in_list(axes[2], 0), most))),
        size(static_cast<int>(simt::ceil_div(taps_in_list(axes[2], 0), per_list))) {}

  TORCH_EXT_HOST_DEVICE int count() const { return rows * lists * per_list; }
  TORCH_EXT_HOST_DEVICE int taps() const { return rows * kernel; }
  // The tap of the kernel that is a group's i-th, or -1.
  SIMT_DEVICE int tap(int group, int i) const {
    const int list = group / per_list % lists, k = list + apart * (group % per_list * size + i);
    return k < kernel ? group / (per_list * lists) * kernel + k : -1;
  }
};

// How many splits keep a GPU busy: a function of geometry and GPU, so that the order of sums is one, too.
inline int64_t choose_splits(int multiprocessors, int64_t blocks, int64_t most) {
  return simt::max<int64_t>(1, simt::min(most, simt::ceil_div(int64_t{4} * multiprocessors, blocks)));
}

template <class T>
struct SumParams {
  const Acc<T>* partial;  // [splits, pairs, taps]
  View<T> grad_weight;
  Pairs pairs;
  int64_t splits;
  int count, taps, height, width;  // weights, and those of a pair and the kernel's rows and columns
};

template <class T>
simt::LaunchSize sum_size(const SumParams<T>& p) {
  return {{static_cast<unsigned>(simt::ceil_div(p.count, 32))}, {32, 8}, 32 * 8 * sizeof(Acc<T>)};
}

template <class T>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(256) sum_kernel(SumParams<T> p) {
  Acc<T>* sums = simt::shared<Acc<T>>();
  const int column = threadIdx.x, row = threadIdx.y, i = blockIdx.x * 32 + column;
  Acc<T> sum = 0;
  for (int64_t split = row; split < p.splits; split += 8) sum += simt::ld(p.partial + split * p.count + i, i < p.count);
  sums[row * 32 + column] = sum;
  __syncthreads();
  if (row > 0 || i >= p.count) return;
  for (int other = 1; other < 8; ++other) sum += sums[other * 32 + column];
  const int pair = i / p.taps, tap = i - pair * p.taps, of_row = tap / p.width;
  simt::st(p.grad_weight.data + p.pairs.weight_of(p.grad_weight, pair) + of_row / p.height * p.grad_weight.spatial[0] +
               of_row % p.height * p.grad_weight.spatial[1] + tap % p.width * p.grad_weight.spatial[2],
           simt::narrow<T>(sum));
}

}  // namespace torch_ext::cuda
