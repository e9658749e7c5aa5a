#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

// The functions of torch_ext for C++ programs: the same names, arguments and defaults as in Python.
//
// Lists are one number for every axis or one per axis; padding also takes two per axis (before, after; axis by axis) or
// a word: "valid", "same", "same_lower", in 1-D "causal". Input is [N, C, *] or [C, *]. Bad arguments throw c10::Error.
// Linking this library, or loading it with dlopen, also registers the ops for scripted and AOT-compiled models.
namespace torch_ext {

// Padding as numbers or as a word.
class Padding {
 public:
  Padding(std::integral auto every_side) : value_(std::vector<int64_t>{static_cast<int64_t>(every_side)}) {}
  Padding(std::initializer_list<int64_t> list) : value_(std::vector<int64_t>(list)) {}
  Padding(at::IntArrayRef list) : value_(list.vec()) {}
  Padding(std::string_view word) : value_(word) {}
  Padding(const char* word) : value_(std::string_view(word)) {}

  const std::variant<std::vector<int64_t>, std::string_view>& value() const { return value_; }

 private:
  std::variant<std::vector<int64_t>, std::string_view> value_;
};

#define TORCH_EXT_EXPORT __attribute__((visibility("default")))

// Declares the 1-D, 2-D and 3-D form of one function.
#define TORCH_EXT_DECLARE(name, ...)                 \
  TORCH_EXT_EXPORT at::Tensor name##1d(__VA_ARGS__); \
  TORCH_EXT_EXPORT at::Tensor name##2d(__VA_ARGS__); \
  TORCH_EXT_EXPORT at::Tensor name##3d(__VA_ARGS__)

// weight [C*M, 1, *k]; output channel c*M + m belongs to input channel c.
TORCH_EXT_DECLARE(depthwise_conv, const at::Tensor& input, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias = {}, at::IntArrayRef stride = 1, const Padding& padding = 0,
                  at::IntArrayRef dilation = 1);

// weight [O, C/groups, *k].
TORCH_EXT_DECLARE(group_conv, const at::Tensor& input, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias = {}, at::IntArrayRef stride = 1, const Padding& padding = 0,
                  at::IntArrayRef dilation = 1, int64_t groups = 1);

// weight [C, M, *k].
TORCH_EXT_DECLARE(depthwise_conv_transpose, const at::Tensor& input, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias = {}, at::IntArrayRef stride = 1, at::IntArrayRef padding = 0,
                  at::IntArrayRef output_padding = 0, at::IntArrayRef dilation = 1);

// depthwise_weight [C*M, 1, *k], pointwise_weight [O, C*M, 1, ...].
TORCH_EXT_DECLARE(separable_conv, const at::Tensor& input, const at::Tensor& depthwise_weight,
                  const at::Tensor& pointwise_weight, const std::optional<at::Tensor>& bias = {},
                  at::IntArrayRef stride = 1, const Padding& padding = 0, at::IntArrayRef dilation = 1);

// offset [N, n*G*taps, *out] for G offset groups; mask [N, G*taps, *out], a factor of each sample.
TORCH_EXT_DECLARE(deform_conv, const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias = {}, at::IntArrayRef stride = 1, const Padding& padding = 0,
                  at::IntArrayRef dilation = 1, const std::optional<at::Tensor>& mask = {});

#undef TORCH_EXT_DECLARE
#undef TORCH_EXT_EXPORT

}  // namespace torch_ext
