#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/deform_geometry.h"

// Deformable convolution in float64, by loops over all that there is, for tests of its kernels.
namespace torch_ext::test {

using Sizes = std::vector<int64_t>;

inline constexpr double kNotANumber = std::numeric_limits<double>::quiet_NaN();

// kPermuted: rows are adjacent, but not columns or channels, and there are gaps. kShiftedChannelsLast: the first number
// is not where an allocation begins.
enum class Layout { kContiguous, kChannelsLast, kPermuted, kShiftedChannelsLast };

// [n, c, d, h, w], of no numbers at first.
struct Tensor {
  int64_t sizes[5], strides[5], skipped;
  std::vector<double> values;

  Tensor(const Sizes& s, Layout layout) : skipped(layout == Layout::kShiftedChannelsLast ? 1 : 0) {
    std::copy(s.begin(), s.end(), sizes);
    const int orders[3][5] = {{4, 3, 2, 1, 0}, {1, 4, 3, 2, 0}, {3, 4, 0, 1, 2}};
    int64_t stride = layout == Layout::kPermuted ? 2 : 1, length = 1;
    for (int axis : orders[layout == Layout::kContiguous ? 0 : layout == Layout::kPermuted ? 2 : 1]) {
      strides[axis] = stride;
      length += (sizes[axis] - 1) * stride;
      stride *= sizes[axis];
    }
    values.assign(length + skipped, kNotANumber);
  }

  int64_t place(int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) const {
    return skipped + n * strides[0] + c * strides[1] + d * strides[2] + h * strides[3] + w * strides[4];
  }
  double& at(int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) { return values[place(n, c, d, h, w)]; }
  double at(int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) const { return values[place(n, c, d, h, w)]; }

  template <class Visit>
  void for_each(const Visit& visit) const {
    for (int64_t n = 0; n < sizes[0]; ++n)
      for (int64_t c = 0; c < sizes[1]; ++c)
        for (int64_t d = 0; d < sizes[2]; ++d)
          for (int64_t h = 0; h < sizes[3]; ++h)
            for (int64_t w = 0; w < sizes[4]; ++w) visit(n, c, d, h, w);
  }

  template <class Next>
  void fill(const Next& next) {
    for_each([&](auto... i) { at(i...) = next(); });
  }
};

// Sizes are of 1 to 3 axes; padding is axis by axis before, after.
struct DeformCase {
  int64_t batch, channels, groups, offset_groups;
  Sizes in, kernel, stride, padding, dilation;
  Layout input_layout = Layout::kContiguous, offset_layout = Layout::kContiguous;
  bool has_mask = true, wide_offset = false, wide_mask = false;
  bool groups_in_rows = false;            // columns [row][group][tap * channel], not [group][row][tap * channel]
  int64_t gap = 0;                        // between rows
  Range images{0, -1}, positions{0, -1};  // all

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
                        static_cast<int>(input_layout), " ", static_cast<int>(offset_layout), ", mask ", has_mask,
                        ", wide ", wide_offset, " ", wide_mask, ", rows ", groups_in_rows, " ", gap);
  }
};

inline Sizes unflatten(int64_t i, const Triple<int64_t>& sizes) {
  return {i / sizes[2] / sizes[1], i / sizes[2] % sizes[1], i % sizes[2]};
}

// One of the columns' numbers.
struct Column {
  int64_t image, position, tap, offset_group, channel;
  int64_t row, place;  // which of the rows there are, and where in memory
};

struct DeformProblem {
  DeformCase c;
  DeformGeometry<int64_t> g;
  Tensor input, offset, mask;
  int64_t rows, group_stride, row_stride;
  std::vector<double> grad_columns;

  explicit DeformProblem(const DeformCase& problem)
      : c(problem),
        g(c.geometry()),
        input({c.batch, c.channels, g.conv.in[0], g.conv.in[1], g.conv.in[2]}, c.input_layout),
        offset(of_outputs(g.conv.dims)),
        mask(of_outputs(1)) {
    if (c.images.end < 0) c.images = {0, c.batch};
    if (c.positions.end < 0) c.positions = {0, g.positions()};
    const int64_t of_group = g.taps() * g.conv.in_per_group();
    rows = (c.images.end - c.images.begin) * (c.positions.end - c.positions.begin);
    row_stride = (c.groups_in_rows ? c.groups : 1) * of_group + c.gap;
    group_stride = c.groups_in_rows ? of_group : rows * row_stride;
    grad_columns.assign((rows - 1) * row_stride + (c.groups - 1) * group_stride + of_group, kNotANumber);
  }

  Tensor of_outputs(int64_t axes) const {
    return {{c.batch, axes * c.offset_groups * g.taps(), g.conv.out[0], g.conv.out[1], g.conv.out[2]}, c.offset_layout};
  }

  // Whole numbers, and offsets in quarters, so that all sums are exact; and offsets that lead nowhere.
  void fill_exact(uint32_t seed) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<int> whole(-4, 4), quarters(-14, 14), rarely(0, 39);
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const double specials[] = {kNotANumber, kInfinity, -kInfinity, 1e30, -1e30};
    input.fill([&] { return whole(random); });
    mask.fill([&] { return whole(random); });
    offset.fill([&] {
      const int special = rarely(random);
      return special < 5 ? specials[special] : quarters(random) / 4.0;
    });
    for_columns([&](const Column& i) { grad_columns[i.place] = whole(random); });
  }

  template <class Body>
  void for_columns(const Body& body) const {
    const int64_t per_group = g.conv.in_per_group(), per_offset = c.channels / c.offset_groups;
    int64_t row = 0;
    for (int64_t n = c.images.begin; n < c.images.end; ++n)
      for (int64_t p = c.positions.begin; p < c.positions.end; ++p, ++row)
        for (int64_t tap = 0; tap < g.taps(); ++tap)
          for (int64_t i = 0; i < c.channels; ++i)
            body(Column{n, p, tap, i / per_offset, i, row,
                        i / per_group * group_stride + row * row_stride + tap * per_group + i % per_group});
  }

  // The places of a column's offset along an axis, and of its mask.
  int64_t offset_place(const Column& i, int axis) const {
    const Sizes o = unflatten(i.position, g.conv.out);
    return offset.place(i.image, (i.offset_group * g.taps() + i.tap) * g.conv.dims + axis, o[0], o[1], o[2]);
  }
  int64_t mask_place(const Column& i) const {
    const Sizes o = unflatten(i.position, g.conv.out);
    return mask.place(i.image, i.offset_group * g.taps() + i.tap, o[0], o[1], o[2]);
  }
  double factor(const Column& i) const { return c.has_mask ? mask.values[mask_place(i)] : 1; }

  // Where it is in the image; axes that are not there are at 0.
  std::vector<double> coordinates(const Column& i) const {
    const Sizes o = unflatten(i.position, g.conv.out), k = unflatten(i.tap, g.conv.kernel);
    std::vector<double> at(3);
    for (int a = 3 - g.conv.dims; a < 3; ++a)
      at[a] = static_cast<double>(o[a] * g.conv.stride[a] + k[a] * g.conv.dilation[a] - g.conv.pad_before[a]) +
              offset.values[offset_place(i, a - (3 - g.conv.dims))];
    return at;
  }

  static bool is_nan(const std::vector<double>& at) {
    return std::isnan(at[0]) || std::isnan(at[1]) || std::isnan(at[2]);
  }

  // Calls body(d, h, w, weight) for the pixels between which a coordinate lies; or, with the slope of the weight along
  // an axis, which is that from the right.
  template <class Body>
  void for_pixels(const std::vector<double>& at, int slope, const Body& body) const {
    for (int a = 0; a < 3; ++a) {
      const auto size = static_cast<double>(g.conv.in[a]);
      if (!(a == slope ? at[a] >= -1 && at[a] < size : at[a] > -1 && at[a] < size)) return;
    }
    for (int corner = 0; corner < 8; ++corner) {
      int64_t i[3];
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

  double value(const Column& i, const std::vector<double>& at, int slope = -1) const {
    if (is_nan(at)) return kNotANumber;
    double sum = 0;
    for_pixels(at, slope, [&](int64_t d, int64_t h, int64_t w, double weight) {
      sum += weight * input.at(i.image, i.channel, d, h, w);
    });
    return sum;
  }

  // ---- results; what is not written is no number ----

  std::vector<double> columns() const {
    std::vector<double> columns(grad_columns.size(), kNotANumber);
    for_columns([&](const Column& i) { columns[i.place] = value(i, coordinates(i)) * factor(i); });
    return columns;
  }

  struct Gradients {
    Tensor input, offset, mask;
  };
  Gradients gradients() const {
    Gradients to{input, of_outputs(g.conv.dims), of_outputs(1)};
    to.input.for_each([&](int64_t n, auto... i) {
      to.input.at(n, i...) = n >= c.images.begin && n < c.images.end ? 0 : kNotANumber;
    });
    const auto add = [](double& sum, double term) { sum = std::isnan(sum) ? term : sum + term; };
    for_columns([&](const Column& i) {
      const std::vector<double> at = coordinates(i);
      if (is_nan(at)) return;
      const double gradient = grad_columns[i.place], mask_of = factor(i);
      for_pixels(at, -1, [&](int64_t d, int64_t h, int64_t w, double weight) {
        to.input.at(i.image, i.channel, d, h, w) += weight * gradient * mask_of;
      });
      if (c.has_mask) add(to.mask.values[mask_place(i)], gradient * value(i, at));
      for (int a = 0; a < g.conv.dims; ++a)
        add(to.offset.values[offset_place(i, a)], gradient * mask_of * value(i, at, 3 - g.conv.dims + a));
    });
    return to;
  }
};

}  // namespace torch_ext::test
