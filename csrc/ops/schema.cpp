#include <ATen/core/enum_tag.h>
#include <torch/library.h>

#include <string>

// Every op's schema. Core ops take batched tensors, n strides and dilations and 2n paddings (axis by axis: before,
// after). The user's names are composites over them: sized lists, so that scripted code may pass a plain int.
namespace torch_ext {
namespace {

void define_composites(torch::Library& m, int dims) {
  const std::string n = std::to_string(dims), list = "SymInt[" + n + "] ";
  // Two overloads: padding as numbers, and padding as a word.
  const auto define = [&](const std::string& name, const std::string& tensors, const std::string& tail) {
    for (const bool word : {false, true}) {
      const std::string padding = word ? "str padding=\"valid\"" : list + "padding=0";
      m.def((name + n + "d" + (word ? ".padding" : "") + "(" + tensors + ", Tensor? bias=None, " + list + "stride=1, " +
             padding + ", " + list + "dilation=1" + tail + ") -> Tensor")
                .c_str());
    }
  };
  define("depthwise_conv", "Tensor input, Tensor weight", "");
  define("group_conv", "Tensor input, Tensor weight", ", SymInt groups=1");
  define("separable_conv", "Tensor input, Tensor depthwise_weight, Tensor pointwise_weight", "");
  define("deform_conv", "Tensor input, Tensor offset, Tensor weight", ", Tensor? mask=None");
  m.def(("depthwise_conv_transpose" + n + "d(Tensor input, Tensor weight, Tensor? bias=None, " + list + "stride=1, " +
         list + "padding=0, " + list + "output_padding=0, " + list + "dilation=1) -> Tensor")
            .c_str());
}

TORCH_LIBRARY(torch_ext, m) {
  // Our kernels take any strides, so Inductor need not make copies to keep those it saw.
  m.def(
      "conv(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
      "SymInt groups) -> Tensor",
      {at::Tag::flexible_layout});
  m.def(
      "conv_backward(Tensor grad_output, Tensor input, Tensor weight, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups, bool[3] output_mask) -> (Tensor, Tensor, Tensor)",
      {at::Tag::flexible_layout});
  m.def(
      "separable_conv(Tensor input, Tensor depthwise_weight, Tensor pointwise_weight, Tensor? bias, SymInt[] stride, "
      "SymInt[] padding, SymInt[] dilation) -> Tensor",
      {at::Tag::flexible_layout});
  m.def(
      "separable_conv_backward(Tensor grad_output, Tensor input, Tensor depthwise_weight, Tensor pointwise_weight, "
      "SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool[4] output_mask) -> (Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::flexible_layout});
  m.def(
      "deform_conv(Tensor input, Tensor offset, Tensor weight, Tensor? mask, Tensor? bias, SymInt[] stride, "
      "SymInt[] padding, SymInt[] dilation) -> Tensor",
      {at::Tag::flexible_layout});
  m.def(
      "deform_conv_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, Tensor? mask, "
      "SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool[5] output_mask) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::flexible_layout});
  for (const int dims : {1, 2, 3}) define_composites(m, dims);

  m.def(
      "_which_kernel(str op, Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, SymInt groups, str output) -> str");
  m.def(
      "_which_separable_kernel(str op, Tensor input, Tensor depthwise_weight, Tensor pointwise_weight, Tensor? bias, "
      "SymInt[] stride, SymInt[] padding, SymInt[] dilation, str output) -> str");
  m.def("_has_kernel(Tensor weight, SymInt[] dilation, SymInt groups) -> bool");
  m.def("_same_padding(SymInt[] size, SymInt[] kernel, SymInt[] stride, SymInt[] dilation, str mode) -> SymInt[]");
  m.def("_isa() -> str");
  m.def("_set_isa(str isa) -> ()");
  m.def("_build_info() -> str");
}

}  // namespace
}  // namespace torch_ext
