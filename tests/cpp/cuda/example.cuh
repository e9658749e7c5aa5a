#pragma once

#include "cuda/kernels/simt.h"

// Sums of three neighbours, row by row:
//
//   y[r, i] = x[r, i - 1] + x[r, i] + x[r, i + 1], zero outside
//
// A block goes down the rows; a thread has one column, and takes its neighbours' numbers from shared memory. It shows
// what a kernel looks like, and with a fault what tests find.
namespace torch_ext::test {

enum class Fault {
  kNone,
  kNoBarrierBeforeRead,  // of the row in shared memory
  kNoBarrierAfterRead,
  kUninitialised,  // the zeros beside the row
  kSharedOverrun,
  kGlobalOverrun,
  kDivergentBarrier,
  kEarlyExit,
};

template <class T>
struct NeighbourParams {
  const T* x;  // [rows, columns]
  T* y;
  int rows, columns;
};

template <class T>
simt::LaunchSize neighbour_size(const NeighbourParams<T>& p) {
  constexpr int kThreads = 64;
  return {{static_cast<unsigned>(simt::ceil_div(p.columns, kThreads))}, {kThreads}, (kThreads + 2) * sizeof(Acc<T>)};
}

template <class T, Fault kFault = Fault::kNone>
SIMT_GLOBAL void neighbour_kernel(NeighbourParams<T> p) {
  auto* row = simt::shared<Acc<T>>() + 1;
  const int thread = threadIdx.x, threads = blockDim.x, first = blockIdx.x * blockDim.x;
  const auto load = [&](int r, int i) {
    return simt::widen(simt::ld(p.x + r * p.columns + i, i >= 0 && i < p.columns));
  };
  if (kFault == Fault::kEarlyExit && first + thread >= p.columns) return;
  for (int r = 0; r < p.rows; ++r) {
    row[thread] = load(r, first + thread);
    if (kFault != Fault::kUninitialised && thread < 2) {
      const int beside = thread == 0 ? -1 : kFault == Fault::kSharedOverrun ? threads + 1 : threads;
      row[beside] = load(r, first + beside);
    }
    if (kFault == Fault::kDivergentBarrier && thread == 0) {
      __syncthreads();
    } else if (kFault != Fault::kNoBarrierBeforeRead) {
      __syncthreads();
    }
    const Acc<T> sum = row[thread - 1] + row[thread] + row[thread + 1];
    if (kFault != Fault::kNoBarrierAfterRead) __syncthreads();
    const bool inside = kFault == Fault::kGlobalOverrun || first + thread < p.columns;
    simt::st(p.y + r * p.columns + first + thread, simt::narrow<T>(sum), inside);
  }
}

// y[i] = 2 x[i] + 1, 16 bytes at a time, if count is a multiple of so many and both begin at one.
template <class T>
struct ScaleParams {
  const T* x;
  T* y;
  int count;
};

template <class T>
inline constexpr int kScaleVector = 16 / sizeof(T);

template <class T>
simt::LaunchSize scale_size(const ScaleParams<T>& p) {
  constexpr int kThreads = 128;
  return {{static_cast<unsigned>(simt::ceil_div(p.count, kThreads * kScaleVector<T>))}, {kThreads}};
}

template <class T>
SIMT_GLOBAL void SIMT_LAUNCH_BOUNDS(128) scale_kernel(ScaleParams<T> p) {
  constexpr int kVector = kScaleVector<T>;
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * kVector;
  if (i >= p.count) return;
  auto values = simt::widen(simt::ld<simt::Vector<T, kVector>>(p.x + i));
  SIMT_UNROLL
  for (int k = 0; k < kVector; ++k) values[k] = simt::fma(values[k], Acc<T>(2), Acc<T>(1));
  simt::st(p.y + i, simt::narrow<T>(values));
}

// y[i] = x[i], with an index that may be too narrow for it.
template <class T>
struct CopyParams {
  const T* x;
  T* y;
  int64_t count;
};

template <class T>
simt::LaunchSize copy_size(const CopyParams<T>& p) {
  return {{static_cast<unsigned>(simt::ceil_div(p.count, 1024))}, {1024}};
}

template <class Index, class T>
SIMT_GLOBAL void copy_kernel(CopyParams<T> p) {
  const Index i = static_cast<Index>(blockIdx.x) * 1024 + static_cast<Index>(threadIdx.x);
  const bool inside = i < p.count;
  simt::st(p.y + i, simt::ld(p.x + i, inside), inside);
}

}  // namespace torch_ext::test
