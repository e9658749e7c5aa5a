#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/geometry.h"

namespace torch_ext {
namespace {

using Sizes = std::vector<int64_t>;
constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

struct Problem {
  Sizes input{2, 8, 10, 12}, weight{8, 1, 3, 5}, stride{1, 2}, padding{1, 1, 0, 3}, dilation{1, 2};
  std::vector<Sizes> bias = {};  // none or one
  int64_t groups = 8;

  std::string make(ConvGeometry<int64_t>* g) const {
    std::optional<std::span<const int64_t>> bias_span;
    if (!bias.empty()) bias_span = bias[0];
    return make_geometry<int64_t>({"conv", input, weight, bias_span, stride, padding, dilation, groups}, g);
  }
  std::string error() const {
    ConvGeometry<int64_t> g;
    return make(&g);
  }
};

void expect_error(const Problem& p, const std::string& words) {
  const std::string error = p.error();
  EXPECT_TRUE(error.starts_with("conv: ")) << error;
  EXPECT_NE(error.find(words), std::string::npos) << error;
}

TEST(Geometry, FillsInTheAxesThatAreNotThere) {
  ConvGeometry<int64_t> g;
  ASSERT_EQ(Problem{}.make(&g), "");
  EXPECT_EQ(g.dims, 2);
  const auto triple = [](const Triple<int64_t>& t) { return Sizes{t[0], t[1], t[2]}; };
  EXPECT_EQ(triple(g.in), (Sizes{1, 10, 12}));
  EXPECT_EQ(triple(g.kernel), (Sizes{1, 3, 5}));
  EXPECT_EQ(triple(g.stride), (Sizes{1, 1, 2}));
  EXPECT_EQ(triple(g.dilation), (Sizes{1, 1, 2}));
  EXPECT_EQ(triple(g.pad_before), (Sizes{0, 1, 0}));
  EXPECT_EQ(triple(g.pad_after), (Sizes{0, 1, 3}));
  EXPECT_EQ(triple(g.out), (Sizes{1, 10, 4}));
  EXPECT_EQ(g.in_per_group(), 1);
  EXPECT_EQ(g.out_per_group(), 1);
}

TEST(Geometry, Ranks) {
  expect_error({.input = {8, 10}}, "expected a batched input of 3, 4 or 5 dimensions, but got input of size [8, 10]");
  expect_error({.input = {1, 8, 2, 2, 2, 2}}, "expected a batched input");
  expect_error({.weight = {8, 1, 3}}, "same number of dimensions");
  expect_error({.bias = {Sizes{8, 1}}}, "expected bias of 1 dimension, but got bias of size [8, 1]");
  expect_error({.stride = {1}}, "expected stride to have 2 numbers, but got [1]");
  expect_error({.padding = {1, 1}}, "expected padding to have 4 numbers");
  expect_error({.dilation = {}}, "expected dilation to have 2 numbers, but got []");
}

TEST(Geometry, Numbers) {
  expect_error({.stride = {0, 1}}, "non-positive stride is not supported");
  expect_error({.stride = {1, -kHuge}}, "non-positive stride is not supported");
  expect_error({.dilation = {1, 0}}, "dilation should be greater than zero");
  expect_error({.padding = {0, 0, -1, 0}}, "negative padding is not supported");
  expect_error({.groups = 0}, "non-positive groups is not supported");
  expect_error({.weight = {8, 1, 0, 3}}, "expected kernel sizes of at least 1");
}

TEST(Geometry, Channels) {
  expect_error({.weight = {4, 1, 3, 3}}, "Given groups=8, ");
  expect_error({.weight = {4, 1, 3, 3}}, "expected weight to be at least 8 at dimension 0");
  expect_error({.input = {2, 9, 10, 12}}, "expected input channels to be divisible by groups");
  expect_error({.weight = {12, 1, 3, 3}}, "expected weight's first size to be divisible by groups");
  expect_error({.weight = {8, 2, 3, 3}}, "to have 16 channels, but got 8 channels instead");
  expect_error({.bias = {Sizes{7}}}, "expected bias of size [8], but got bias of size [7]");
}

TEST(Geometry, SizesThatDoNotFit) {
  expect_error({.weight = {8, 1, 13, 5}}, "Kernel size can't be greater than actual input size");
  expect_error({.dilation = {1, 4}}, "Calculated padded input size per channel: 15, kernel size: 17");
  expect_error({.padding = {kHuge, 1, 0, 0}}, "sizes do not fit in 64 bits");
  expect_error({.padding = {1, kHuge, 0, 0}}, "sizes do not fit in 64 bits");
  expect_error({.dilation = {kHuge, 1}}, "sizes do not fit in 64 bits");
  expect_error({.padding = {kHuge / 2, kHuge / 4, kHuge / 4, 0}}, "at most 2^50 elements");
  for (const int64_t k : {int64_t(1) << 51, int64_t(1) << 60, (int64_t(1) << 61) + 8})
    expect_error({.weight = {8, 1, k, 5}, .padding = {k, 0, 0, 0}}, "at most 2^50 elements");
}

TEST(Geometry, NumbersAtTheEdge) {
  ConvGeometry<int64_t> g;
  Problem p{.stride = {kHuge, kHuge}, .padding = {kHuge - 10, 0, 0, kHuge - 12}, .dilation = {1, 1}};
  ASSERT_EQ(p.make(&g), "");
  EXPECT_EQ(g.out[1], 1);
  EXPECT_EQ(g.out[2], 1);
}

TEST(Geometry, Depthwise) {
  const auto depthwise = [](int64_t in, int64_t out, int64_t groups) {
    ConvGeometry<int64_t> g{};
    g.in_channels = in, g.out_channels = out, g.groups = groups;
    return is_depthwise(g);
  };
  EXPECT_TRUE(depthwise(8, 8, 8));
  EXPECT_TRUE(depthwise(8, 16, 8));
  EXPECT_TRUE(depthwise(16, 8, 8));
  EXPECT_TRUE(depthwise(1, 1, 1));
  EXPECT_FALSE(depthwise(1, 8, 1));
  EXPECT_FALSE(depthwise(8, 1, 1));
  EXPECT_FALSE(depthwise(16, 16, 8));
}

using Pair = std::pair<int64_t, int64_t>;

TEST(SamePadding, IsTensorFlows) {
  const auto same = [](int64_t in, int64_t kernel, int64_t stride, int64_t dilation) {
    int64_t before, after;
    same_padding<int64_t>(in, kernel, stride, dilation, &before, &after);
    return Pair(before, after);
  };
  EXPECT_EQ(same(4, 3, 2, 1), Pair(0, 1));
  EXPECT_EQ(same(5, 3, 2, 1), Pair(1, 1));
  EXPECT_EQ(same(10, 3, 1, 1), Pair(1, 1));
  EXPECT_EQ(same(10, 4, 1, 1), Pair(1, 2));
  EXPECT_EQ(same(10, 3, 1, 4), Pair(4, 4));
  EXPECT_EQ(same(10, 1, 3, 1), Pair(0, 0));
  for (int64_t in = 1; in < 20; ++in)
    for (int64_t kernel = 1; kernel < 6; ++kernel)
      for (int64_t stride = 1; stride < 5; ++stride) {
        const auto [before, after] = same(in, kernel, stride, 2);
        int64_t padded, extent, out;
        ASSERT_TRUE(output_size<int64_t>(in, kernel, stride, 2, before, after, &padded, &extent, &out));
        EXPECT_EQ(out, (in + stride - 1) / stride);
        EXPECT_TRUE(after == before || after == before + 1);
      }
}

}  // namespace
}  // namespace torch_ext
