#pragma once

#include <cstdint>

#include "deform_plan.h"
#include "pixel_plan.h"

// The kernels as function pointers, one table per storage type and instruction set. Kernels are single-threaded: the
// caller cuts [0, plan.items()) into ranges, gives each thread a scratch of its own of plan.scratch_size() elements,
// and owns every buffer. Buffers hold Acc<T> and are aligned to 64 bytes. A plan depends on geometry and layout only,
// so that results do not depend on how many threads take part.
namespace torch_ext::cpu {

// Plans are made for a geometry for which is_depthwise() holds and no size is zero, and for the layouts of the views.
template <class T>
struct DepthwiseKernels {
  // packed_weight has plan.weight_size() elements.
  void (*pack_weight)(const CorrelatePlan&, View<const T> weight, Acc<T>* packed_weight);
  // Forward, or grad input: the plan says which. bias may be null; it has one element per target channel, contiguous.
  void (*correlate)(const CorrelatePlan&, View<const T> source, const Acc<T>* packed_weight, const T* bias,
                    View<T> target, Range items, Acc<T>* scratch);

  // Each item writes its own part of partial_sums, plan.partial_sums_size() elements; add_* sum the parts in slice
  // order and round once.
  void (*grad_weight)(const GradWeightPlan&, View<const T> grad_output, View<const T> input, Acc<T>* partial_sums,
                      Range items, Acc<T>* scratch);
  void (*add_grad_weight)(const GradWeightPlan&, Acc<T>* partial_sums, View<T> grad_weight);
  void (*grad_bias)(const GradBiasPlan&, View<const T> grad_output, Acc<T>* partial_sums, Range items, Acc<T>* scratch);
  void (*add_grad_bias)(const GradBiasPlan&, const Acc<T>* partial_sums, T* grad_bias);
};

// For any geometry of which no size is zero. The weight of correlate is in Acc<T>, its taps evenly spaced in memory.
template <class T>
struct DirectKernels {
  void (*correlate)(const DirectPlan&, View<const T> source, View<const Acc<T>> weight, const T* bias, View<T> target,
                    Range items, Acc<T>* scratch);
  void (*grad_weight)(const DirectGradPlan&, View<const T> grad_output, View<const T> input, Acc<T>* partial_sums,
                      Range items, Acc<T>* scratch);
  void (*add_grad_weight)(const DirectGradPlan&, Acc<T>* partial_sums, View<T> grad_weight);
  // Where there is a PixelPlan. packed_weight has plan.weight_size() elements, bias one per target channel, or is null.
  void (*pack_panels)(const PixelPlan&, View<const T> weight, const T* bias, Acc<T>* packed_weight, Range panels);
  void (*pixels)(const PixelPlan&, View<const T> source, const Acc<T>* packed_weight, View<T> target, Range items,
                 Acc<T>* scratch);
  // Where there is a PixelGradPlan.
  void (*pixel_grad_weight)(const PixelGradPlan&, View<const T> grad_output, View<const T> input, Acc<T>* partial_sums,
                            Range items, Acc<T>* scratch);
  void (*add_pixel_grad_weight)(const PixelGradPlan&, Acc<T>* partial_sums, View<T> grad_weight);
};

// Of deformable convolution: see deform.h. T is the type of the tensor that is read or written; samples are those of
// Acc<T>.
template <class T>
struct DeformKernels {
  using A = Acc<T>;
  void (*pack_positions)(View<const T> tensor, const Triple<int64_t>& sizes, int64_t n, int64_t channels,
                         Range positions, A* packed, int64_t pitch);
  void (*unpack_positions)(const A* packed, int64_t pitch, const Triple<int64_t>& sizes, int64_t n, int64_t channels,
                           Range positions, View<T> tensor);
  void (*sample)(const DeformGeometry<int64_t>&, View<const T> offset, const SampledPart&, int64_t offset_group,
                 Range positions, std::byte* samples);
  void (*modulate)(const DeformGeometry<int64_t>&, View<const T> mask, const SampledPart&, int64_t offset_group,
                   Range positions, std::byte* samples);
  void (*make_columns)(int dims, const std::byte* samples, int64_t count, const T* image, int64_t pixel,
                       int64_t channels, A* columns, int64_t pitch);
  void (*spread_columns)(int dims, const std::byte* samples, int64_t count, const T* image, int64_t pixel,
                         int64_t channels, const A* gradient, int64_t pitch, A* grad_image, int64_t grad_pixel,
                         A* dots);
  void (*grad_offset)(const DeformGeometry<int64_t>&, const std::byte* samples, const A* dots, const SampledPart&,
                      int64_t offset_group, Range positions, View<T> gradient);
  void (*grad_mask)(const DeformGeometry<int64_t>&, const std::byte* samples, const A* dots, const SampledPart&,
                    int64_t offset_group, Range positions, View<T> gradient);
};

template <class T>
struct Kernels {
  DepthwiseKernels<T> depthwise;
  DirectKernels<T> direct;
  DeformKernels<T> deform;
};

struct KernelTable {
  Kernels<float> f32;
  Kernels<double> f64;
  Kernels<BFloat16> bf16;
  Kernels<Half> f16;

  template <class T>
  const Kernels<T>& of() const {
    if constexpr (std::same_as<T, float>) return f32;
    else if constexpr (std::same_as<T, double>) return f64;
    else if constexpr (std::same_as<T, BFloat16>) return bf16;
    else return f16;
  }
};

const KernelTable& scalar_table();
const KernelTable& avx2_table();  // only to be called where the CPU has AVX2, FMA and F16C

}  // namespace torch_ext::cpu
