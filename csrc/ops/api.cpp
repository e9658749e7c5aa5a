#include <torch/library.h>
#include <torch_ext.h>

#include "composite.h"

// The composites under their users' names: as ops of the dispatcher, and as the functions of the public header.
namespace torch_ext {
namespace {

using at::Tensor;
using c10::SymIntArrayRef;
using OptionalTensor = std::optional<at::Tensor>;

template <int dims, class P>  // P: how padding comes, SymIntArrayRef or std::string_view
Tensor depthwise_conv(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, SymIntArrayRef stride,
                      P padding, SymIntArrayRef dilation) {
  return ops::depthwise_conv(dims, input, weight, bias, stride, padding, dilation);
}

template <int dims, class P>
Tensor group_conv(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, SymIntArrayRef stride,
                  P padding, SymIntArrayRef dilation, c10::SymInt groups) {
  return ops::group_conv(dims, input, weight, bias, stride, padding, dilation, groups);
}

template <int dims, class P>
Tensor separable_conv(const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                      const OptionalTensor& bias, SymIntArrayRef stride, P padding, SymIntArrayRef dilation) {
  return ops::separable_conv(dims, input, depthwise_weight, pointwise_weight, bias, stride, padding, dilation);
}

template <int dims, class P>
Tensor deform_conv(const Tensor& input, const Tensor& offset, const Tensor& weight, const OptionalTensor& bias,
                   SymIntArrayRef stride, P padding, SymIntArrayRef dilation, const OptionalTensor& mask) {
  return ops::deform_conv(dims, input, offset, weight, bias, stride, padding, dilation, mask);
}

template <int dims>
Tensor depthwise_conv_transpose(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                SymIntArrayRef stride, SymIntArrayRef padding, SymIntArrayRef output_padding,
                                SymIntArrayRef dilation) {
  return ops::depthwise_conv_transpose(dims, input, weight, bias, stride, padding, output_padding, dilation);
}

template <int dims, class P>
void register_dims(torch::Library& m, const std::string& overload) {
  const auto name = [&](const char* family) { return family + std::to_string(dims) + "d" + overload; };
  m.impl(name("depthwise_conv").c_str(), depthwise_conv<dims, P>);
  m.impl(name("group_conv").c_str(), group_conv<dims, P>);
  m.impl(name("separable_conv").c_str(), separable_conv<dims, P>);
  m.impl(name("deform_conv").c_str(), deform_conv<dims, P>);
  if (overload.empty()) m.impl(name("depthwise_conv_transpose").c_str(), depthwise_conv_transpose<dims>);
}

TORCH_LIBRARY_IMPL(torch_ext, CompositeImplicitAutograd, m) {
  register_dims<1, SymIntArrayRef>(m, "");
  register_dims<2, SymIntArrayRef>(m, "");
  register_dims<3, SymIntArrayRef>(m, "");
  register_dims<1, std::string_view>(m, ".padding");
  register_dims<2, std::string_view>(m, ".padding");
  register_dims<3, std::string_view>(m, ".padding");
}

ops::Padding to_ops(const Padding& padding) {
  if (const auto* list = std::get_if<std::vector<int64_t>>(&padding.value())) return c10::fromIntArrayRefSlow(*list);
  return std::get<std::string_view>(padding.value());
}

SymIntArrayRef symbolic(at::IntArrayRef list) { return c10::fromIntArrayRefSlow(list); }

}  // namespace

#define TORCH_EXT_DEFINE(dims)                                                                                        \
  Tensor depthwise_conv##dims##d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,               \
                                 at::IntArrayRef stride, const Padding& padding, at::IntArrayRef dilation) {          \
    return ops::depthwise_conv(dims, input, weight, bias, symbolic(stride), to_ops(padding), symbolic(dilation));     \
  }                                                                                                                   \
  Tensor group_conv##dims##d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,                   \
                             at::IntArrayRef stride, const Padding& padding, at::IntArrayRef dilation,                \
                             int64_t groups) {                                                                        \
    return ops::group_conv(dims, input, weight, bias, symbolic(stride), to_ops(padding), symbolic(dilation), groups); \
  }                                                                                                                   \
  Tensor depthwise_conv_transpose##dims##d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,     \
                                           at::IntArrayRef stride, at::IntArrayRef padding,                           \
                                           at::IntArrayRef output_padding, at::IntArrayRef dilation) {                \
    return ops::depthwise_conv_transpose(dims, input, weight, bias, symbolic(stride), symbolic(padding),              \
                                         symbolic(output_padding), symbolic(dilation));                               \
  }                                                                                                                   \
  Tensor separable_conv##dims##d(const Tensor& input, const Tensor& depthwise_weight, const Tensor& pointwise_weight, \
                                 const OptionalTensor& bias, at::IntArrayRef stride, const Padding& padding,          \
                                 at::IntArrayRef dilation) {                                                          \
    return ops::separable_conv(dims, input, depthwise_weight, pointwise_weight, bias, symbolic(stride),               \
                               to_ops(padding), symbolic(dilation));                                                  \
  }                                                                                                                   \
  Tensor deform_conv##dims##d(const Tensor& input, const Tensor& offset, const Tensor& weight,                        \
                              const OptionalTensor& bias, at::IntArrayRef stride, const Padding& padding,             \
                              at::IntArrayRef dilation, const OptionalTensor& mask) {                                 \
    return ops::deform_conv(dims, input, offset, weight, bias, symbolic(stride), to_ops(padding), symbolic(dilation), \
                            mask);                                                                                    \
  }

TORCH_EXT_DEFINE(1)
TORCH_EXT_DEFINE(2)
TORCH_EXT_DEFINE(3)

#undef TORCH_EXT_DEFINE

}  // namespace torch_ext
