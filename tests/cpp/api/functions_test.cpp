// The public C++ functions against ATen's: names, defaults, every form of an argument, errors, gradients.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch_ext.h>

namespace {

using at::randn;
using at::Tensor;

// at::conv2d with literals is ambiguous: a 0 for its padding could be a number or a word.
Tensor aten_conv(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias = {},
                 at::IntArrayRef stride = 1, at::IntArrayRef padding = 0, at::IntArrayRef dilation = 1,
                 int64_t groups = 1) {
  const std::vector<int64_t> zeros(input.dim() - 2);
  return at::convolution(input, weight, bias, stride, padding, dilation, /*transposed=*/false, zeros, groups);
}

void expect_close(const Tensor& actual, const Tensor& expected) {
  ASSERT_EQ(actual.sizes(), expected.sizes());
  EXPECT_TRUE(at::allclose(actual, expected, 1e-5, 1e-5)) << (actual - expected).abs().max();
}

TEST(Depthwise, DefaultsAndBias) {
  const Tensor weight1 = randn({6, 1, 3}), weight2 = randn({6, 1, 3, 5}), weight3 = randn({6, 1, 2, 3, 1});
  const Tensor input1 = randn({2, 3, 11}), input2 = randn({2, 3, 9, 8}), input3 = randn({2, 3, 5, 6, 7});
  const Tensor bias = randn({6});
  expect_close(torch_ext::depthwise_conv1d(input1, weight1), aten_conv(input1, weight1, {}, 1, 0, 1, 3));
  expect_close(torch_ext::depthwise_conv2d(input2, weight2), aten_conv(input2, weight2, {}, 1, 0, 1, 3));
  expect_close(torch_ext::depthwise_conv3d(input3, weight3, bias), aten_conv(input3, weight3, bias, 1, 0, 1, 3));
}

TEST(Depthwise, StridePaddingDilationAsNumberOrList) {
  const Tensor input = randn({2, 3, 12, 13}), weight = randn({3, 1, 3, 3});
  expect_close(torch_ext::depthwise_conv2d(input, weight, {}, 2, 1, 2), aten_conv(input, weight, {}, 2, 1, 2, 3));
  expect_close(torch_ext::depthwise_conv2d(input, weight, {}, {2, 1}, {1, 0}, {1, 2}),
               aten_conv(input, weight, {}, {2, 1}, {1, 0}, {1, 2}, 3));
}

TEST(Depthwise, PaddingBeforeAndAfter) {
  const Tensor input = randn({2, 3, 7, 8}), weight = randn({3, 1, 3, 3});
  const Tensor padded = at::constant_pad_nd(input, {2, 0, 0, 1});  // ATen's order: last axis first
  expect_close(torch_ext::depthwise_conv2d(input, weight, {}, 1, {0, 1, 2, 0}),
               aten_conv(padded, weight, {}, 1, 0, 1, 3));
}

TEST(Depthwise, PaddingAsWord) {
  const Tensor input = randn({1, 2, 9}), weight = randn({2, 1, 4});
  expect_close(torch_ext::depthwise_conv1d(input, weight, {}, 1, "valid"), aten_conv(input, weight, {}, 1, 0, 1, 2));
  expect_close(torch_ext::depthwise_conv1d(input, weight, {}, 1, "same"),
               aten_conv(at::constant_pad_nd(input, {1, 2}), weight, {}, 1, 0, 1, 2));
  expect_close(torch_ext::depthwise_conv1d(input, weight, {}, 1, "same_lower"),
               aten_conv(at::constant_pad_nd(input, {2, 1}), weight, {}, 1, 0, 1, 2));
  expect_close(torch_ext::depthwise_conv1d(input, weight, {}, 1, "causal"),
               aten_conv(at::constant_pad_nd(input, {3, 0}), weight, {}, 1, 0, 1, 2));
}

TEST(Depthwise, UnbatchedInput) {
  const Tensor input = randn({3, 7, 8}), weight = randn({3, 1, 3, 3});
  expect_close(torch_ext::depthwise_conv2d(input, weight),
               aten_conv(input.unsqueeze(0), weight, {}, 1, 0, 1, 3).squeeze(0));
}

TEST(Group, EqualsAten) {
  const Tensor input = randn({2, 6, 8, 8}), weight = randn({4, 3, 3, 3}), bias = randn({4});
  expect_close(torch_ext::group_conv2d(input, weight, bias, 2, 1, 1, 2), aten_conv(input, weight, bias, 2, 1, 1, 2));
  const Tensor dense = randn({5, 6, 3, 3});
  expect_close(torch_ext::group_conv2d(input, dense, {}, 1, "same"), aten_conv(input, dense, {}, 1, 1));
}

TEST(Transpose, EqualsAten) {
  const Tensor input = randn({2, 3, 5, 6}), weight = randn({3, 2, 3, 3});
  expect_close(torch_ext::depthwise_conv_transpose2d(input, weight, {}, 2, 1, 1),
               at::conv_transpose2d(input, weight, {}, 2, 1, 1, 3));
}

TEST(Separable, IsDepthwiseThenPointwise) {
  const Tensor input = randn({2, 3, 9, 9}), depthwise = randn({6, 1, 3, 3}), pointwise = randn({5, 6, 1, 1});
  const Tensor bias = randn({5});
  expect_close(torch_ext::separable_conv2d(input, depthwise, pointwise, bias, 2, 1),
               aten_conv(aten_conv(input, depthwise, {}, 2, 1, 1, 3), pointwise, bias));
}

TEST(Deform, OffsetsOfZeroAreNoOffsets) {
  const Tensor input = randn({2, 4, 9, 8}), weight = randn({6, 2, 3, 3}), bias = randn({6});
  const Tensor offset = at::zeros({2, 2 * 18, 5, 4}), mask = at::full({2, 2 * 9, 5, 4}, 0.5);
  expect_close(torch_ext::deform_conv2d(input, offset, weight, bias, 2, 1), aten_conv(input, weight, bias, 2, 1, 1, 2));
  expect_close(torch_ext::deform_conv2d(input, offset, weight, {}, 2, 1, 1, mask),
               aten_conv(input, weight * 0.5, {}, 2, 1, 1, 2));
  // A whole pixel to the right.
  const Tensor right = at::stack({at::zeros({1, 1, 9, 8}), at::ones({1, 1, 9, 8})}, 1).flatten(1, 2);
  expect_close(torch_ext::deform_conv2d(input[0].unsqueeze(0), right, randn({6, 4, 1, 1}).fill_(1)),
               at::constant_pad_nd(input[0].slice(2, 1), {0, 1}).sum(0).expand({1, 6, 9, 8}));
}

TEST(Autograd, GradientsReachInputAndWeight) {
  const Tensor input = randn({2, 3, 8, 8}).requires_grad_(), weight = randn({3, 1, 3, 3}).requires_grad_();
  torch_ext::depthwise_conv2d(input, weight, {}, 1, 1).square().sum().backward();
  const Tensor actual_input = input.grad().clone(), actual_weight = weight.grad().clone();
  input.mutable_grad().reset();
  weight.mutable_grad().reset();
  aten_conv(input, weight, {}, 1, 1, 1, 3).square().sum().backward();
  EXPECT_TRUE(at::allclose(actual_input, input.grad(), 1e-4, 1e-4));
  EXPECT_TRUE(at::allclose(actual_weight, weight.grad(), 1e-4, 1e-4));
}

TEST(Errors, NameTheFunctionAndSayWhatCame) {
  const Tensor input = randn({2, 3, 8, 8});
  try {
    torch_ext::depthwise_conv2d(input, randn({4, 1, 3, 3}));
    FAIL() << "expected an error";
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    EXPECT_NE(text.find("depthwise_conv2d"), std::string::npos) << text;
    EXPECT_NE(text.find("[4, 1, 3, 3]"), std::string::npos) << text;
  }
  EXPECT_THROW(torch_ext::depthwise_conv2d(input, randn({3, 1, 3, 3}), {}, 0), c10::Error);
  EXPECT_THROW(torch_ext::depthwise_conv2d(input, randn({3, 1, 3, 3}), {}, 1, "sane"), c10::Error);
}

TEST(Registration, OpsAreKnownToTheDispatcher) {
  for (const char* name :
       {"torch_ext::conv", "torch_ext::conv_backward", "torch_ext::separable_conv3d", "torch_ext::deform_conv"})
    EXPECT_TRUE(c10::Dispatcher::singleton().findSchema({name, ""}).has_value()) << name;
}

}  // namespace
