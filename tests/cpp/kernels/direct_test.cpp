#include "kernel_case.h"

#include <array>

namespace torch_ext::test {
namespace {

class Direct : public KernelTest {
 protected:
  void check_direct(const Case& c) const { check_all(c, Family::kDirect); }
};
INSTANTIATE_FOR_EVERY_ISA(Direct);

constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kChannelsLast, Layout::kSliced, Layout::kExpanded};

Case groups_of(int64_t groups, int64_t inputs, int64_t outputs, int64_t size, int64_t kernel) {
  Case c = square(groups * inputs, size, kernel, kernel / 2);
  c.out_channels = groups * outputs;
  c.groups = groups;
  c.batch = 1;
  return c;
}

TEST_P(Direct, ChannelsAndWidths) {
  int i = 0;
  for (int64_t inputs : {1, 2, 3, 4, 7, 8, 9, 13})
    for (int64_t width : {1, 2, 3, 5, 7, 8, 9, 17, 26, 41}) {
      Case c = groups_of(1 + i % 5, inputs, std::array{1, 2, 3, 5, 6, 8, 9, 11, 16}[i % 9], 3, 3);
      c.in[1] = width;
      c.batch = 1 + i % 2;
      c.bias = i % 3;
      c.input_layout = kLayouts[(i + i / 10) % 4];
      c.output_layout = kLayouts[(i + i / 4) % 3];
      c.weight_layout = kLayouts[(i + i / 7) % 3];
      ++i;
      check_direct(c);
    }
}

TEST_P(Direct, KernelsStridesAndDilations) {
  int i = 0;
  for (int64_t kernel : {1, 2, 3, 5, 7})
    for (int64_t stride : {1, 2, 3, 4})
      for (int64_t dilation : {1, 2, 3, 6}) {
        Case c = groups_of(3, 2 + i % 4, 2 + i % 3, 7 + i % 13, kernel);
        c.stride = {1 + (stride + i) % 3, stride};
        c.dilation = {1 + i % 4, dilation};
        c.padding = {c.dilation[0] * (kernel - 1), i % 3, c.dilation[1] * (kernel - 1), i % 5};
        c.bias = i % 2;
        c.input_layout = c.output_layout = i % 2 ? Layout::kChannelsLast : Layout::kContiguous;
        if (i % 5 == 0) c.output_layout = Layout::kPitched;
        ++i;
        check_direct(c);
      }
}

// Channels are adjacent, and those of a group fill vectors: lanes are channels.
TEST_P(Direct, Pixels) {
  int i = 0;
  for (int64_t inputs : {4, 8, 13, 16})
    for (int64_t outputs : {8, 9, 24, 40})
      for (int64_t kernel : {1, 2, 3, 5})
        for (int64_t stride : {1, 2, 3}) {
          Case c = groups_of(1 + i % 4, inputs, outputs, 5 + i % 11, kernel);
          if (i % 2) std::swap(c.in_channels, c.out_channels);
          c.stride = {stride, 1 + i % 3};
          c.dilation = {1 + i / 3 % 2, 1 + i / 2 % 3};
          c.padding = {c.dilation[0] * (kernel - 1), i % 3, c.dilation[1] * (kernel - 1), i / 4 % 5};
          if (i % 5 == 0 && kernel <= 3) c.padding = {i % 2, 1, 0, 0}, c.in = {7, 7 + i % 13};
          c.bias = i % 3;
          c.input_layout = c.output_layout = Layout::kChannelsLast;
          c.weight_layout = kLayouts[i / 2 % 3];
          ++i;
          check_direct(c);
          c.input_layout = kLayouts[i / 2 % 4];
          c.output_layout = kLayouts[i / 8 % 3];
          check_direct(c);  // rows are short, or strided
        }
  // Strides larger than the image, over wide padding.
  for (int64_t kernel : {1, 2, 6})
    for (int64_t size : {1, 2, 3}) {
      Case c = groups_of(2, 8, 8, size, kernel);
      c.stride = {3, 3};
      c.dilation = {2, 3};
      c.padding = {10, 2, 15, 4};
      check_direct(c);
      c.input_layout = c.output_layout = Layout::kChannelsLast;
      check_direct(c);
    }
  // Strided rows in several tiles; phases of columns together, and one by one.
  constexpr Layout kLast = Layout::kChannelsLast, kFirst = Layout::kContiguous;
  check_direct({1, 64, 64, 2, {5, 301}, {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 1}});
  check_direct({1, 64, 64, 2, {5, 301}, {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 2}, kLast, kFirst});
  check_direct({1, 48, 48, 3, {5, 200}, {5, 4}, {1, 2}, {2, 2, 30, 1}, {1, 1}});
  check_direct({1, 48, 48, 3, {3, 200}, {1, 5}, {1, 9}, {0, 0, 7, 9}, {1, 1}});
  check_direct({1, 48, 48, 3, {3, 200}, {1, 5}, {1, 8}, {0, 0, 7, 9}, {1, 1}, kLast, kLast});
  check_direct({1, 48, 48, 3, {3, 200}, {1, 5}, {1, 8}, {0, 0, 7, 9}, {1, 4}, kFirst, kLast});
  // As many lines of products as there may be: taps that are cut where a sum is full.
  check_direct({1, 127, 8, 1, {17, 20}, {15, 15}, {2, 3}, {0, 0, 0, 0}, {1, 1}, kLast, kLast});
  check_direct({1, 127, 8, 1, {29, 30}, {15, 15}, {1, 1}, {0, 0, 0, 0}, {2, 2}, kLast, kLast});
  // Blocks of terms.
  check_direct({1, 130, 17, 1, {1, 600}, {1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}});
  check_direct({1, 130, 9, 1, {2, 70}, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}});
  // Sums of more than kTapsPerSum products, rows in several tiles, blocks of groups.
  Case c = groups_of(2, 150, 16, 9, 3);
  c.input_layout = c.output_layout = Layout::kChannelsLast;
  check_direct(c);
  c = groups_of(30, 8, 8, 70, 3);
  c.in[0] = 5;
  c.input_layout = c.output_layout = Layout::kChannelsLast;
  check_direct(c);
  // More weights than sums fit in a block: outputs, or inputs, come in parts.
  for (const auto& [inputs, outputs, kernel] :
       {std::array<int64_t, 3>{104, 8, 7}, {40, 8, 11}, {92, 4, 7}, {4, 72, 15}})
    for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
      c = groups_of(2, inputs, outputs, 9, kernel);
      c.input_layout = c.output_layout = layout;
      check_direct(c);
    }
  for (int64_t outputs : {10, 23}) {
    c = groups_of(2, 16, outputs, 9, 15);
    c.input_layout = c.output_layout = outputs % 2 ? Layout::kContiguous : Layout::kChannelsLast;
    check_direct(c);
    std::swap(c.in_channels, c.out_channels);
    check_direct(c);
  }
  check_direct({2,
                32,
                32,
                2,
                {4, 5, 19},
                {3, 3, 3},
                {1, 2, 1},
                {1, 1, 1, 1, 1, 1},
                {1, 1, 2},
                Layout::kChannelsLast,
                Layout::kChannelsLast});
}

// Channels are adjacent, and several groups fill a vector: depthwise kernels permute its lanes.
TEST_P(Direct, GroupsShareVectors) {
  int i = 0;
  const auto channels_last = [](Case c) {
    c.input_layout = c.output_layout = Layout::kChannelsLast;
    return c;
  };
  for (int64_t channels : {2, 4})
    for (int64_t groups : {2, 3, 4, 5, 9})
      for (int64_t kernel : {1, 2, 3, 5, 6})
        for (int64_t stride : {1, 2, 3}) {
          Case c = channels_last(groups_of(groups, channels, channels, 1 + i % 11, kernel));
          c.in[0] = 3 + i % 7;
          c.stride = {stride, 1 + i % 3};
          c.dilation = {1 + i / 3 % 2, 1 + i / 2 % 3};
          c.padding = {c.dilation[0] * (kernel - 1), i % 3, c.dilation[1] * (kernel - 1), i / 4 % 5};
          c.batch = 1 + i % 2;
          c.bias = i % 3;
          c.weight_layout = kLayouts[i / 2 % 3];
          if (i % 4 == 3) c.input_layout = kLayouts[i / 4 % 4];
          ++i;
          check_direct(c);
        }
  // Many channels, several images and strips of rows; taps in blocks; one and three dimensions.
  Case c = channels_last(groups_of(64, 4, 4, 40, 3));
  c.batch = 3;
  check_direct(c);
  check_direct(channels_last(groups_of(33, 2, 2, 31, 3)));
  c = channels_last(groups_of(6, 4, 4, 21, 5));
  c.dilation = {7, 9};
  c.padding = {14, 14, 18, 18};
  check_direct(c);
  for (Layout layout : {Layout::kChannelsLast, Layout::kSliced}) {
    check_direct({2, 16, 16, 4, {90}, {5}, {1}, {4, 0}, {1}, layout, layout});
    check_direct({1, 16, 16, 8, {70}, {4}, {2}, {1, 2}, {1}, layout, layout});
    check_direct({2, 12, 12, 3, {4, 5, 9}, {3, 3, 3}, {1, 1, 1}, {1, 1, 1, 1, 1, 1}, {1, 1, 1}, layout, layout});
    check_direct({1, 16, 16, 8, {7, 6, 11}, {3, 3, 2}, {2, 1, 3}, {2, 2, 0, 0, 1, 1}, {2, 1, 1}, layout, layout});
  }
}

// One tap: axes are merged, terms take the place of taps, and the weight gradient is a matrix product.
TEST_P(Direct, Pointwise) {
  int i = 0;
  for (int64_t inputs : {3, 4, 8, 13, 24, 58, 130})
    for (int64_t outputs : {2, 7, 16, 70})
      for (int64_t groups : {1, 3}) {
        Case c = groups_of(groups, inputs, outputs, std::array{1, 5, 9, 13}[i / 2 % 4], 1);
        c.batch = 1 + i % 2;
        c.input_layout = kLayouts[i % 4];
        c.output_layout = kLayouts[(i + i / 8) % 3];
        c.weight_layout = kLayouts[i / 2 % 3];
        if (i % 3 == 0) c.stride = {1 + i % 2, 2}, c.padding = {1, 0, i % 4, 1};
        else if (i % 2) c.input_layout = c.output_layout = Layout::kChannelsLast;
        ++i;
        check_direct(c);
      }
}

TEST_P(Direct, OtherDimensions) {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    check_direct({2, 12, 8, 4, {90}, {5}, {1}, {4, 0}, {1}, layout, layout});
    check_direct({2, 6, 8, 2, {70}, {31}, {2}, {15, 16}, {1}, layout, layout});
    check_direct({2, 12, 18, 3, {4, 5, 9}, {3, 3, 3}, {1, 1, 1}, {1, 1, 1, 1, 1, 1}, {1, 1, 1}, layout, layout});
    check_direct({1, 6, 9, 3, {7, 6, 11}, {3, 1, 2}, {2, 1, 3}, {2, 2, 0, 0, 1, 1}, {2, 1, 1}, layout, layout});
  }
}

// Taps, terms and targets come in blocks; sums are long.
TEST_P(Direct, Blocks) {
  int i = 0;
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast})
    for (int64_t kernel : {11, 25}) {
      Case c = groups_of(2, 9, 3, 30, kernel);
      c.input_layout = c.output_layout = layout;
      c.stride = {1 + i++ % 2, 1};
      check<float>(table(), c, Fill::kNormal, Family::kDirect);
      c.stride = {1, 2};
      check<double>(table(), c, Fill::kNormal, Family::kDirect);
    }
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    Case wide = groups_of(2, 3, 150, 6, 3);
    wide.input_layout = wide.output_layout = layout;
    check_direct(wide);
    std::swap(wide.in_channels, wide.out_channels);
    check_direct(wide);
    Case dense = groups_of(1, 200, 70, 5, 3);
    dense.input_layout = dense.output_layout = layout;
    check<float>(table(), dense, Fill::kNormal, Family::kDirect);
    check<BFloat16>(table(), dense, Fill::kNormal, Family::kDirect);
  }
}

TEST_P(Direct, HugeKernelsStridesAndDilationsWithinTheScratch) {
  const auto check_size = [&](const Case& c) { check<float>(table(), c, Fill::kIntegers, Family::kDirect); };
  check_size({1, 6, 4, 2, {300}, {255}, {1}, {100, 100}, {1}});
  check_size({1, 6, 4, 2, {40}, {3}, {1}, {1000, 1000}, {1000}});
  check_size({1, 6, 4, 2, {2000}, {16}, {17}, {3, 3}, {1}});
  check_size({1, 6, 4, 2, {700}, {40}, {300}, {30, 30}, {1}});
  check_size({1, 30, 30, 2, {40, 3}, {21, 3}, {19, 1}, {10, 10, 1, 1}, {1, 1}});
  check_size({1, 30, 30, 2, {40, 40}, {1, 1}, {37, 37}, {0, 0, 0, 0}, {1, 1}});
  constexpr Layout kLast = Layout::kChannelsLast;
  check_direct({1, 16, 16, 1, {9}, {7}, {7905747460161236407}, {0, 0}, {1}, kLast, kLast});  // 1 / 7 modulo 2^64
  constexpr int64_t kHuge = int64_t{1} << 62;
  check_direct({1, 16, 16, 1, {9}, {1}, {kHuge}, {kHuge, 0}, {1}, kLast, kLast});
  check_direct({1, 16, 16, 1, {9}, {2}, {kHuge}, {kHuge, 0}, {1}, kLast, kLast});
  check_direct({1, 16, 16, 1, {9}, {7}, {std::numeric_limits<int64_t>::max()}, {0, 0}, {1}, kLast, kLast});
  check_direct({1, 16, 16, 1, {9}, {2}, {1}, {kHuge, 8}, {kHuge}, kLast, kLast});
  check_direct({1, 6, 4, 2, {9}, {1}, {kHuge}, {kHuge, 0}, {1}, kLast, kLast});
  check_direct({1, 16, 16, 2, {9}, {1}, {3}, {0, 0}, {kHuge}, kLast, kLast});
  check_direct({1, 16, 16, 2, {5, 9}, {1, 3}, {1, 1}, {0, 0, 1, 1}, {kHuge, 1}, kLast, kLast});
}

// A pixel's channels, or the rows of a block, are more than the scratch may hold.
TEST_P(Direct, ManyChannelsWithinTheScratch) {
  constexpr Layout kLast = Layout::kChannelsLast;
  for (Layout layout : {kLast, Layout::kContiguous}) {
    check<BFloat16>(table(), {1, 12000, 8, 1, {2, 2}, {1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}, kLast, layout},
                    Fill::kIntegers, Family::kDirect);
    check<double>(table(), {16, 4096, 128, 32, {1, 3}, {1, 3}, {1, 1}, {0, 0, 1, 1}, {1, 1}, kLast, layout},
                  Fill::kIntegers, Family::kDirect);
    check<double>(table(), {1, 32, 1024, 16, {2, 150}, {1, 3}, {1, 1}, {0, 0, 1, 1}, {1, 1}, kLast, layout},
                  Fill::kIntegers, Family::kDirect);
    check<float>(table(), {1, 4, 4096, 2, {1, 140}, {1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}, kLast, layout},
                 Fill::kIntegers, Family::kDirect);
    check<float>(table(), {1, 16, 256, 4, {8, 140}, {7, 7}, {1, 1}, {3, 3, 3, 3}, {1, 1}, kLast, layout},
                 Fill::kIntegers, Family::kDirect);
  }
}

// Errors of sums of equal numbers do not cancel.
TEST_P(Direct, LongSumsAreExact) {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    check<float>(table(), {1, 4, 4, 2, {2100}, {2000}, {1}, {0, 0}, {1}, layout, layout}, Fill::kConstant,
                 Family::kDirect);
    check<float>(table(), {1, 1200, 16, 2, {3, 9}, {1, 3}, {1, 1}, {0, 0, 1, 1}, {1, 1}, layout, layout},
                 Fill::kConstant, Family::kDirect);
  }
}

// What a masked lane holds is never used: an infinite number outside a tap's reach stays there.
TEST_P(Direct, InfiniteNumbersStayWhereTheyAre) {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    Case c = groups_of(2, 2, 2, 13, 3);
    c.input_layout = c.output_layout = layout;
    const Geometry g = c.geometry();
    Tensor<float> x({1, 4, 1, 13, 13}, layout), y({1, 4, 1, 13, 13}, layout), w({4, 2, 1, 3, 3}, Layout::kContiguous);
    x.for_each([&](auto... i) { x.at(i...) = 1; });
    y.for_each([&](auto... i) { y.at(i...) = 1; });
    x.at(0, 0, 0, 5, 12) = std::numeric_limits<float>::infinity();
    Runner<float>{table().of<float>(), Family::kDirect, g, 1}.grad_weight(y, x, &w);
    // The last column meets every tap but those of the first column of the kernel.
    for (int64_t o = 0; o < 4; ++o)
      for (int64_t kw = 0; kw < 3; ++kw)
        EXPECT_EQ(std::isfinite(w.at(o, 0, 0, 1, kw)), o >= 2 || kw == 0) << o << " " << kw;
  }
}

}  // namespace
}  // namespace torch_ext::test
