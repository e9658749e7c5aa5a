#pragma once

// Fills a KernelTable with the kernels of one instruction set, which TORCH_EXT_ISA names. The headers that belong to no
// instruction set are included before, outside of the target region (see table_avx2.cpp).
#include "correlate.h"
#include "gradients.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

using Geometry = ConvGeometry<int64_t>;

template <class T>
struct Depthwise {
  using A = Acc<T>;

  static PassSizes correlate_sizes(const Geometry& g, bool transposed) {
    const CorrelatePlan p = plan_correlate<A>(g, transposed);
    return {p.items(), p.ring_size() + p.tile_size() + p.bias_size(), p.weight_size(), 0};
  }
  static PassSizes forward_sizes(const Geometry& g) { return correlate_sizes(g, false); }
  static PassSizes grad_input_sizes(const Geometry& g) { return correlate_sizes(g, true); }
  static PassSizes grad_weight_sizes(const Geometry& g) {
    const GradWeightPlan p = plan_grad_weight<A>(g);
    return {p.items(), p.ring_size() + p.row_size() + p.sums_size(), 0, p.parts.count() * p.slice_size()};
  }
  static PassSizes grad_bias_sizes(const Geometry& g) {
    const GradBiasPlan p = plan_grad_bias<A>(g);
    return {p.items(), kMaxColumns * kLanes<A>, 0, p.parts.count() * p.slice_size()};
  }

  static void pack_weight_forward(const Geometry& g, View<const T> weight, A* packed) {
    pack_weight(g, false, weight, packed);
  }
  static void pack_weight_grad_input(const Geometry& g, View<const T> weight, A* packed) {
    pack_weight(g, true, weight, packed);
  }

  static void correlate(const Geometry& g, bool transposed, View<const T> source, const A* weight, const T* bias,
                        View<T> target, Range items, A* scratch) {
    const CorrelatePlan plan = plan_correlate<A>(g, transposed);
    Correlate<T> kernel(plan, source, weight, bias, target, scratch);
    for (int64_t item = items.begin; item < items.end; ++item) kernel.item(item);
  }
  static void forward(const Geometry& g, View<const T> input, const A* weight, const T* bias, View<T> output,
                      Range items, A* scratch) {
    correlate(g, false, input, weight, bias, output, items, scratch);
  }
  static void grad_input(const Geometry& g, View<const T> grad_output, const A* weight, View<T> grad_input, Range items,
                         A* scratch) {
    correlate(g, true, grad_output, weight, nullptr, grad_input, items, scratch);
  }
  static void grad_weight(const Geometry& g, View<const T> grad_output, View<const T> input, A* partial_sums,
                          Range items, A* scratch) {
    const GradWeightPlan plan = plan_grad_weight<A>(g);
    GradWeight<T> kernel(plan, grad_output, input, partial_sums, scratch);
    for (int64_t item = items.begin; item < items.end; ++item) kernel.item(item);
  }
  static void grad_bias(const Geometry& g, View<const T> grad_output, A* partial_sums, Range items, A* scratch) {
    const GradBiasPlan plan = plan_grad_bias<A>(g);
    for (int64_t item = items.begin; item < items.end; ++item)
      TORCH_EXT_ISA::grad_bias(plan, grad_output, partial_sums, item, scratch);
  }

  static constexpr DepthwiseKernels<T> kernels() {
    return {.forward_sizes = forward_sizes,
            .grad_input_sizes = grad_input_sizes,
            .grad_weight_sizes = grad_weight_sizes,
            .grad_bias_sizes = grad_bias_sizes,
            .pack_weight_forward = pack_weight_forward,
            .pack_weight_grad_input = pack_weight_grad_input,
            .forward = forward,
            .grad_input = grad_input,
            .grad_weight = grad_weight,
            .add_grad_weight = add_grad_weight<T>,
            .grad_bias = grad_bias,
            .add_grad_bias = add_grad_bias<T>};
  }
};

inline constexpr KernelTable make_table() {
  return {Depthwise<float>::kernels(), Depthwise<double>::kernels(), Depthwise<BFloat16>::kernels(),
          Depthwise<Half>::kernels()};
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
