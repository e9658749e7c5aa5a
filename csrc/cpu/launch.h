#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "core/geometry.h"
#include "isa.h"
#include "kernels/table.h"
#include "ops/tensors.h"
#include "scratch.h"

// What lies between tensors and kernels: buffers and threads.
namespace torch_ext::cpu {

using Geometry = ConvGeometry<int64_t>;
using ops::dispatch;
using ops::is_empty;
using ops::move_into;
using ops::set_to_bias;
using ops::stride_of;
using ops::sum_type;
using ops::view;

inline const KernelTable& table() { return isa() == Isa::kScalar ? scalar_table() : avx2_table(); }

template <class T>
at::Tensor buffer(int64_t elements, const at::Tensor& like) {
  return at::empty({elements}, like.options().dtype(sum_type<T>()));
}

template <class T>
Acc<T>* data(const at::Tensor& buffer) {
  return static_cast<Acc<T>*>(buffer.mutable_data_ptr());
}

// The weight as the kernels read it: as it lies, if that is in Acc<T> with evenly spaced taps, else a copy, which
// `storage` owns.
template <class T>
View<const Acc<T>> wide_weight(const Geometry& g, const at::Tensor& weight, at::Tensor* storage) {
  if constexpr (std::same_as<T, Acc<T>>)
    if (const auto even = with_even_taps(g, view<const T>(weight))) return *even;
  *storage = weight.to(sum_type<T>(), false, true, at::MemoryFormat::Contiguous);
  return *with_even_taps(g, view<const Acc<T>>(*storage));
}

// Whether a result is in the type of the sums, not in T.
template <class T>
bool is_wide(const at::Tensor& result) {
  return !std::same_as<T, Acc<T>> && result.scalar_type() == at::kFloat;
}

// Runs kernel(range, scratch) over all items of a plan on the threads of PyTorch's pool. Small work stays on one
// thread.
template <class T, class Plan, class Kernel>
void parallel(const Plan& plan, const Geometry& g, const Kernel& kernel) {
  constexpr double kWorthAThread = 1 << 15;  // multiply-adds
  const double work = static_cast<double>(g.batch) * g.out_channels * g.in_per_group() * g.out[0] * g.out[1] *
                      g.out[2] * g.kernel[0] * g.kernel[1] * g.kernel[2] / plan.items();
  const auto grain = std::max<int64_t>(1, static_cast<int64_t>(kWorthAThread / std::max(work, 1.0)));
  at::parallel_for(0, plan.items(), grain, [&](int64_t begin, int64_t end) {
    auto* scratch = static_cast<Acc<T>*>(Scratch::of_this_thread().reserve(plan.scratch_size() * sizeof(Acc<T>)));
    kernel(Range{begin, end}, scratch);
  });
}

}  // namespace torch_ext::cpu
