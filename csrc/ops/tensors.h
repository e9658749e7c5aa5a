#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>

#include <concepts>
#include <optional>

#include "core/dtype.h"
#include "core/geometry.h"

// What lies between tensors and the kernels of any device: types, views, results.
namespace torch_ext::ops {

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

// Whether there is nothing to sum.
bool is_empty(const ConvGeometry<int64_t>& g);
void set_to_bias(at::Tensor& output, const std::optional<at::Tensor>& bias);  // what nothing is added to

// PyTorch's result in the strides that ours promises; most often it has them. The promise may be on the device meta.
void move_into(at::Tensor& result, const at::Tensor& computed);

}  // namespace torch_ext::ops
