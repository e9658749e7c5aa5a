#pragma once

#include <cstddef>

#include "core/geometry.h"
#include "kernels/deform_arguments.h"

struct CUstream_st;

// The kernels as functions that launch them, defined in the .cu files, which nvcc compiles. No header of CUDA's is
// needed to call them, nor any of PyTorch's to compile them.
namespace torch_ext::cuda {

// Where kernels run: a stream of the current device.
struct Queue {
  CUstream_st* stream;
  int multiprocessors;
};

Queue queue_on(CUstream_st* stream);

// Depthwise and grouped convolution.
template <class T>
struct ConvKernels {
  static void forward(const Queue& queue, const ConvGeometry<int64_t>& g, const View<const T>& input,
                      const View<const T>& weight, const T* bias, const View<T>& output);
  static void grad_input(const Queue& queue, const ConvGeometry<int64_t>& g, const View<const T>& grad_output,
                         const View<const T>& weight, const View<T>& grad_input);
  // With memory for partial sums.
  static size_t workspace_bytes(const Queue& queue, const ConvGeometry<int64_t>& g, const View<const T>& grad_output,
                                const View<const T>& input);
  static void grad_weight(const Queue& queue, const ConvGeometry<int64_t>& g, const View<const T>& grad_output,
                          const View<const T>& input, void* workspace, const View<T>& grad_weight);
};

template <class T>
struct DeformKernels {
  static void make_columns(const Queue& queue, const DeformInputs<T>& inputs, const Columns<T>& columns);
  // S: Acc<T> or FixedPoint.
  template <class S>
  static void spread_columns(const Queue& queue, const DeformInputs<T>& inputs, const Columns<const Acc<T>>& columns,
                             const DeformGradients<T, S>& gradients);
  template <class S>
  static void round_sums(const Queue& queue, const ConvGeometry<int64_t>& g, Range images, const InputSums<T, S>& sums,
                         const View<T>& grad_input);
};

}  // namespace torch_ext::cuda
