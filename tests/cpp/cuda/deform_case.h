#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/deform_geometry.h"
#include "cuda/kernels/deform.cuh"
#include "cuda/kernels/simt_rounding.h"
#include "runner.h"

// Tensors in any layout, and deformable convolution in float64: what the tests of its kernels compare with.
namespace torch_ext::test {

using Sizes = std::vector<int64_t>;
using simt::host::narrow;
using simt::host::widen;

// kPermuted: rows are adjacent, but not columns or channels, and there are gaps. kShifted: the first number is not
// where an allocation begins.
enum class Layout { kContiguous, kChannelsLast, kPermuted, kShiftedChannelsLast };

// [n, c, d, h, w]
template <class T>
struct Tensor {
  int64_t sizes[5], strides[5], skipped;
  std::vector<T> values;

  Tensor(const Sizes& s, Layout layout) : skipped(layout == Layout::kShiftedChannelsLast ? 1 : 0) {
    std::copy(s.begin(), s.end(), sizes);
    const int orders[3][5] = {{4, 3, 2, 1, 0}, {1, 4, 3, 2, 0}, {3, 4, 0, 1, 2}};
    int64_t stride = layout == Layout::kPermuted ? 2 : 1, length = 1;
    for (int axis : orders[layout == Layout::kContiguous ? 0 : layout == Layout::kPermuted ? 2 : 1]) {
      strides[axis] = stride;
      length += (sizes[axis] - 1) * stride;
      stride *= sizes[axis];
    }
    values.assign(length + skipped, narrow<T>(std::numeric_limits<Acc<T>>::quiet_NaN()));
  }

  int64_t place(int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) const {
    return skipped + n * strides[0] + c * strides[1] + d * strides[2] + h * strides[3] + w * strides[4];
  }
  T& at(int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) { return values[place(n, c, d, h, w)]; }
  double number(int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) const {
    return widen(values[place(n, c, d, h, w)]);
  }
  template <class P>
  View<P> view(P* data) const {
    return {data + skipped, strides[0], strides[1], {{strides[2], strides[3], strides[4]}}};
  }
  template <class Visit>
  void for_each(const Visit& visit) const {
    for (int64_t n = 0; n < sizes[0]; ++n)
      for (int64_t c = 0; c < sizes[1]; ++c)
        for (int64_t d = 0; d < sizes[2]; ++d)
          for (int64_t h = 0; h < sizes[3]; ++h)
            for (int64_t w = 0; w < sizes[4]; ++w) visit(n, c, d, h, w);
  }
};

// Sizes are of 1 to 3 axes; padding is axis by axis before, after.
struct DeformCase {
  int64_t batch, channels, groups, offset_groups;
  Sizes in, kernel, stride, padding, dilation;
  Layout input_layout = Layout::kContiguous, offset_layout = Layout::kContiguous;
  bool has_mask = true;
  bool groups_in_rows = false;  // columns [row][group][tap * channel], not [group][row][tap * channel]
  int64_t gap = 0;              // between rows

  DeformGeometry<int64_t> geometry() const {
    Sizes input{batch, channels}, weight{groups, channels / groups};
    input.insert(input.end(), in.begin(), in.end());
    weight.insert(weight.end(), kernel.begin(), kernel.end());
    DeformGeometry<int64_t> g;
    const ConvArguments<int64_t> a{"test", input, weight, std::nullopt, stride, padding, dilation, groups};
    EXPECT_EQ(make_geometry<int64_t>(a, &g.conv), "");
    g.offset_groups = offset_groups;
    return g;
  }
  std::string text() const {
    const auto list = [](const Sizes& s) { return detail::list<int64_t>(s); };
    return detail::text("batch ", batch, ", channels ", channels, ", groups ", groups, ", offset groups ",
                        offset_groups, ", in ", list(in), ", kernel ", list(kernel), ", stride ", list(stride),
                        ", padding ", list(padding), ", dilation ", list(dilation), ", layouts ",
                        static_cast<int>(input_layout), " ", static_cast<int>(offset_layout), ", mask ", has_mask);
  }
};

inline Sizes unflatten(int64_t i, const Triple<int64_t>& sizes) {
  return {i / sizes[2] / sizes[1], i / sizes[2] % sizes[1], i % sizes[2]};
}

// T: of input and columns, O: of offset, M: of mask.
template <class T, class O, class M>
struct DeformProblem {
  DeformCase c;
  DeformGeometry<int64_t> g;
  Tensor<T> input;
  Tensor<O> offset;
  Tensor<M> mask;

  explicit DeformProblem(const DeformCase& problem)
      : c(problem),
        g(c.geometry()),
        input({c.batch, c.channels, g.conv.in[0], g.conv.in[1], g.conv.in[2]}, c.input_layout),
        offset(of_outputs(g.conv.dims), c.offset_layout),
        mask(of_outputs(1), c.offset_layout) {}

  Sizes of_outputs(int64_t axes) const {
    return {c.batch, axes * c.offset_groups * g.taps(), g.conv.out[0], g.conv.out[1], g.conv.out[2]};
  }

  // Whole numbers, and offsets in quarters: with few corners outside, on whole numbers, and all that is special.
  void fill_exact(uint32_t seed) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<int> whole(-4, 4), quarters(-14, 14), rarely(0, 39);
    input.for_each([&](auto... i) { input.at(i...) = narrow<T>(whole(random)); });
    mask.for_each([&](auto... i) { mask.at(i...) = narrow<M>(whole(random)); });
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const double specials[] = {std::numeric_limits<double>::quiet_NaN(), kInfinity, -kInfinity, 1e30, -1e30};
    offset.for_each([&](auto... i) {
      const int special = rarely(random);
      offset.at(i...) = narrow<O>(special < 5 ? specials[special] : quarters(random) / 4.0);
    });
  }

  void fill_normal(uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    input.for_each([&](auto... i) { input.at(i...) = narrow<T>(normal(random)); });
    mask.for_each([&](auto... i) { mask.at(i...) = narrow<M>(normal(random)); });
    offset.for_each([&](auto... i) { offset.at(i...) = narrow<O>(2 * normal(random)); });
  }

  int64_t per_offset() const { return c.channels / c.offset_groups; }
  double factor(int64_t n, int64_t p, int64_t tap, int64_t og) const {
    const Sizes o = unflatten(p, g.conv.out);
    return c.has_mask ? mask.number(n, og * g.taps() + tap, o[0], o[1], o[2]) : 1;
  }

  // Where a sample is; axes that are not there are at 0.
  std::vector<double> coordinates(int64_t n, int64_t p, int64_t tap, int64_t og) const {
    const Sizes o = unflatten(p, g.conv.out), k = unflatten(tap, g.conv.kernel);
    std::vector<double> at(3);
    for (int a = 3 - g.conv.dims; a < 3; ++a)
      at[a] = static_cast<double>(o[a] * g.conv.stride[a] + k[a] * g.conv.dilation[a] - g.conv.pad_before[a]) +
              offset.number(n, (og * g.taps() + tap) * g.conv.dims + a - (3 - g.conv.dims), o[0], o[1], o[2]);
    return at;
  }

  static bool is_nan(const std::vector<double>& at) {
    return std::isnan(at[0]) || std::isnan(at[1]) || std::isnan(at[2]);
  }

  // Calls body(d, h, w, weight) for the pixels that a sample has a part of; or, of its slope along an axis.
  template <class Body>
  void for_pixels(const std::vector<double>& at, int slope, const Body& body) const {
    for (int a = 0; a < 3; ++a) {
      const double size = static_cast<double>(g.conv.in[a]);
      if (!(a == slope ? at[a] >= -1 && at[a] < size : at[a] > -1 && at[a] < size)) return;
    }
    for (int corner = 0; corner < 8; ++corner) {
      Sizes i(3);
      double weight = 1;
      bool exists = true;
      for (int a = 0; a < 3; ++a) {
        const int high = corner >> a & 1;
        i[a] = static_cast<int64_t>(std::floor(at[a])) + high;
        exists = exists && i[a] >= 0 && i[a] < g.conv.in[a];
        weight *= a == slope ? 2 * high - 1 : 1 - std::abs(at[a] - static_cast<double>(i[a]));
      }
      if (exists && weight != 0) body(i[0], i[1], i[2], weight);
    }
  }

  double value(int64_t n, int64_t channel, const std::vector<double>& at, int slope = -1) const {
    if (is_nan(at)) return std::numeric_limits<double>::quiet_NaN();
    double sum = 0;
    for_pixels(at, slope, [&](int64_t d, int64_t h, int64_t w, double weight) {
      sum += weight * input.number(n, channel, d, h, w);
    });
    return sum;
  }
};

// Equal, or no numbers both.
inline bool same(double a, double b) { return std::isnan(a) ? std::isnan(b) : a == b; }

// Runs what launch code would launch.
struct Launch {
  Runner& gpu;
  RunOptions options = {};

  template <class Params>
  void operator()(const simt::LaunchSize& size, void (*kernel)(Params), const Params& params) const {
    gpu.run(size, kernel, params, options);
  }
};

}  // namespace torch_ext::test
