#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/dtype.h"
#include "core/geometry.h"
#include "cpu/kernels/table.h"

// What the kernel tests share: tensors in buffers of exactly their size, a plain loop nest in float64, and a runner
// that compares every pass with it.
namespace torch_ext::test {

using Geometry = ConvGeometry<int64_t>;
using Sizes = std::vector<int64_t>;

inline double to_double(float x) { return x; }
inline double to_double(double x) { return x; }
inline double to_double(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
inline double to_double(Half x) { return static_cast<double>(std::bit_cast<_Float16>(x.bits)); }

template <class T>
T from_double(double x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    // Only for values that need no care: round half up in magnitude, finite.
    return {static_cast<uint16_t>((std::bit_cast<uint32_t>(static_cast<float>(x)) + 0x8000u) >> 16)};
  } else if constexpr (std::is_same_v<T, Half>) {
    return {std::bit_cast<uint16_t>(static_cast<_Float16>(x))};
  } else {
    return static_cast<T>(x);
  }
}

template <class T>
T nan_of() {
  if constexpr (std::is_same_v<T, BFloat16> || std::is_same_v<T, Half>) return {0x7fff};
  else return std::numeric_limits<T>::quiet_NaN();
}

enum class Fill { kIntegers, kNormal, kConstant };

// kPitched: columns side by side, NaN behind each row; kSliced: NaN behind each element, too.
enum class Layout { kContiguous, kChannelsLast, kSliced, kExpanded, kBatchLast, kPitched };

// A tensor [n, c, d, h, w] in a buffer that ends with its last element, so that AddressSanitizer sees any step beyond.
template <class T>
struct Tensor {
  int64_t sizes[5];
  int64_t strides[5];
  int64_t length;
  std::unique_ptr<T[]> data;

  Tensor(const Sizes& s, Layout layout) {
    std::copy(s.begin(), s.end(), sizes);
    const int order[3][5] = {{4, 3, 2, 1, 0}, {1, 4, 3, 2, 0}, {0, 1, 4, 3, 2}};
    int64_t stride = layout == Layout::kSliced ? 2 : 1;
    for (int axis : order[layout == Layout::kBatchLast ? 2 : layout == Layout::kChannelsLast]) {
      strides[axis] = stride;
      stride *= sizes[axis] + (layout == Layout::kSliced || layout == Layout::kPitched ? 1 : 0);
    }
    // A channel and a column that stand for all, as expand() makes them.
    if (layout == Layout::kExpanded) strides[1] = 0, strides[4] = 0;
    length = 1;
    for (int axis = 0; axis < 5; ++axis) length += (sizes[axis] - 1) * strides[axis];
    data.reset(new T[length]);
    std::fill_n(data.get(), length, nan_of<T>());
  }

  View<T> mutable_view() { return {data.get(), strides[0], strides[1], {{strides[2], strides[3], strides[4]}}}; }
  View<const T> view() const { return {data.get(), strides[0], strides[1], {{strides[2], strides[3], strides[4]}}}; }

  T& at(int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) const {
    return data[n * strides[0] + c * strides[1] + d * strides[2] + h * strides[3] + w * strides[4]];
  }

  template <class Visit>
  void for_each(const Visit& visit) const {
    for (int64_t n = 0; n < sizes[0]; ++n)
      for (int64_t c = 0; c < sizes[1]; ++c)
        for (int64_t d = 0; d < sizes[2]; ++d)
          for (int64_t h = 0; h < sizes[3]; ++h)
            for (int64_t w = 0; w < sizes[4]; ++w) visit(n, c, d, h, w);
  }

  void fill(std::mt19937* random, Fill fill) {
    std::uniform_int_distribution<int> integer(-4, 4);
    std::normal_distribution<double> normal;
    for_each([&](auto... i) {
      const double x = fill == Fill::kIntegers ? integer(*random) : fill == Fill::kNormal ? normal(*random) : 1.1;
      at(i...) = from_double<T>(x);
    });
  }
};

// A buffer of exactly `size` elements, aligned as the kernels are promised, of NaN.
template <class A>
struct Buffer {
  explicit Buffer(int64_t size)
      : data(static_cast<A*>(::operator new(static_cast<size_t>(size) * sizeof(A), std::align_val_t(64)))) {
    std::fill_n(data, size, std::numeric_limits<A>::quiet_NaN());
  }
  ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  A* data;
};

// One problem. Lists are of 1 to 3 numbers; padding is axis by axis before, after.
struct Case {
  int64_t batch, in_channels, out_channels, groups;
  Sizes in, kernel, stride, padding, dilation;
  Layout input_layout = Layout::kContiguous, output_layout = Layout::kContiguous;
  bool bias = true;
  std::optional<Layout> weight_layout = std::nullopt;  // the output's, unless said otherwise

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
                        static_cast<int>(output_layout));
  }
};

inline Case square(int64_t channels, int64_t size, int64_t kernel, int64_t padding) {
  return {.batch = 2,
          .in_channels = channels,
          .out_channels = channels,
          .groups = channels,
          .in = {size, size},
          .kernel = {kernel, kernel},
          .stride = {1, 1},
          .padding = {padding, padding, padding, padding},
          .dilation = {1, 1}};
}

// Results in float64, each as a tensor in contiguous order.
struct Expected {
  Tensor<double> output, grad_input, grad_weight, grad_bias;
};

template <class T>
Expected reference(const Geometry& g, const Tensor<T>& input, const Tensor<T>& weight, const T* bias,
                   const Tensor<T>& grad_output) {
  const auto sizes = [](const auto& t) { return Sizes(t.sizes, t.sizes + 5); };
  Expected e{{sizes(grad_output), Layout::kContiguous},
             {sizes(input), Layout::kContiguous},
             {sizes(weight), Layout::kContiguous},
             {{1, g.out_channels, 1, 1, 1}, Layout::kContiguous}};
  for (Tensor<double>* t : {&e.grad_input, &e.grad_weight, &e.grad_bias}) std::fill_n(t->data.get(), t->length, 0.0);
  e.output.for_each([&](int64_t n, int64_t c, int64_t od, int64_t oh, int64_t ow) {
    const double go = to_double(grad_output.at(n, c, od, oh, ow));
    double sum = bias ? to_double(bias[c]) : 0.0;
    e.grad_bias.at(0, c, 0, 0, 0) += go;
    for (int64_t i = 0; i < g.in_per_group(); ++i)
      for (int64_t kd = 0; kd < g.kernel[0]; ++kd)
        for (int64_t kh = 0; kh < g.kernel[1]; ++kh)
          for (int64_t kw = 0; kw < g.kernel[2]; ++kw) {
            const int64_t d = od * g.stride[0] + kd * g.dilation[0] - g.pad_before[0];
            const int64_t h = oh * g.stride[1] + kh * g.dilation[1] - g.pad_before[1];
            const int64_t w = ow * g.stride[2] + kw * g.dilation[2] - g.pad_before[2];
            if (d < 0 || d >= g.in[0] || h < 0 || h >= g.in[1] || w < 0 || w >= g.in[2]) continue;
            const int64_t ci = c / g.out_per_group() * g.in_per_group() + i;
            const double x = to_double(input.at(n, ci, d, h, w)), k = to_double(weight.at(c, i, kd, kh, kw));
            sum += x * k;
            e.grad_input.at(n, ci, d, h, w) += go * k;
            e.grad_weight.at(c, i, kd, kh, kw) += go * x;
          }
    e.output.at(n, c, od, oh, ow) = sum;
  });
  return e;
}

// Within api.md's accuracy of the float64 result; exact for integers whose result is exact in T.
template <class T>
void expect_close(const Tensor<T>& actual, const Tensor<double>& expected, bool exact, const std::string& what) {
  double largest = 0;
  for (int64_t i = 0; i < expected.length; ++i) largest = std::max(largest, std::abs(expected.data[i]));
  const double relative = std::is_same_v<T, BFloat16> ? 0x1p-8 : std::is_same_v<T, Half> ? 0x1p-11 : 0;
  const double absolute =
      (std::is_same_v<T, double> ? 1e-13 : 3e-6) * largest + (std::is_same_v<T, Half> ? 0x1p-25 : 0);
  int64_t wrong = 0;
  std::string first;
  expected.for_each([&](auto... i) {
    const double y = to_double(actual.at(i...)), y64 = expected.at(i...);
    const bool right = exact ? y == y64 : std::abs(y - y64) <= relative * std::abs(y64) + absolute;
    if (!right && wrong++ == 0) {
      const int64_t where[] = {i...};
      first = detail::text("first at ", detail::list<int64_t>(where), ": ", y, " instead of ", y64);
    }
  });
  EXPECT_EQ(wrong, 0) << what << ": " << first;
}

// The kernels a case runs on. Those for groups take depthwise convolutions, too.
enum class Family { kDepthwise, kDirect };

// Buffers as the ATen side lends them, and the items run in `pieces` ranges, last range first.
template <class T>
struct Runner {
  const cpu::Kernels<T>& kernels;
  Family family;
  const Geometry& g;
  int pieces;

  template <class Plan, class Run>
  void run(const Plan& plan, const Run& body) const {
    EXPECT_LE(plan.scratch_size() * static_cast<int64_t>(sizeof(Acc<T>)), 1 << 20);
    for (int64_t piece = pieces - 1; piece >= 0; --piece) {
      Buffer<Acc<T>> scratch(plan.scratch_size());
      body(Range{plan.items() * piece / pieces, plan.items() * (piece + 1) / pieces}, scratch.data);
    }
  }
  void correlate(bool transposed, const Tensor<T>& source, const Tensor<T>& weight, const T* bias,
                 Tensor<T>* target) const {
    auto from = source.view();
    auto to = target->mutable_view();
    if (family == Family::kDirect && !cpu::groups_share_vectors<T>(g, cpu::layout(from), cpu::layout(to))) {
      Geometry merged = g;
      transposed ? cpu::merge_axes(&merged, &to, &from) : cpu::merge_axes(&merged, &from, &to);
      if (const auto pixels = cpu::plan_pixels<T>(merged, transposed, cpu::layout(from), cpu::layout(to))) {
        Buffer<Acc<T>> packed(pixels->weight_size());
        const int64_t panels = pixels->rows.groups * pixels->panels();
        for (const Range some : {Range{panels / 2, panels}, Range{0, panels / 2}})
          kernels.direct.pack_panels(*pixels, weight.view(), bias, packed.data, some);
        run(*pixels, [&](Range items, Acc<T>* scratch) {
          kernels.direct.pixels(*pixels, from, packed.data, to, items, scratch);
        });
        return;
      }
      const auto plan = cpu::plan_direct<T>(merged, transposed, cpu::layout(from), cpu::layout(to));
      Tensor<Acc<T>> wide(Sizes(weight.sizes, weight.sizes + 5), Layout::kContiguous);
      wide.for_each([&](auto... i) { wide.at(i...) = static_cast<Acc<T>>(to_double(weight.at(i...))); });
      View<const Acc<T>> view = *cpu::with_even_taps(g, wide.view());
      if constexpr (std::is_same_v<T, Acc<T>>) view = cpu::with_even_taps(g, weight.view()).value_or(view);
      run(plan,
          [&](Range items, Acc<T>* scratch) { kernels.direct.correlate(plan, from, view, bias, to, items, scratch); });
      return;
    }
    const auto plan =
        cpu::plan_correlate<T>(g, transposed, cpu::layout(source.view()), cpu::layout(target->mutable_view()));
    Buffer<Acc<T>> packed(plan.weight_size());
    kernels.depthwise.pack_weight(plan, weight.view(), packed.data);
    run(plan, [&](Range items, Acc<T>* scratch) {
      kernels.depthwise.correlate(plan, source.view(), packed.data, bias, target->mutable_view(), items, scratch);
    });
  }
  void grad_weight(const Tensor<T>& grad_output, const Tensor<T>& input, Tensor<T>* grad_weight) const {
    auto factor = grad_output.view(), source = input.view();
    const auto sum = [&](const auto& plan, auto* kernel, auto* add_slices) {
      Buffer<Acc<T>> partial(plan.partial_sums_size());
      run(plan, [&](Range items, Acc<T>* scratch) { kernel(plan, factor, source, partial.data, items, scratch); });
      add_slices(plan, partial.data, grad_weight->mutable_view());
    };
    if (family == Family::kDepthwise || cpu::grad_weight_shares_vectors<T>(g, cpu::layout(factor), cpu::layout(source)))
      return sum(cpu::plan_grad_weight<T>(g, cpu::layout(factor), cpu::layout(source)), kernels.depthwise.grad_weight,
                 kernels.depthwise.add_grad_weight);
    Geometry merged = g;
    cpu::merge_axes(&merged, &source, &factor);
    if (const auto pixels = cpu::plan_pixel_grad_weight<T>(merged, cpu::layout(factor), cpu::layout(source)))
      return sum(*pixels, kernels.direct.pixel_grad_weight, kernels.direct.add_pixel_grad_weight);
    sum(cpu::plan_direct_grad_weight<T>(merged, cpu::layout(factor), cpu::layout(source)), kernels.direct.grad_weight,
        kernels.direct.add_grad_weight);
  }
  void grad_bias(const Tensor<T>& grad_output, T* grad_bias) const {
    const auto plan = cpu::plan_grad_bias<T>(g, cpu::layout(grad_output.view()));
    Buffer<Acc<T>> partial(plan.partial_sums_size());
    run(plan, [&](Range items, Acc<T>* scratch) {
      kernels.depthwise.grad_bias(plan, grad_output.view(), partial.data, items, scratch);
    });
    kernels.depthwise.add_grad_bias(plan, partial.data, grad_bias);
  }
};

// Every pass against the reference, and again in other pieces, which must not change a bit.
template <class T>
void check(const cpu::KernelTable& table, const Case& c, Fill fill, Family family = Family::kDepthwise) {
  SCOPED_TRACE(detail::text(c.text(), ", fill ", static_cast<int>(fill)));
  const Geometry g = c.geometry();
  std::mt19937 random(static_cast<uint32_t>(g.in[2] * 31 + g.kernel[2] * 7 + g.in_channels));
  const Sizes in{g.batch, g.in_channels, g.in[0], g.in[1], g.in[2]};
  const Sizes out{g.batch, g.out_channels, g.out[0], g.out[1], g.out[2]};
  const Sizes kernel{g.out_channels, g.in_per_group(), g.kernel[0], g.kernel[1], g.kernel[2]};
  Tensor<T> input(in, c.input_layout), grad_output(out, c.output_layout),
      bias({1, out[1], 1, 1, 1}, Layout::kContiguous);
  const auto own = [](Layout layout) { return layout == Layout::kExpanded ? Layout::kContiguous : layout; };
  const Layout weight_layout = c.weight_layout.value_or(own(c.output_layout));
  Tensor<T> weight(kernel, weight_layout);
  for (Tensor<T>* t : {&input, &weight, &grad_output, &bias}) t->fill(&random, fill);
  const T* bias_data = c.bias ? bias.data.get() : nullptr;
  const Expected expected = reference(g, input, weight, bias_data, grad_output);

  std::vector<Tensor<T>> first;
  for (int pieces = 1; pieces <= 3; ++pieces) {
    const Runner<T> runner{table.of<T>(), family, g, pieces};
    std::vector<Tensor<T>> results;
    results.emplace_back(out, own(c.output_layout));
    results.emplace_back(in, own(c.input_layout));
    results.emplace_back(kernel, weight_layout);
    results.emplace_back(Sizes{1, out[1], 1, 1, 1}, Layout::kContiguous);
    runner.correlate(false, input, weight, bias_data, &results[0]);
    runner.correlate(true, grad_output, weight, nullptr, &results[1]);
    runner.grad_weight(grad_output, input, &results[2]);
    runner.grad_bias(grad_output, results[3].data.get());
    if (pieces > 1) {
      for (size_t i = 0; i < results.size(); ++i)
        EXPECT_EQ(std::memcmp(results[i].data.get(), first[i].data.get(), results[i].length * sizeof(T)), 0)
            << "result " << i << " differs in " << pieces << " pieces";
      continue;
    }
    const bool exact = fill == Fill::kIntegers && sizeof(T) >= 4;
    expect_close(results[0], expected.output, exact, "forward");
    expect_close(results[1], expected.grad_input, exact, "grad_input");
    expect_close(results[2], expected.grad_weight, exact, "grad_weight");
    expect_close(results[3], expected.grad_bias, exact, "grad_bias");
    // Elements between those of a sliced tensor are not ours to write.
    for (Tensor<T>& r : results) {
      Tensor<T> copy(Sizes(r.sizes, r.sizes + 5), Layout::kContiguous);
      std::vector<bool> ours(static_cast<size_t>(r.length));
      r.for_each([&](auto... i) { ours[static_cast<size_t>(&r.at(i...) - r.data.get())] = true; });
      for (int64_t i = 0; i < r.length; ++i)
        EXPECT_TRUE(ours[static_cast<size_t>(i)] || std::isnan(to_double(r.data[i]))) << "wrote between elements";
    }
    first = std::move(results);
  }
}

// Instruction sets as test parameters.
enum class Isa { kScalar, kAvx2 };

class KernelTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() == Isa::kAvx2 &&
        !(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")))
      GTEST_SKIP() << "this CPU has no AVX2, FMA and F16C";
  }
  const cpu::KernelTable& table() const { return GetParam() == Isa::kAvx2 ? cpu::avx2_table() : cpu::scalar_table(); }

  void check_all(const Case& c, Family family = Family::kDepthwise) const {
    check<float>(table(), c, Fill::kIntegers, family);
    check<float>(table(), c, Fill::kNormal, family);
    check<double>(table(), c, Fill::kNormal, family);
    check<BFloat16>(table(), c, Fill::kNormal, family);
    check<Half>(table(), c, Fill::kNormal, family);
  }
};

inline std::string isa_name(const testing::TestParamInfo<Isa>& info) {
  return info.param == Isa::kAvx2 ? "avx2" : "scalar";
}

#define INSTANTIATE_FOR_EVERY_ISA(suite) \
  INSTANTIATE_TEST_SUITE_P(Isa, suite, testing::Values(Isa::kScalar, Isa::kAvx2), isa_name)

}  // namespace torch_ext::test
