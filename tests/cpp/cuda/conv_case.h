#pragma once

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "core/geometry.h"
#include "cuda/kernels/simt_rounding.h"
#include "runner.h"

// Convolutions for tests of kernels: tensors of any layout in buffers of exactly their size, a loop nest in float64,
// and a comparison that is exact, since all numbers are whole and small.
namespace torch_ext::test {

using Geometry = ConvGeometry<int64_t>;
using Sizes = std::vector<int64_t>;

// kSliced: every other number of a larger tensor; kPitched: columns side by side, numbers behind each row; kShifted:
// contiguous, but begins one number after an aligned address; kBatchLast: a permuted one.
enum class Layout { kContiguous, kChannelsLast, kSliced, kPitched, kShifted, kShiftedChannelsLast, kBatchLast };

// How a tensor [n, c, d, h, w] lies in its buffer.
struct Strides {
  int64_t stride[5], offset, length;

  Strides(const Sizes& sizes, Layout layout) {
    const int orders[3][5] = {{4, 3, 2, 1, 0}, {1, 4, 3, 2, 0}, {0, 1, 4, 3, 2}};
    const bool last = layout == Layout::kChannelsLast || layout == Layout::kShiftedChannelsLast;
    int64_t next = layout == Layout::kSliced ? 2 : 1;
    for (int axis : orders[layout == Layout::kBatchLast ? 2 : last]) {
      stride[axis] = next;
      next *= sizes[axis] + (layout == Layout::kSliced || (layout == Layout::kPitched && axis == 4) ? 1 : 0);
    }
    offset = layout == Layout::kShifted || layout == Layout::kShiftedChannelsLast ? 1 : 0;
    length = offset + 1;
    for (int axis = 0; axis < 5; ++axis) length += (sizes[axis] - 1) * stride[axis];
    if (sizes[0] == 0) length = 0;
  }

  template <class T>
  View<T> view(T* buffer) const {
    return {buffer + offset, stride[0], stride[1], {{stride[2], stride[3], stride[4]}}};
  }
};

template <class Visit>
void for_each(const Sizes& s, const Visit& visit) {
  for (int64_t n = 0; n < s[0]; ++n)
    for (int64_t c = 0; c < s[1]; ++c)
      for (int64_t d = 0; d < s[2]; ++d)
        for (int64_t h = 0; h < s[3]; ++h)
          for (int64_t w = 0; w < s[4]; ++w) visit(n, c, d, h, w);
}

// Whole numbers in float64, in contiguous order.
struct Numbers {
  Sizes sizes;
  std::vector<double> values;

  explicit Numbers(const Sizes& s) : sizes(s), values(static_cast<size_t>(s[0] * s[1] * s[2] * s[3] * s[4])) {}
  double& at(int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) {
    return values[static_cast<size_t>((((n * sizes[1] + c) * sizes[2] + d) * sizes[3] + h) * sizes[4] + w)];
  }
  void fill(std::mt19937* random) {
    for (double& x : values) x = static_cast<int>((*random)() % 9) - 4;
  }
};

struct ConvCase {
  int64_t batch, in_channels, out_channels, groups;
  Sizes in, kernel, stride, padding, dilation;  // of 1 to 3 axes; padding is axis by axis before, after
  Layout input_layout = Layout::kContiguous, output_layout = Layout::kContiguous, weight_layout = Layout::kContiguous;
  bool bias = true;
  int multiprocessors = 4;

  Geometry geometry() const {
    Sizes input{batch, in_channels}, weight{out_channels, in_channels / groups};
    input.insert(input.end(), in.begin(), in.end());
    weight.insert(weight.end(), kernel.begin(), kernel.end());
    Geometry g;
    const std::string error =
        make_geometry<int64_t>({"test", input, weight, std::nullopt, stride, padding, dilation, groups}, &g);
    EXPECT_EQ(error, "");
    return g;
  }

  std::string text() const {
    const auto list = [](const Sizes& s) { return detail::list<int64_t>(s); };
    return detail::text("batch ", batch, ", channels ", in_channels, " -> ", out_channels, ", in ", list(in),
                        ", kernel ", list(kernel), ", stride ", list(stride), ", padding ", list(padding),
                        ", dilation ", list(dilation), ", layouts ", static_cast<int>(input_layout), " ",
                        static_cast<int>(output_layout), " ", static_cast<int>(weight_layout));
  }
};

inline ConvCase square_case(int64_t channels, int64_t size, int64_t kernel, int64_t padding) {
  ConvCase c{2, channels, channels, channels, {size, size}, {kernel, kernel}, {1, 1}, {}, {1, 1}};
  c.padding.assign(4, padding);
  return c;
}

struct ConvSizes {
  Sizes input, weight, output;

  explicit ConvSizes(const Geometry& g)
      : input{g.batch, g.in_channels, g.in[0], g.in[1], g.in[2]},
        weight{g.out_channels, g.in_per_group(), g.kernel[0], g.kernel[1], g.kernel[2]},
        output{g.batch, g.out_channels, g.out[0], g.out[1], g.out[2]} {}
};

// The loop nest: calls visit with where an output, an input and a weight are that meet.
template <class Visit>
void for_each_product(const Geometry& g, const Visit& visit) {
  const ConvSizes sizes(g);
  for_each(sizes.output, [&](int64_t n, int64_t o, int64_t od, int64_t oh, int64_t ow) {
    for (int64_t j = 0; j < g.in_per_group(); ++j)
      for (int64_t kd = 0; kd < g.kernel[0]; ++kd)
        for (int64_t kh = 0; kh < g.kernel[1]; ++kh)
          for (int64_t kw = 0; kw < g.kernel[2]; ++kw) {
            const int64_t d = od * g.stride[0] + kd * g.dilation[0] - g.pad_before[0];
            const int64_t h = oh * g.stride[1] + kh * g.dilation[1] - g.pad_before[1];
            const int64_t w = ow * g.stride[2] + kw * g.dilation[2] - g.pad_before[2];
            if (d < 0 || d >= g.in[0] || h < 0 || h >= g.in[1] || w < 0 || w >= g.in[2]) continue;
            const int64_t group = o / g.out_per_group();
            visit(Sizes{n, o, od, oh, ow}, Sizes{n, group * g.in_per_group() + j, d, h, w}, Sizes{o, j, kd, kh, kw});
          }
  });
}

// A tensor of the device with some layout.
template <class T>
struct DeviceTensor {
  Sizes sizes;
  Strides strides;
  T* buffer;

  DeviceTensor(Runner* gpu, const std::string& name, const Sizes& s, Layout layout)
      : sizes(s), strides(s, layout), buffer(gpu->output<T>(name, strides.length)) {}
  DeviceTensor(Runner* gpu, const std::string& name, Numbers numbers, Layout layout)
      : sizes(numbers.sizes), strides(numbers.sizes, layout) {
    std::vector<T> values(strides.length, simt::host::narrow<T>(static_cast<Acc<T>>(NAN)));
    for_each(sizes, [&](auto... i) {
      strides.view(values.data()).data[place(i...)] = simt::host::narrow<T>(static_cast<Acc<T>>(numbers.at(i...)));
    });
    buffer = gpu->in_out(name, values);
  }

  View<T> view() const { return strides.view(buffer); }
  View<const T> input() const { return strides.view<const T>(buffer); }

  int64_t place(int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) const {
    return n * strides.stride[0] + c * strides.stride[1] + d * strides.stride[2] + h * strides.stride[3] +
           w * strides.stride[4];
  }

  // Numbers between those of the tensor must still be what they were.
  void expect(const Runner& gpu, Numbers expected, const char* what) const {
    if (strides.length == 0) return;
    const std::vector<T> values = gpu.read(buffer);
    std::vector<bool> ours(values.size());
    int wrong = 0;
    for_each(sizes, [&](auto... i) {
      const size_t at = static_cast<size_t>(strides.offset + place(i...));
      ours[at] = true;
      // Exact in Acc<T>, then rounded once.
      const T right = simt::host::narrow<T>(static_cast<Acc<T>>(expected.at(i...)));
      if (simt::host::widen(values[at]) != simt::host::widen(right) && ++wrong == 1) {
        const int64_t where[] = {i...};
        ADD_FAILURE() << what << detail::list<int64_t>(where) << " is " << simt::host::widen(values[at])
                      << " instead of " << simt::host::widen(right);
      }
    });
    EXPECT_EQ(wrong, 0) << "wrong numbers of " << what;
    for (size_t i = 0; i < values.size(); ++i) {
      if (ours[i]) continue;
      const auto* bytes = reinterpret_cast<const unsigned char*>(&values[i]);
      EXPECT_TRUE(std::all_of(bytes, bytes + sizeof(T), [](int b) { return b == 0xff; })) << what << ": wrote between";
    }
  }
};

inline ConvSizes sizes_of(const ConvCase& c) { return ConvSizes(c.geometry()); }

// A case with its tensors, and what must come out.
template <class T>
struct ConvProblem {
  Runner gpu;
  Geometry g;
  ConvSizes sizes;
  int multiprocessors;
  Numbers input, weight, bias, grad_output;
  DeviceTensor<T> device_input, device_weight, device_grad_output, output, grad_input, grad_weight;
  const T* device_bias;

  explicit ConvProblem(const ConvCase& c)
      : g(c.geometry()),
        sizes(g),
        multiprocessors(c.multiprocessors),
        input(filled(sizes.input, 1)),
        weight(filled(sizes.weight, 2)),
        bias(filled({1, g.out_channels, 1, 1, 1}, 3)),
        grad_output(filled(sizes.output, 4)),
        device_input(&gpu, "input", input, c.input_layout),
        device_weight(&gpu, "weight", weight, c.weight_layout),
        device_grad_output(&gpu, "grad_output", grad_output, c.output_layout),
        output(&gpu, "output", sizes.output, c.output_layout),
        grad_input(&gpu, "grad_input", sizes.input, c.input_layout),
        grad_weight(&gpu, "grad_weight", sizes.weight, c.weight_layout),
        device_bias(c.bias ? DeviceTensor<T>(&gpu, "bias", bias, Layout::kContiguous).buffer : nullptr) {}

  static Numbers filled(const Sizes& sizes, unsigned seed) {
    Numbers numbers(sizes);
    std::mt19937 random(seed);
    numbers.fill(&random);
    return numbers;
  }

  // What kernels are launched with.
  auto launch() {
    return [this](const simt::LaunchSize& size, auto* kernel, const auto& params) { gpu.run(size, kernel, params); };
  }

  Numbers expected_output() {
    Numbers expected(sizes.output);
    if (device_bias)
      for_each(sizes.output,
               [&](int64_t n, int64_t c, auto... i) { expected.at(n, c, i...) = bias.at(0, c, 0, 0, 0); });
    for_each_product(
        g, [&](const Sizes& o, const Sizes& i, const Sizes& k) { at(&expected, o) += at(&input, i) * at(&weight, k); });
    return expected;
  }
  Numbers expected_grad_input() {
    Numbers expected(sizes.input);
    for_each_product(g, [&](const Sizes& o, const Sizes& i, const Sizes& k) {
      at(&expected, i) += at(&grad_output, o) * at(&weight, k);
    });
    return expected;
  }
  Numbers expected_grad_weight() {
    Numbers expected(sizes.weight);
    for_each_product(g, [&](const Sizes& o, const Sizes& i, const Sizes& k) {
      at(&expected, k) += at(&grad_output, o) * at(&input, i);
    });
    return expected;
  }
  static double& at(Numbers* numbers, const Sizes& i) { return numbers->at(i[0], i[1], i[2], i[3], i[4]); }
};

// Calls visit(T()) for each storage type.
template <class Visit>
void for_each_type(const Visit& visit) {
  visit(float());
  visit(double());
  visit(BFloat16());
  visit(Half());
}

}  // namespace torch_ext::test
