#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace torch_ext::ops {

// The tensor in the autocast dtype of its device where autocast is on, else as it is. Composites cast first, so that
// their checks and choices see the dtype that is computed in.
at::Tensor autocast(const at::Tensor& tensor);
std::optional<at::Tensor> autocast(const std::optional<at::Tensor>& tensor);

// The tensor in float32 where autocast is on (float64 stays), else as it is.
at::Tensor autocast_to_float(const at::Tensor& tensor);
std::optional<at::Tensor> autocast_to_float(const std::optional<at::Tensor>& tensor);

}  // namespace torch_ext::ops
