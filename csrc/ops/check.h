#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "core/deform_geometry.h"

// The checks of every op, on any device and on symbolic sizes: tensors first, then the geometry.
namespace torch_ext::ops {

// float32, float64, bfloat16 and float16.
bool is_served(at::ScalarType type);

// Throws unless all tensors that are given are defined, strided, on one device and of one served dtype.
void check_tensors(const char* op, const at::Tensor& input, const at::Tensor& weight,
                   const std::optional<at::Tensor>& bias = {});

// Checks tensors and numbers and returns the geometry; Int is int64_t or c10::SymInt.
template <class Int>
ConvGeometry<Int> check_conv(const char* op, const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias, c10::ArrayRef<Int> stride,
                             c10::ArrayRef<Int> padding, c10::ArrayRef<Int> dilation, const Int& groups);

// The same for a backward op, whose grad_output must have the size of the output.
template <class Int>
ConvGeometry<Int> check_conv_backward(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                                      const at::Tensor& weight, c10::ArrayRef<Int> stride, c10::ArrayRef<Int> padding,
                                      c10::ArrayRef<Int> dilation, const Int& groups);

// A separable convolution as the two that it stands for.
template <class Int>
struct SeparableGeometry {
  ConvGeometry<Int> depthwise, pointwise;
};

template <class Int>
SeparableGeometry<Int> check_separable(const char* op, const at::Tensor& input, const at::Tensor& depthwise_weight,
                                       const at::Tensor& pointwise_weight, const std::optional<at::Tensor>& bias,
                                       c10::ArrayRef<Int> stride, c10::ArrayRef<Int> padding,
                                       c10::ArrayRef<Int> dilation);

template <class Int>
SeparableGeometry<Int> check_separable_backward(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                                                const at::Tensor& depthwise_weight, const at::Tensor& pointwise_weight,
                                                c10::ArrayRef<Int> stride, c10::ArrayRef<Int> padding,
                                                c10::ArrayRef<Int> dilation);

// Offset and mask may be in float32 where the others are in 16 bit.
template <class Int>
DeformGeometry<Int> check_deform(const char* op, const at::Tensor& input, const at::Tensor& offset,
                                 const at::Tensor& weight, const std::optional<at::Tensor>& mask,
                                 const std::optional<at::Tensor>& bias, c10::ArrayRef<Int> stride,
                                 c10::ArrayRef<Int> padding, c10::ArrayRef<Int> dilation);

template <class Int>
DeformGeometry<Int> check_deform_backward(const char* op, const at::Tensor& grad_output, const at::Tensor& input,
                                          const at::Tensor& offset, const at::Tensor& weight,
                                          const std::optional<at::Tensor>& mask, c10::ArrayRef<Int> stride,
                                          c10::ArrayRef<Int> padding, c10::ArrayRef<Int> dilation);

// Checks a depthwise weight [C*M, 1, *k] for an input [N, C, *].
void check_depthwise_weight(const char* op, const char* name, const at::Tensor& input, const at::Tensor& weight);

// Whether an output is channels_last: if input or weight suggests it; in 1-D if the input's channels are adjacent. And
// that of a separable convolution.
bool wants_channels_last(const at::Tensor& input, const at::Tensor& weight);
bool wants_channels_last(const at::Tensor& input, const at::Tensor& depthwise_weight,
                         const at::Tensor& pointwise_weight);

// An uninitialised output.
template <class Int>
at::Tensor empty_output(const at::TensorOptions& options, const ConvGeometry<Int>& geometry, bool channels_last);

// Whether a gradient of `tensor` is channels_last: if it suggests that, or in 1-D has adjacent channels.
bool has_channels_last(const at::Tensor& tensor);

// An uninitialised tensor of these sizes in the memory format of `tensor`, what gradients are; of its options or
// others.
at::Tensor empty_in_format_of(const at::Tensor& tensor, c10::SymIntArrayRef sizes);
at::Tensor empty_in_format_of(const at::Tensor& tensor, c10::SymIntArrayRef sizes, const at::TensorOptions& options);

}  // namespace torch_ext::ops
