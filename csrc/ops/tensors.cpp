#include "tensors.h"

#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty_strided.h>

namespace torch_ext::ops {

bool is_empty(const ConvGeometry<int64_t>& g) {
  bool empty = g.batch == 0 || g.in_channels == 0 || g.out_channels == 0;
  for (int axis = 0; axis < 3; ++axis) empty |= g.in[axis] == 0;
  return empty;
}

void set_to_bias(at::Tensor& output, const std::optional<at::Tensor>& bias) {
  if (!bias || !bias->defined()) {
    output.zero_();
    return;
  }
  std::vector<int64_t> per_channel(output.dim() - 1, 1);
  per_channel[0] = -1;
  output.copy_(bias->view(per_channel).expand_as(output));
}

void move_into(at::Tensor& result, const at::Tensor& computed) {
  bool same = true;  // but for the strides of axes of size 1, along which nobody steps
  for (int64_t axis = 0; axis < result.dim(); ++axis)
    same &= result.size(axis) == 1 || computed.stride(axis) == result.stride(axis);
  if (same) {
    result =
        computed.strides() == result.strides() ? computed : at::as_strided(computed, result.sizes(), result.strides());
    return;
  }
  if (result.is_meta()) result = at::empty_strided(result.sizes(), result.strides(), computed.options());
  result.copy_(computed);
}

}  // namespace torch_ext::ops
