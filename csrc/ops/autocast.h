#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace torch_ext::ops {

// The tensor in the autocast dtype of its device where autocast is on, else as it is. Composites cast first, so that
// their checks and choices see the dtype that is computed in.
at::Tensor autocast(const at::Tensor& tensor);
std::optional<at::Tensor> autocast(const std::optional<at::Tensor>& tensor);

}  // namespace torch_ext::ops
