#include "kernel_case.h"

#include <array>

namespace torch_ext::test {
namespace {

class Depthwise : public KernelTest {};
INSTANTIATE_FOR_EVERY_ISA(Depthwise);

constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kChannelsLast, Layout::kSliced, Layout::kExpanded};

TEST_P(Depthwise, ChannelsAndWidths) {
  int i = 0;
  for (int64_t channels : {1, 3, 7, 8, 9, 13, 17, 58})
    for (int64_t width = 1; width <= 9; ++width, ++i) {
      Case c = square(channels, 3, 3, 1);
      c.in[1] = width;
      c.batch = 1;
      c.input_layout = kLayouts[i % 4];
      c.output_layout = kLayouts[(i + i / 4) % 3];
      check_all(c);
    }
}

TEST_P(Depthwise, KernelsAlsoWiderThanTheImage) {
  int i = 0;
  for (int64_t kernel : {1, 2, 3, 5, 7, 13})
    for (int64_t size : {4, 7, 18})
      for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
        Case c = square(9, size, kernel, kernel / 2);
        c.kernel[0] = std::min<int64_t>(kernel, 5);
        c.padding[1] += ++i % 3;
        c.padding[2] += i % 2 * 2;
        c.batch = 1;
        c.bias = i % 2;
        c.input_layout = c.output_layout = layout;
        check_all(c);
      }
}

// Rows long enough for columns to be the lanes.
TEST_P(Depthwise, LongRows) {
  int i = 0;
  for (int64_t channels : {1, 2, 3, 4, 5, 8, 9, 17})
    for (int64_t width : {16, 17, 23, 24, 25, 31, 32, 33, 40, 57, 130, 300}) {
      Case c = square(channels, 5, 3, 1);
      c.in[1] = width;
      c.kernel[1] = 1 + i % 7;
      c.dilation[1] = 1 + i % 3;
      c.padding[2] = i % 4;
      c.padding[3] = (i + 1) % 5;
      c.bias = i % 2;
      c.batch = 1;
      c.input_layout = kLayouts[(i + i / 12) % 4];
      c.output_layout = kLayouts[(i + i / 12) % 3];
      if (i % 3 == 0) c.input_layout = c.output_layout = Layout::kContiguous;
      ++i;
      check_all(c);
    }
}

TEST_P(Depthwise, LongRowsOfLargeKernelsAndMultipliers) {
  for (int64_t multiplier : {1, 2, 3})
    for (int64_t kernel : {9, 31}) {
      Case c = square(3, 33, kernel, kernel / 2);
      c.out_channels *= multiplier;
      c.batch = 1;
      check_all(c);
      c.in[1] = 50;
      c.padding = {3, 8, 9, 20};
      std::swap(c.in_channels, c.out_channels);
      check_all(c);
    }
}

// Taps a vector apart are summed together, those that are left with one fewer.
TEST_P(Depthwise, LongRowsOfTaps) {
  for (int64_t kernel : {11, 12, 13, 23, 24, 25, 31, 32, 33, 64, 65, 100}) {
    check_all({1, 3, 3, 3, {600}, {kernel}, {1}, {kernel / 2, kernel - 1}, {1}});
    check<float>(table(), {2, 2, 4, 2, {2, 3, 50}, {2, 1, kernel}, {1, 1, 1}, {1, 0, 0, 0, 20, 60}, {1, 1, 1}},
                 Fill::kIntegers);
  }
}

// Columns in place: strips of 4, 5 and 7 rows by one and two vectors of columns, masked at all edges.
TEST_P(Depthwise, Strips) {
  int i = 0;
  for (int64_t height : {4, 5, 6, 7, 8, 9, 11, 14})
    for (int64_t width : {5, 7, 8, 9, 12, 15, 16, 17, 24, 37})
      for (int64_t kernel : {3, 5, 7}) {
        Case c = square(3, width, kernel, kernel / 2);
        c.in[0] = height;
        c.kernel[1] = std::array{3, 5, 7, 1, 2, 11}[i % 6];
        c.padding = {kernel / 2 + i % 2, kernel / 2 + i % 3, i % 5, i % 7};
        c.batch = 1 + i % 3;
        if (width + c.padding[2] + c.padding[3] < c.kernel[1]) c.kernel[1] = 1;
        c.input_layout = i % 2 ? Layout::kPitched : Layout::kContiguous;
        c.output_layout = i % 4 < 2 ? Layout::kPitched : Layout::kContiguous;
        ++i;
        check<float>(table(), c, Fill::kIntegers);
        check<double>(table(), c, Fill::kNormal);
      }
}

// Channels in place: strips of 4, 3 and 1 rows of grad_output, one or two steps of the kernel's rows apart, whole
// vectors of channels and one that overlaps; columns that lack taps at both edges; tiles of columns, images and row
// classes.
TEST_P(Depthwise, StripsOfChannels) {
  int i = 0;
  for (int64_t channels : {8, 9, 13, 17, 58})
    for (int64_t height : {1, 3, 4, 5, 7, 10, 15})
      for (int64_t kernel : {1, 3, 5, 7}) {
        Case c = square(channels, std::array{1, 2, 6, 7, 9, 17, 30}[i % 7], kernel, kernel / 2);
        c.in[0] = height;
        c.kernel[1] = std::array{3, 5, 7, 1, 2, 11, 16}[i / 2 % 7];
        c.dilation = {1 + i % 3 % 2, 1 + i % 4};
        c.stride = {1 + i / 3 % 4, 1 + i % 3};  // by a dilation of 2, strides of 2 and 4 are 1 and 2 steps
        c.padding = {c.dilation[0] * (kernel - 1), i % 4, c.dilation[1] * (c.kernel[1] - 1), i % 6};
        c.batch = 1 + i % 9;
        c.input_layout = c.output_layout = Layout::kChannelsLast;
        ++i;
        check<float>(table(), c, Fill::kIntegers);
        check<double>(table(), c, Fill::kNormal);
        check<BFloat16>(table(), c, Fill::kIntegers);
        check<Half>(table(), c, Fill::kNormal);
      }
}

TEST_P(Depthwise, StripsOfDilatedKernelsDepthsAndMultipliers) {
  int i = 0;
  for (int64_t dilation : {1, 2, 3, 6})
    for (int64_t width : {8, 19, 28, 40})
      for (int64_t multiplier : {1, 2, 3}) {
        Case c = square(2, width, 3, dilation);
        c.in = {1 + i % 3, 8 + i % 21, width};
        c.kernel = {1 + i % 2, 3 + i % 2 * 2, 3};
        c.stride = {1, 1, 1};
        c.dilation = {1, dilation, 1 + (dilation + i) % 6};
        c.padding = {i % 2, 1, 2 * dilation, dilation, i % 17, (i + 5) % 17};
        c.out_channels *= multiplier;
        c.batch = 1 + i % 4;
        ++i;
        for (int swap = 0; swap < 2; ++swap) {
          check<float>(table(), c, Fill::kIntegers);
          check<double>(table(), c, Fill::kNormal);
          std::swap(c.in_channels, c.out_channels);
        }
      }
}

// The same with channels as lanes.
Case channels_last(Case c) {
  c.in_channels = c.out_channels = c.groups = 9;
  c.input_layout = c.output_layout = Layout::kChannelsLast;
  return c;
}

// More taps than other orders take at a time, and taps that no image reaches.
TEST_P(Depthwise, StripsOfManyOrDistantTaps) {
  for (const Case& c :
       {Case{1, 1, 1, 1, {45, 5, 40}, {43, 3, 1}, {1, 1, 1}, {0, 0, 1, 1, 0, 0}, {1, 1, 1}},
        Case{1, 3, 3, 3, {8, 12, 40}, {7, 7, 16}, {1, 1, 1}, {0, 0, 3, 3, 7, 8}, {1, 1, 1}},
        Case{1, 2, 2, 2, {12, 40}, {1, 3}, {1, 1}, {0, 0, 1, 1}, {int64_t{1} << 60, 1}},
        Case{1, 2, 2, 2, {12, 40}, {3, 1}, {1, 1}, {1, 1, 0, 0}, {1, int64_t{1} << 60}},
        Case{
            1, 2, 2, 2, {12, 40}, {3, 3}, {1, 1}, {int64_t{1} << 60, int64_t{1} << 60, 1, 1}, {int64_t{1} << 60, 1}}}) {
    check<float>(table(), c, Fill::kIntegers);
    check<double>(table(), c, Fill::kNormal);
    check<float>(table(), channels_last(c), Fill::kIntegers);
    check<double>(table(), channels_last(c), Fill::kNormal);
  }
}

// So many images, or rows, that the sums of a weight gradient are moved to totals in between.
TEST_P(Depthwise, StripsOfManyPositions) {
  for (const Sizes& in :
       {Sizes{7, 7}, Sizes{14, 14}, Sizes{530, 20}, Sizes{9, 2100}, Sizes{1, 5000}, Sizes{200, 2048}}) {
    Case c = square(2, 0, 3, 1);
    c.in = in;
    if (in[0] == 1) c.kernel[0] = 1, c.padding[0] = c.padding[1] = 0;
    c.batch = in[0] < 20 && in[1] < 20 ? 70 : 2;
    check<float>(table(), c, Fill::kIntegers);
    check<float>(table(), c, Fill::kNormal);
    check<float>(table(), c, Fill::kConstant);
    check<BFloat16>(table(), c, Fill::kIntegers);
    check<float>(table(), channels_last(c), Fill::kIntegers);
    check<float>(table(), channels_last(c), Fill::kConstant);
    if (in[0] == 200) continue;
    c.batch = 3;
    c.in_channels = c.out_channels = c.groups = 9;  // lanes in copies of rows
    check<float>(table(), c, Fill::kIntegers);
    check<float>(table(), c, Fill::kConstant);
    check<BFloat16>(table(), c, Fill::kIntegers);
  }
}

// Sums of so many taps are taken in several goes, and the last vector of channels overlaps the one before.
TEST_P(Depthwise, ManyTapsOfOddChannelsInPlace) {
  const Layout last = Layout::kChannelsLast;
  check_all({1, 9, 9, 9, {14, 44}, {13, 13}, {1, 1}, {6, 6, 6, 6}, {1, 1}, last, last});
  check_all({1, 9, 9, 9, {20, 96}, {10, 14}, {4, 1}, {10, 7, 6, 6}, {1, 1}, last, last});
  check_all({1, 17, 17, 17, {7, 8, 40}, {7, 7, 7}, {1, 1, 1}, {3, 3, 3, 3, 3, 3}, {1, 1, 1}, last, last});
  check_all({1, 16, 16, 16, {14, 44}, {13, 13}, {1, 1}, {6, 6, 6, 6}, {1, 1}, last, last});
}

// A weight as TensorFlow lays it out: output channels, or multipliers, innermost.
TEST_P(Depthwise, PermutedWeights) {
  for (int64_t groups : {2, 4, 5, 9})
    for (int64_t multiplier : {1, 2, 3, 8})
      for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kBatchLast}) {
        Case c = square(groups, 9, 3, 1);
        c.out_channels *= multiplier;
        c.input_layout = c.output_layout = layout;
        c.weight_layout = Layout::kBatchLast;
        check_all(c);
        std::swap(c.in_channels, c.out_channels);
        check_all(c);
      }
}

TEST_P(Depthwise, StrideAndDilation) {
  for (int64_t stride : {1, 2, 3, 4, 9})
    for (int64_t dilation : {1, 2, 3, 4, 6})
      for (int64_t kernel : {2, 3}) {
        Case c = square(stride % 2 ? 5 : 11, 14, kernel, 2);
        c.in = {13, 14};
        c.stride = {stride, stride};
        c.dilation = {dilation, dilation};
        c.batch = 1;
        c.input_layout = kLayouts[stride % 3];
        check_all(c);
      }
}

TEST_P(Depthwise, StridesOfTheirOwnPerAxis) {
  Case c = square(10, 12, 3, 1);
  c.stride = {1, 2};
  c.dilation = {3, 1};
  c.padding = {0, 3, 2, 1};
  check_all(c);
  c.stride = {3, 12};
  c.kernel = {1, 5};
  check_all(c);
}

TEST_P(Depthwise, MultipliersOnBothSides) {
  int i = 0;
  for (int64_t multiplier : {1, 2, 3, 8})
    for (int64_t channels : {2, 5, 12})
      for (bool wide_output : {true, false}) {
        Case c = square(channels, 9, 3, 1);
        (wide_output ? c.out_channels : c.in_channels) = channels * multiplier;
        c.batch = 1;
        c.stride = {1, 1 + ++i % 2};
        c.input_layout = kLayouts[i / 2 % 4];
        c.output_layout = kLayouts[i % 3];
        check_all(c);
      }
}

TEST_P(Depthwise, OneAndThreeDimensions) {
  for (Layout layout : kLayouts) {
    const Layout output_layout = layout == Layout::kExpanded ? Layout::kChannelsLast : layout;
    check_all({2, 11, 11, 11, {37}, {4}, {1}, {3, 0}, {1}, layout, output_layout});
    check_all({1, 3, 6, 3, {50}, {31}, {2}, {15, 15}, {1}, layout, output_layout});
    check_all({1, 9, 9, 9, {4, 5, 11}, {3, 3, 3}, {1, 1, 1}, {1, 1, 1, 1, 1, 1}, {1, 1, 1}, layout, output_layout});
    check_all({1, 4, 4, 4, {6, 7, 6}, {2, 3, 4}, {2, 1, 3}, {1, 0, 2, 3, 1, 2}, {2, 3, 1}, layout, output_layout});
    check_all({1, 10, 5, 5, {3, 4, 5}, {3, 2, 3}, {1, 2, 1}, {1, 1, 0, 1, 2, 2}, {1, 1, 2}, layout, output_layout});
  }
}

// Wide rows are cut into tiles, large kernels into blocks of taps that carry their sums in a tile.
TEST_P(Depthwise, TilesAndBlocks) {
  const auto check_float = [&](const Case& c) {
    check<float>(table(), c, Fill::kIntegers);
    check<float>(table(), c, Fill::kNormal);
    check<double>(table(), c, Fill::kNormal);
    check<BFloat16>(table(), c, Fill::kNormal);
  };
  check_float({1, 9, 9, 9, {3, 301}, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}});
  check_float({1, 2, 2, 2, {3, 301}, {3, 5}, {1, 2}, {1, 1, 2, 2}, {1, 3}});
  check_float({1, 9, 9, 9, {33, 40}, {31, 31}, {1, 1}, {15, 15, 15, 15}, {1, 1}, Layout::kChannelsLast});
  check_float({1, 3, 3, 3, {40, 40}, {25, 26}, {2, 2}, {12, 13, 12, 11}, {1, 1}});
  check_float({1, 1, 1, 1, {3000}, {255}, {1}, {127, 127}, {3}});
  check_float({1, 2, 2, 2, {5000}, {3}, {1}, {1000, 1000}, {1000}});
  check_float({1, 2, 2, 2, {5000}, {3}, {3}, {1000, 1000}, {1000}});
  check_float({1, 20, 20, 20, {60, 30}, {3, 3}, {1, 1}, {25, 25, 25, 25}, {25, 25}, Layout::kChannelsLast});
  check_float({1, 24, 3, 3, {40, 41}, {9, 9}, {1, 1}, {4, 4, 4, 4}, {1, 1}, Layout::kChannelsLast});
  check_float({1, 3, 24, 3, {40, 41}, {9, 9}, {2, 2}, {4, 4, 4, 4}, {1, 1}});
  check_float({1, 3, 3, 3, {9, 20, 30}, {7, 7, 7}, {1, 1, 1}, {3, 3, 3, 3, 3, 3}, {1, 1, 1}});
  check_float({1, 2, 2, 2, {2500}, {3}, {1000}, {1, 1}, {1}});
}

// Large enough for rows to be prefetched, where there is no next row.
TEST_P(Depthwise, StrideBeyondTheImageOfALargeTensor) {
  const Layout last = Layout::kChannelsLast;
  check<float>(table(), {1, 8, 8, 8, {2, 150000}, {1, 3}, {int64_t{1} << 60, 1}, {0, 0, 1, 1}, {1, 1}, last, last},
               Fill::kIntegers);
}

TEST_P(Depthwise, NumbersBeyondAnyMemory) {
  constexpr int64_t kBig = int64_t{1} << 60;
  check_all({1, 3, 3, 3, {5}, {1}, {kBig}, {2 * kBig, 2 * kBig}, {4 * kBig}});
  check_all({1, 3, 3, 3, {5}, {2}, {1}, {kBig, kBig}, {2 * kBig}});
  check_all({1, 3, 3, 3, {5}, {2}, {2 * kBig}, {kBig, kBig}, {2 * kBig}});
  check_all({1, 3, 3, 3, {5, 6}, {1, 2}, {kBig, 3}, {2 * kBig, 2 * kBig, kBig, kBig}, {4 * kBig, 2 * kBig - 3}});
}

// Random problems: what nobody thought of.
TEST_P(Depthwise, RandomProblems) {
  std::mt19937 random(20);
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (int i = 0; i < 150; ++i) {
    Case c{.batch = pick(1, 2),
           .in_channels = pick(2, 19),
           .out_channels = 0,
           .groups = 0,
           .in = {},
           .kernel = {},
           .stride = {},
           .padding = {},
           .dilation = {},
           .input_layout = kLayouts[pick(0, 3)],
           .output_layout = kLayouts[pick(0, 2)],
           .bias = pick(0, 1) == 1};
    c.groups = c.out_channels = c.in_channels;
    (pick(0, 1) ? c.in_channels : c.out_channels) *= pick(0, 2) ? 1 : pick(2, 4);
    const int64_t dims = pick(1, 3);
    for (int64_t axis = 0; axis < dims; ++axis) {
      const int64_t kernel = pick(1, dims == 1 ? 12 : 4), dilation = pick(1, 4);
      const int64_t before = pick(0, 5), after = pick(0, 5);
      const int64_t extent = (kernel - 1) * dilation + 1;
      c.in.push_back(std::max<int64_t>(pick(1, dims == 3 ? 6 : 20), extent - before - after));
      c.kernel.push_back(kernel);
      c.stride.push_back(pick(1, 5));
      c.dilation.push_back(dilation);
      c.padding.insert(c.padding.end(), {before, after});
    }
    check<float>(table(), c, Fill::kIntegers);
    if (i % 4 == 0) check<double>(table(), c, Fill::kNormal);
    if (i % 4 == 1) check<BFloat16>(table(), c, Fill::kNormal);
    if (i % 4 == 2) check<Half>(table(), c, Fill::kNormal);
  }
}

// Long sums in float32 must stay as exact as short ones, also where all terms are the same, so that they are all
// rounded the same way.
TEST_P(Depthwise, LongSums) {
  constexpr Fill kConstant = Fill::kConstant;
  check<float>(table(),
               {1,
                1040,
                1040,
                1040,
                {3000, 1},
                {1, 1},
                {1, 1},
                {0, 0, 0, 0},
                {1, 1},
                Layout::kChannelsLast,
                Layout::kChannelsLast},
               kConstant);
  check<float>(table(), {1, 8, 8, 8, {33, 33}, {31, 31}, {1, 1}, {15, 15, 15, 15}, {1, 1}}, kConstant);
  check<float>(table(), {1, 8, 8, 8, {200000}, {3}, {1}, {1, 1}, {1}}, kConstant);
  check<float>(table(), {4, 8, 8, 8, {96, 96}, {1, 3}, {1, 1}, {0, 0, 1, 1}, {1, 1}, Layout::kChannelsLast},
               Fill::kNormal);
  check<float>(table(), {1, 2, 2, 2, {150000}, {2}, {1}, {0, 0}, {1}}, Fill::kNormal);
}

// A product of two 16-bit numbers is exact in float32, so that the result shows how it is rounded. All exponents, NaN
// and infinities, in whole vectors and in part of one, through the store of channels_last and of contiguous rows.
template <class T, class Round>
void check_rounding(const cpu::KernelTable& table, const Round& round) {
  for (uint32_t factor : {0x3c00u, 0x3f80u, 0x3c01u, 0x3f8bu, 0x0455u, 0x8155u, 0x3155u})
    for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
      Case c{1, 11, 11, 11, {5958}, {1}, {1}, {0, 0}, {1}, layout, layout, false};
      const Geometry g = c.geometry();
      Tensor<T> input({1, 11, 1, 1, 5958}, layout), output({1, 11, 1, 1, 5958}, layout),
          weight({11, 1, 1, 1, 1}, layout);
      uint32_t next = 0;
      input.for_each([&](auto... i) { input.at(i...).bits = static_cast<uint16_t>(next++); });
      weight.for_each([&](auto... i) { weight.at(i...).bits = static_cast<uint16_t>(factor); });
      Runner<T>{table.of<T>(), Family::kDepthwise, g, 1}.correlate(false, input, weight, nullptr, &output);
      int64_t wrong = 0;
      output.for_each([&](auto... i) {
        const float w = static_cast<float>(to_double(weight.at(0, 0, 0, 0, 0)));
        const float product = static_cast<float>(to_double(input.at(i...))) * w;
        const T y = output.at(i...);
        // The sign of zero depends on whether the product was rounded before 0 was added to it.
        if (product == 0) wrong += to_double(y) != 0;
        else wrong += std::isnan(product) ? !std::isnan(to_double(y)) : y.bits != round(product);
      });
      EXPECT_EQ(wrong, 0) << "factor " << factor << ", layout " << static_cast<int>(layout);
    }
}

TEST_P(Depthwise, RoundsToNearestEven) {
  check_rounding<Half>(table(), [](float x) { return std::bit_cast<uint16_t>(static_cast<_Float16>(x)); });
  check_rounding<BFloat16>(table(), [](float x) {
    // The nearer of the two neighbours, by their distance; infinity counts as the next power of two.
    const uint16_t below = static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16), above = below + 1;
    if (std::isinf(x)) return below;
    const auto value = [](uint16_t bits) {
      return (bits & 0x7fff) == 0x7f80 ? std::copysign(0x1p128, bits & 0x8000 ? -1.0 : 1.0) : to_double(BFloat16{bits});
    };
    const double down = std::abs(x - value(below)), up = std::abs(x - value(above));
    return down < up || (down == up && below % 2 == 0) ? below : above;
  });
}

}  // namespace
}  // namespace torch_ext::test
