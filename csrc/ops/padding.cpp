#include "padding.h"

#include <c10/util/Exception.h>
#include <torch/library.h>

#include "core/geometry.h"

namespace torch_ext::ops {

SymInts per_axis(const char* op, const char* name, c10::SymIntArrayRef list, int dims) {
  const size_t n = dims;
  TORCH_CHECK(list.size() == 1 || list.size() == n, op, ": expected ", name, " to have 1 or ", n, " numbers, but got ",
              list);
  return list.size() == n ? SymInts(list.begin(), list.end()) : SymInts(n, list[0]);
}

namespace {

SymInts numbers(const char* op, c10::SymIntArrayRef list, size_t n) {
  TORCH_CHECK(list.size() == 1 || list.size() == n || list.size() == 2 * n, op, ": expected padding to have 1, ", n,
              " or ", 2 * n, " numbers, but got ", list);
  SymInts result;
  for (size_t axis = 0; axis < n; ++axis) {
    const bool pairs = list.size() == 2 * n;
    result.push_back(pairs ? list[2 * axis] : list[list.size() == 1 ? 0 : axis]);
    result.push_back(pairs ? list[2 * axis + 1] : result.back());
  }
  return result;
}

}  // namespace

SymInts resolve_padding(const char* op, const Padding& padding, c10::SymIntArrayRef size, c10::SymIntArrayRef kernel,
                        c10::SymIntArrayRef stride, c10::SymIntArrayRef dilation) {
  const size_t n = size.size();
  if (const auto* list = std::get_if<c10::SymIntArrayRef>(&padding)) return numbers(op, *list, n);

  const auto mode = std::get<std::string_view>(padding);
  if (mode == "valid") return SymInts(2 * n, 0);
  const bool causal = mode == "causal", lower = mode == "same_lower";
  TORCH_CHECK(lower || mode == "same" || (causal && n == 1), op, ": expected padding 'valid', 'same', 'same_lower'",
              n == 1 ? " or 'causal'" : "", ", but got '", mode, "'");
  SymInts result;
  for (size_t axis = 0; axis < n; ++axis) {
    TORCH_CHECK(stride[axis] > 0, op, ": non-positive stride is not supported, but got stride ", stride);
    TORCH_CHECK(dilation[axis] > 0, op, ": dilation should be greater than zero, but got dilation ", dilation);
    TORCH_CHECK(size[axis] > 0 && kernel[axis] > 0, op, ": expected input and kernel sizes of at least 1 for padding '",
                mode, "', but got ", size, " and ", kernel);
    c10::SymInt before, after;
    TORCH_CHECK(same_padding(size[axis], kernel[axis], stride[axis], dilation[axis], &before, &after), op,
                ": sizes do not fit in 64 bits: kernel ", kernel, ", dilation ", dilation);
    if (causal) before = (kernel[axis] - 1) * dilation[axis], after = 0;
    if (lower) std::swap(before, after);
    result.push_back(before);
    result.push_back(after);
  }
  return result;
}

namespace {

std::vector<c10::SymInt> same_padding_op(c10::SymIntArrayRef size, c10::SymIntArrayRef kernel,
                                         c10::SymIntArrayRef stride, c10::SymIntArrayRef dilation,
                                         std::string_view mode) {
  const size_t n = size.size();
  TORCH_CHECK(n == kernel.size() && n == stride.size() && n == dilation.size(),
              "_same_padding: expected lists of one length, but got ", size, kernel, stride, dilation);
  const SymInts result = resolve_padding("_same_padding", mode, size, kernel, stride, dilation);
  return {result.begin(), result.end()};
}

TORCH_LIBRARY_IMPL(torch_ext, CompositeImplicitAutograd, m) { m.impl("_same_padding", same_padding_op); }

}  // namespace
}  // namespace torch_ext::ops
