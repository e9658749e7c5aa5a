#pragma once

#include <cstdint>

#include "../../core/dtype.h"
#include "../../core/geometry.h"
#include "../../core/view.h"

// The kernels as function pointers, one table per storage type and instruction set. Kernels are single-threaded: the
// caller cuts [0, items) into ranges, gives each thread its own scratch, and owns every buffer. Counts depend on the
// geometry only, so that results do not depend on how many threads take part.
namespace torch_ext::cpu {

// How much one pass needs; all buffers hold Acc<T> and are aligned to 64 bytes.
struct PassSizes {
  int64_t items;          // independent work items
  int64_t scratch;        // elements of scratch per thread, at most 1 MiB
  int64_t packed_weight;  // elements of the packed weight (forward and grad input)
  int64_t partial_sums;   // elements of the slices' sums (grad weight and grad bias)
};

// One pass each over a geometry for which is_depthwise() holds and no size is zero.
template <class T>
struct DepthwiseKernels {
  PassSizes (*forward_sizes)(const ConvGeometry<int64_t>&);
  PassSizes (*grad_input_sizes)(const ConvGeometry<int64_t>&);
  PassSizes (*grad_weight_sizes)(const ConvGeometry<int64_t>&);
  PassSizes (*grad_bias_sizes)(const ConvGeometry<int64_t>&);

  // packed_weight serves the pass it was packed for.
  void (*pack_weight_forward)(const ConvGeometry<int64_t>&, View<const T> weight, Acc<T>* packed_weight);
  void (*pack_weight_grad_input)(const ConvGeometry<int64_t>&, View<const T> weight, Acc<T>* packed_weight);

  // bias may be null; it has one element per output channel, contiguous.
  void (*forward)(const ConvGeometry<int64_t>&, View<const T> input, const Acc<T>* packed_weight, const T* bias,
                  View<T> output, Range items, Acc<T>* scratch);
  void (*grad_input)(const ConvGeometry<int64_t>&, View<const T> grad_output, const Acc<T>* packed_weight,
                     View<T> grad_input, Range items, Acc<T>* scratch);

  // Each item writes its own part of partial_sums; add_* sum the parts in slice order and round once.
  void (*grad_weight)(const ConvGeometry<int64_t>&, View<const T> grad_output, View<const T> input,
                      Acc<T>* partial_sums, Range items, Acc<T>* scratch);
  void (*add_grad_weight)(const ConvGeometry<int64_t>&, const Acc<T>* partial_sums, View<T> grad_weight);
  void (*grad_bias)(const ConvGeometry<int64_t>&, View<const T> grad_output, Acc<T>* partial_sums, Range items,
                    Acc<T>* scratch);
  void (*add_grad_bias)(const ConvGeometry<int64_t>&, const Acc<T>* partial_sums, T* grad_bias);
};

struct KernelTable {
  DepthwiseKernels<float> depthwise_f32;
  DepthwiseKernels<double> depthwise_f64;
  DepthwiseKernels<BFloat16> depthwise_bf16;
  DepthwiseKernels<Half> depthwise_f16;

  template <class T>
  const DepthwiseKernels<T>& depthwise() const {
    if constexpr (std::same_as<T, float>) return depthwise_f32;
    else if constexpr (std::same_as<T, double>) return depthwise_f64;
    else if constexpr (std::same_as<T, BFloat16>) return depthwise_bf16;
    else return depthwise_f16;
  }
};

const KernelTable& scalar_table();
const KernelTable& avx2_table();  // only to be called where the CPU has AVX2, FMA and F16C

}  // namespace torch_ext::cpu
