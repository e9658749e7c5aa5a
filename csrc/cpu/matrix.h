#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>

#include "launch.h"

// PyTorch's matrix product, on each thread for itself.
namespace torch_ext::cpu {

// A matrix, of any strides.
template <class A>
struct Matrix {
  A* data;
  int64_t rows, columns, row_stride, column_stride;

  Matrix transposed() const { return {data, columns, rows, column_stride, row_stride}; }
  at::Tensor tensor() const {
    return at::from_blob(data, {rows, columns}, {row_stride, column_stride}, at::TensorOptions().dtype(sum_type<A>()));
  }
};

// c = beta * c + a * b, on this thread.
template <class A>
void multiply(const Matrix<A>& c, const Matrix<A>& a, const Matrix<A>& b, double beta) {
  at::AutoDispatchBelowADInplaceOrView guard;
  c.tensor().addmm_(a.tensor(), b.tensor(), beta, 1);
}

// Runs body(i) for all items. A second, empty one sees to it that PyTorch's matrix product takes one thread: it would
// take them all if there were but one item, and sum in another order.
template <class Body>
void for_each_item(int64_t items, const Body& body) {
  at::parallel_for(0, std::max<int64_t>(items, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < std::min(end, items); ++i) body(i);
  });
}

}  // namespace torch_ext::cpu
