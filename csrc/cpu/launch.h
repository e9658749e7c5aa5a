#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "core/geometry.h"
#include "isa.h"
#include "kernels/table.h"
#include "scratch.h"

// What lies between tensors and kernels: types, views, buffers and threads.
namespace torch_ext::cpu {

using Geometry = ConvGeometry<int64_t>;

template <class T>
struct KernelTypeOf {
  using type = T;
};
template <>
struct KernelTypeOf<at::BFloat16> {
  using type = BFloat16;
};
template <>
struct KernelTypeOf<at::Half> {
  using type = Half;
};

inline const KernelTable& table() { return isa() == Isa::kScalar ? scalar_table() : avx2_table(); }

// Calls `body` with a null pointer of the kernels' storage type.
template <class Body>
void dispatch(const at::Tensor& tensor, const Body& body) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, tensor.scalar_type(), "torch_ext",
                                  [&] { body(static_cast<typename KernelTypeOf<scalar_t>::type*>(nullptr)); });
}

// Sizes of 1 get stride 0, so that no kernel steps along them.
inline int64_t stride_of(const at::Tensor& tensor, int64_t axis) {
  return tensor.size(axis) == 1 ? 0 : tensor.stride(axis);
}

// [n, c, *] as a view with three spatial axes.
template <class T>
View<T> view(const at::Tensor& tensor) {
  const auto stride = [&](int64_t axis) { return stride_of(tensor, axis); };
  View<T> result{static_cast<T*>(const_cast<void*>(tensor.const_data_ptr())), stride(0), stride(1), {}};
  const int leading = 5 - static_cast<int>(tensor.dim());
  for (int axis = 0; axis < 3; ++axis) result.spatial[axis] = axis < leading ? 0 : stride(axis - leading + 2);
  return result;
}

// The dtype of Acc<T>.
template <class T>
constexpr at::ScalarType sum_type() {
  return std::same_as<Acc<T>, double> ? at::kDouble : at::kFloat;
}

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
