#pragma once

// Fills a KernelTable with the kernels of one instruction set, which TORCH_EXT_ISA names. The headers that belong to no
// instruction set are included before, outside of the target region (see table_avx2.cpp).
#include "correlate.h"
#include "grad_strips.h"
#include "gradients.h"
#include "strips.h"
#include "weights.h"

namespace torch_ext::cpu::TORCH_EXT_ISA {

template <class T>
struct Depthwise {
  using A = Acc<T>;

  // Calls body.template operator()<order>() for the plan's order. 16-bit types have no masked loads for the edges of
  // columns in place.
  template <class Body>
  static void with_order(Order order, const Body& body) {
    if (order == Order::kPackedChannels) body.template operator()<Order::kPackedChannels>();
    else if (order == Order::kPackedColumns) body.template operator()<Order::kPackedColumns>();
    else if (order == Order::kChannelsInPlace) body.template operator()<Order::kChannelsInPlace>();
    else if constexpr (std::same_as<T, A>) body.template operator()<Order::kColumnsInPlace>();
  }

  static void correlate(const CorrelatePlan& plan, View<const T> source, const A* weight, const T* bias, View<T> target,
                        Range items, A* scratch) {
    with_order(plan.order, [&]<Order kOrder>() {
      using Kernel = std::conditional_t<kOrder == Order::kColumnsInPlace, Strips<A>, Correlate<T, kOrder>>;
      Kernel kernel(plan, source, weight, bias, target, scratch);
      for (int64_t item = items.begin; item < items.end; ++item) kernel.item(item);
    });
  }
  static void grad_weight(const GradWeightPlan& plan, View<const T> grad_output, View<const T> input, A* partial_sums,
                          Range items, A* scratch) {
    with_order(plan.order, [&]<Order kOrder>() {
      using Kernel = std::conditional_t<is_packed(kOrder), GradWeight<T, kOrder>, GradStrips<T, kOrder>>;
      Kernel kernel(plan, grad_output, input, partial_sums, scratch);
      for (int64_t item = items.begin; item < items.end; ++item) kernel.item(item);
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

inline constexpr KernelTable make_table() {
  return {Depthwise<float>::kernels(), Depthwise<double>::kernels(), Depthwise<BFloat16>::kernels(),
          Depthwise<Half>::kernels()};
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA
