#pragma once

// Fills a KernelTable with the kernels of one instruction set, which TORCH_EXT_ISA names. The headers that belong to no
// instruction set are included before, outside of the target region (see table_avx2.cpp).
#include "correlate.h"
#include "deform.h"
#include "direct.h"
#include "direct_gradients.h"
#include "grad_strips.h"
#include "gradients.h"
#include "pixel_gradients.h"
#include "pixels.h"
#include "strips.h"
#include "weights.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

template <class T>
struct Depthwise {
  using A = Acc<T>;

  // Calls body.template operator()<order>() for the plan's order, if it is one that all passes have.
  template <class Body>
  static void with_order(Order order, const Body& body) {
    if (order == Order::kPackedChannels) body.template operator()<Order::kPackedChannels>();
    else if (order == Order::kPackedColumns) body.template operator()<Order::kPackedColumns>();
    else if (order == Order::kChannelsInPlace) body.template operator()<Order::kChannelsInPlace>();
  }

  static void correlate(const CorrelatePlan& plan, View<const T> source, const A* weight, const T* bias, View<T> target,
                        Range items, A* scratch) {
    const auto run = [&]<class Kernel>() {
      Kernel kernel(plan, source, weight, bias, target, scratch);
      for (int64_t item = items.begin; item < items.end; ++item) kernel.item(item);
    };
    if (plan.order == Strips<T>::kOrder) return run.template operator()<Strips<T>>();
    with_order(plan.order, [&]<Order kOrder>() { run.template operator()<Correlate<T, kOrder>>(); });
  }
  static void grad_weight(const GradWeightPlan& plan, View<const T> grad_output, View<const T> input, A* partial_sums,
                          Range items, A* scratch) {
    const auto run = [&]<class Kernel>() {
      Kernel kernel(plan, grad_output, input, partial_sums, scratch);
      for (int64_t item = items.begin; item < items.end; ++item) kernel.item(item);
    };
    if (plan.order == Order::kStagedChannels) return run.template operator()<GradStrips<T, Order::kStagedChannels>>();
    if constexpr (std::same_as<T, A>)
      if (plan.order == Order::kColumnsInPlace) return run.template operator()<GradStrips<T, Order::kColumnsInPlace>>();
    with_order(plan.order, [&]<Order kOrder>() {
      run.template operator()<std::conditional_t<is_packed(kOrder), GradWeight<T, kOrder>, GradStrips<T, kOrder>>>();
    });
  }
  static void grad_bias(const GradBiasPlan& plan, View<const T> grad_output, A* partial_sums, Range items, A* scratch) {
    for (int64_t item = items.begin; item < items.end; ++item)
      TORCH_EXT_ISA::grad_bias(plan, grad_output, partial_sums, item, scratch);
  }

  static constexpr DepthwiseKernels<T> kernels() {
    return {.pack_weight = pack_weight<T>,
            .correlate = correlate,
            .grad_weight = grad_weight,
            .add_grad_weight = add_grad_weight<T>,
            .grad_bias = grad_bias,
            .add_grad_bias = add_grad_bias<T>};
  }
};

template <class T>
struct DirectConv {
  using A = Acc<T>;

  static void correlate(const DirectPlan& plan, View<const T> source, View<const A> weight, const T* bias,
                        View<T> target, Range items, A* scratch) {
    Direct<T> kernel(plan, source, weight, bias, target, scratch);
    for (int64_t item = items.begin; item < items.end; ++item) kernel.item(item);
  }
  static void grad_weight(const DirectGradPlan& plan, View<const T> grad_output, View<const T> input, A* partial_sums,
                          Range items, A* scratch) {
    DirectGradWeight<T> kernel(plan, grad_output, input, partial_sums, scratch);
    for (int64_t item = items.begin; item < items.end; ++item) kernel.item(item);
  }
  static void pixels(const PixelPlan& plan, View<const T> source, const A* weight, View<T> target, Range items,
                     A* scratch) {
    Pixels<T> kernel(plan, source, weight, target, scratch);
    for (int64_t item = items.begin; item < items.end; ++item) kernel.item(item);
  }
  static void pixel_grad_weight(const PixelGradPlan& plan, View<const T> grad_output, View<const T> input,
                                A* partial_sums, Range items, A* scratch) {
    PixelGradWeight<T> kernel(plan, grad_output, input, partial_sums, scratch);
    for (int64_t item = items.begin; item < items.end; ++item) kernel.item(item);
  }

  static constexpr DirectKernels<T> kernels() {
    return {.correlate = correlate,
            .grad_weight = grad_weight,
            .add_grad_weight = add_direct_grad_weight<T>,
            .pack_panels = pack_panels<T>,
            .pixels = pixels,
            .pixel_grad_weight = pixel_grad_weight,
            .add_pixel_grad_weight = add_pixel_grad_weight<T>};
  }
};

template <class T>
constexpr DeformKernels<T> deform_kernels() {
  return {.pack_positions = pack_positions<T>,
          .unpack_positions = unpack_positions<T>,
          .sample = sample<T>,
          .modulate = modulate<T>,
          .make_columns = make_columns<T>,
          .spread_columns = spread_columns<T>,
          .grad_offset = grad_offset<T>,
          .grad_mask = grad_mask<T>};
}

template <class T>
constexpr Kernels<T> kernels() {
  return {Depthwise<T>::kernels(), DirectConv<T>::kernels(), deform_kernels<T>()};
}

inline constexpr KernelTable make_table() {
  return {kernels<float>(), kernels<double>(), kernels<BFloat16>(), kernels<Half>()};
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
