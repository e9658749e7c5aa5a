#include "deform_case.h"

#include <algorithm>
#include <random>
#include <utility>

#include "cuda/kernels/deform.cuh"
#include "cuda/kernels/simt_rounding.h"
#include "runner.h"

namespace torch_ext::test {
namespace {

using cuda::Columns;
using cuda::DeformGradients;
using cuda::DeformInputs;
using cuda::EitherView;
using cuda::FixedPoint;
using cuda::kSplits;
using simt::host::narrow;
using simt::host::widen;

// Launches what is to be launched.
struct Launch {
  Runner& gpu;
  RunOptions options = {};

  template <class Params>
  void operator()(const simt::LaunchSize& size, void (*kernel)(Params), const Params& params) const {
    gpu.run(size, kernel, params, options);
  }
};

template <class T>
std::vector<T> from_double(const std::vector<double>& values) {
  std::vector<T> result;
  for (const double x : values) result.push_back(narrow<T>(static_cast<Acc<T>>(x)));
  return result;
}

template <class T>
std::vector<double> to_double(const std::vector<T>& values) {
  std::vector<double> result;
  for (const T x : values) result.push_back(widen(x));
  return result;
}

template <class T>
View<T> view(const Tensor& t, T* data) {
  return {data + t.skipped, t.strides[0], t.strides[1], {{t.strides[2], t.strides[3], t.strides[4]}}};
}

using Rounding = std::vector<double> (*)(const std::vector<double>&);
template <class T>
std::vector<double> rounded(const std::vector<double>& values) {
  return to_double(from_double<T>(values));
}

void expect_same(const char* what, const std::vector<double>& own, const std::vector<double>& exact,
                 Rounding rounding) {
  ASSERT_EQ(own.size(), exact.size());
  const std::vector<double> expected = rounding(exact);
  int wrong = 0;
  for (size_t i = 0; i < own.size(); ++i)
    if (std::isnan(own[i]) ? !std::isnan(expected[i]) : own[i] != expected[i])
      if (++wrong < 5) ADD_FAILURE() << what << " at " << i << ": " << own[i] << ", not " << expected[i];
}

// A problem on the device.
template <class T>
struct OnDevice {
  using A = Acc<T>;

  OnDevice(const DeformProblem& problem, Runner& runner) : q(problem), gpu(runner) {
    in.geometry = q.g;
    in.input = view(q.input, gpu.input("input", from_double<T>(q.input.values)));
    in.offset = read(q.offset, "offset", q.c.wide_offset);
    if (q.c.has_mask) in.mask = read(q.mask, "mask", q.c.wide_mask);
    in.images = q.c.images;
    in.positions = q.c.positions;
  }

  // In T or Acc<T>.
  EitherView<T> written(const Tensor& t, const char* name, bool is_wide) {
    T* const data = is_wide ? reinterpret_cast<T*>(gpu.in_out(name, from_double<A>(t.values)))
                            : gpu.in_out(name, from_double<T>(t.values));
    EitherView<T> e{view(t, data), is_wide};
    if (is_wide) e.view.data = reinterpret_cast<T*>(reinterpret_cast<A*>(data) + t.skipped);
    return e;
  }
  EitherView<const T> read(const Tensor& t, const char* name, bool is_wide) {
    const EitherView<T> e = written(t, name, is_wide);
    return {{e.view.data, e.view.n, e.view.c, e.view.spatial}, is_wide};
  }
  void check(const char* what, const EitherView<T>& own, const Tensor& expected) {
    if (own.is_wide) {
      const auto values = gpu.read(reinterpret_cast<A*>(own.view.data) - expected.skipped);
      expect_same(what, to_double(values), expected.values, rounded<A>);
    } else {
      expect_same(what, to_double(gpu.read(own.view.data - expected.skipped)), expected.values, rounded<T>);
    }
  }

  // Laid out like their gradient, but with splits side by side.
  Columns<T> make(const RunOptions& options = {}, const A* scale = nullptr) {
    const int64_t of_group = q.g.taps() * q.g.conv.in_per_group(), more = (kSplits<T> - 1) * of_group;
    const int64_t row = q.row_stride + more * (q.c.groups_in_rows ? q.c.groups : 1);
    const int64_t group = q.c.groups_in_rows ? q.group_stride + more : q.rows * row;
    const int64_t count = (q.rows - 1) * row + (q.c.groups - 1) * group + of_group + more;
    const Columns<T> columns{gpu.output<T>("columns", count), group, row, scale};
    cuda::make_columns(in, columns, Launch{gpu, options});
    return columns;
  }
  // The sums of splits, where those of the gradient lie.
  std::vector<double> read(const Columns<T>& columns) const {
    const std::vector<double> numbers = to_double(gpu.read(columns.data));
    const int64_t of_group = q.g.taps() * q.g.conv.in_per_group();
    std::vector<double> sums(q.grad_columns.size(), kNotANumber);
    q.for_columns([&](const Column& i) {
      const int64_t group = i.channel / q.g.conv.in_per_group();
      const int64_t in_row = i.place - group * q.group_stride - i.row * q.row_stride;
      double sum = 0;
      for (int split = 0; split < kSplits<T>; ++split)
        sum += numbers[group * columns.group + i.row * columns.row + split * of_group + in_row];
      sums[i.place] = sum;
    });
    return sums;
  }

  // What the gradient is spread to. S: of the input's sums.
  template <class S>
  DeformGradients<T, S> gradients(A scale = 1) {
    const int64_t pixels = q.g.conv.in[0] * q.g.conv.in[1] * q.g.conv.in[2], channels = q.c.channels;
    const bool channels_first = q.c.input_layout == Layout::kContiguous;
    DeformGradients<T, S> to;
    const int64_t images = q.c.images.end - q.c.images.begin;
    to.sums = {gpu.in_out("sums", std::vector<S>(images * channels * pixels)), channels * pixels,
               channels_first ? pixels : 1, channels_first ? 1 : channels, gpu.input("scale", std::vector<A>{scale})};
    to.offset = written(q.of_outputs(q.g.conv.dims), "grad_offset", q.c.wide_offset);
    if (q.c.has_mask) to.mask = written(q.of_outputs(1), "grad_mask", q.c.wide_mask);
    return to;
  }
  template <class S>
  const A* spread(const DeformGradients<T, S>& to, const RunOptions& options = {}) {
    const A* const data = gpu.input("gradient", from_double<A>(q.grad_columns));
    cuda::spread_columns(in, Columns<const A>{data, q.group_stride, q.row_stride}, to, Launch{gpu, options});
    return data;
  }
  template <class S>
  std::vector<double> grad_input(const DeformGradients<T, S>& to) {
    T* const data = gpu.output<T>("grad_input", q.input.values.size());
    cuda::round_sums(q.g.conv, q.c.images, to.sums, view(q.input, data), Launch{gpu});
    return to_double(gpu.read(data));
  }

  // What adds up is a multiple of a small power of two.
  template <class S>
  void check_gradients(const DeformProblem::Gradients& expected, bool has_sums = true, bool has_sampling = true) {
    DeformGradients<T, S> to = gradients<S>(1 << 12);
    if (!has_sums) to.sums = {};
    if (!has_sampling) to.offset = to.mask = {};
    spread(to);
    if (has_sums) expect_same("grad_input", grad_input(to), expected.input.values, rounded<T>);
    if (to.offset.exists()) check("grad_offset", to.offset, expected.offset);
    if (to.mask.exists()) check("grad_mask", to.mask, expected.mask);
  }

  const DeformProblem& q;
  Runner& gpu;
  DeformInputs<T> in{};
};

template <class T>
void check_deform(const DeformCase& c) {
  SCOPED_TRACE(c.text());
  DeformProblem q(c);
  q.fill_exact(static_cast<uint32_t>(c.channels * 31 + c.in.back() * 7 + c.offset_groups));
  Runner gpu;
  OnDevice<T> d(q, gpu);
  expect_same("column", d.read(d.make()), q.columns(), rounded<Acc<T>>);
  const DeformProblem::Gradients gradients = q.gradients();
  d.template check_gradients<Acc<T>>(gradients);
  d.template check_gradients<FixedPoint>(gradients);
}

DeformCase square(int64_t channels, Layout layout) {
  return {2, channels, 1, 1, {3, 5}, {3, 2}, {1, 1}, {1, 1, 0, 1}, {1, 1}, layout, layout};
}

TEST_F(CudaTest, DeformOfEveryCountOfChannels) {
  for (const int64_t channels : {1, 3, 7, 8, 9, 13, 17, 58})
    for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
      DeformCase c = square(channels, layout);
      check_deform<float>(c);
      c.offset_groups = channels == 58 ? 29 : channels;
      c.wide_offset = c.wide_mask = true;
      c.gap = 3;
      c.images = {1, 2};
      c.positions = {2, 13};
      check_deform<Half>(c);
    }
}

template <class T>
class DeformTypes : public CudaTest {};
using DeformElements = ::testing::Types<float, double, BFloat16, Half>;
TYPED_TEST_SUITE(DeformTypes, DeformElements);

TYPED_TEST(DeformTypes, EveryLayout) {
  using T = TypeParam;
  for (const Layout layout :
       {Layout::kContiguous, Layout::kChannelsLast, Layout::kPermuted, Layout::kShiftedChannelsLast})
    for (const int64_t channels : {16, 6}) {
      DeformCase c = square(channels, layout);
      check_deform<T>(c);
      c.offset_groups = 2;
      c.offset_layout = layout == Layout::kContiguous ? Layout::kChannelsLast : Layout::kContiguous;
      c.wide_offset = true;
      c.positions = {4, 14};
      c.groups = 2;
      c.has_mask = channels == 16;
      check_deform<T>(c);
      c.has_mask = c.wide_mask = true;
      c.wide_offset = false;
      c.offset_groups = 1;
      check_deform<T>(c);
    }
}

TEST_F(CudaTest, SomeGradientsOfDeform) {
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    Runner own;
    DeformProblem q(square(8, layout));
    q.fill_exact(1);
    OnDevice<float> d(q, own);
    d.check_gradients<float>(q.gradients(), true, false);
    d.check_gradients<float>(q.gradients(), false, true);
    d.check_gradients<FixedPoint>(q.gradients(), true, false);
    d.check_gradients<FixedPoint>(q.gradients(), false, true);
  }
}

TEST_F(CudaTest, DeformOfGroups) {
  const Sizes all[] = {{12, 3, 2}, {12, 12, 1}, {12, 1, 12}, {12, 12, 12}, {48, 2, 4}, {80, 5, 2}};
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast})
    for (const Sizes& s : all)
      for (const bool groups_in_rows : {false, true}) {
        DeformCase c = square(s[0], layout);
        c.batch = groups_in_rows ? 1 : 2;
        c.groups = s[1];
        c.offset_groups = s[2];
        c.groups_in_rows = groups_in_rows;
        check_deform<float>(c);
      }
}

TEST_F(CudaTest, DeformOfEveryNumberOfDimensions) {
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast})
    for (const int64_t width : {1, 2, 3, 4, 5, 6, 7, 8, 9}) {
      check_deform<float>({3, 8, 1, 2, {width}, {5}, {2}, {4, 3}, {1}, layout, layout});
      check_deform<BFloat16>({2, 8, 2, 1, {2, width}, {2, 3}, {3, 4}, {0, 2, 2, 1}, {2, 1}, layout, layout});
      if (width % 3 != 0) continue;
      check_deform<double>(
          {1, 8, 1, 2, {3, 2, width}, {2, 1, 3}, {1, 3, 2}, {1, 1, 0, 2, 2, 2}, {1, 2, 1}, layout, layout});
      check_deform<Half>(
          {2, 16, 2, 1, {2, 3, width}, {1, 2, 2}, {1, 1, 1}, {0, 0, 1, 0, 1, 1}, {1, 1, 1}, layout, layout});
    }
}

// Which several warps, or steps of a warp, share.
TEST_F(CudaTest, DeformOfManyChannels) {
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    DeformCase c{1, 300, 1, 1, {3, 4}, {2, 2}, {1, 1}, {1, 0, 0, 1}, {1, 1}, layout, layout};
    check_deform<float>(c);
    c.groups = 3;
    check_deform<Half>(c);
    c.offset_groups = 2;
    check_deform<float>(c);
  }
}

// Blocks and warps are given more when there is more to do; of all that, a few blocks.
TEST_F(CudaTest, DeformOfLargeImages) {
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast})
    for (const auto& [channels, size] : {std::pair{32, 30}, std::pair{4, 70}}) {
      const DeformCase c{2,      channels,     1,      channels / 4, {size, size}, {3, 3},
                         {1, 1}, {1, 1, 1, 1}, {1, 1}, layout,       layout};
      SCOPED_TRACE(c.text());
      DeformProblem q(c);
      q.fill_exact(1);
      OnDevice<float> d(q, gpu);
      const RunOptions some{true, {{0, 0, 0}, {7, 0, 0}, {101, 0, 0}}};
      const DeformGradients<float, float> to = d.gradients<float>();
      const std::vector<double> columns = d.read(d.make(some));
      d.spread(to, some);
      const std::vector<double> offset = to_double(gpu.read(to.offset.view.data));
      const std::vector<double> mask = to_double(gpu.read(to.mask.view.data));
      int64_t count = 0, gradients = 0;
      q.for_columns([&](const Column& i) {
        const double own = columns[i.place], own_mask = mask[q.mask_place(i)];
        if (std::isnan(own) && std::isnan(own_mask)) return;
        const std::vector<double> at = q.coordinates(i);
        if (!std::isnan(own)) {
          ++count;
          EXPECT_EQ(own, q.value(i, at) * q.factor(i));
        }
        if (std::isnan(own_mask) || i.channel % 4 != 0) return;
        double sum = 0, slope = 0;
        for (Column j = i; j.channel < i.channel + 4; ++j.channel) {
          j.place = i.place + j.channel - i.channel;
          sum += q.grad_columns[j.place] * q.value(j, at);
          slope += q.grad_columns[j.place] * q.factor(j) * q.value(j, at, 2);
        }
        ++gradients;
        EXPECT_EQ(own_mask, sum);
        EXPECT_EQ(offset[q.offset_place(i, 1)], slope);
      });
      EXPECT_GT(count, 500);
      EXPECT_GT(gradients, 100);
    }
}

// Sums of fixed-point numbers are the same to the bit, whatever is added first; those of atomics in float32 are close.
TEST_F(CudaTest, DeterministicDeform) {
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    Runner own;
    DeformProblem q(square(24, layout));
    std::mt19937 random(3);
    std::normal_distribution<double> normal;
    for (Tensor* t : {&q.input, &q.offset, &q.mask}) t->fill([&] { return normal(random); });
    std::generate(q.grad_columns.begin(), q.grad_columns.end(), [&] { return normal(random); });
    OnDevice<float> d(q, own);
    const auto fixed = d.gradients<FixedPoint>(0x1p40);
    d.spread(fixed);
    const auto atomic = d.gradients<float>();
    d.spread(atomic, {.same_in_every_order = false});
    const std::vector<double> expected = q.gradients().input.values, a = d.grad_input(fixed), b = d.grad_input(atomic);
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(a[i], expected[i], 2e-5);
      EXPECT_NEAR(b[i], expected[i], 2e-5);
    }
  }
}

// Numbers that need all the splits.
TYPED_TEST(DeformTypes, SplitColumns) {
  using T = TypeParam;
  using A = Acc<T>;
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    DeformProblem q(square(24, layout));
    std::mt19937 random(3);
    std::normal_distribution<double> normal;
    q.input.fill([&] { return widen(narrow<T>(static_cast<A>(normal(random)))); });
    q.mask.fill([&] { return widen(narrow<T>(static_cast<A>(normal(random)))); });
    q.offset.fill([&] { return widen(narrow<T>(static_cast<A>(normal(random)))); });
    Runner gpu;
    OnDevice<T> d(q, gpu);
    const std::vector<double> own = d.read(d.make()), expected = q.columns();
    const double u = std::is_same_v<A, double> ? 1e-15 : std::is_same_v<T, Half> ? 0x1p-20 : 0x1p-21;
    for (size_t i = 0; i < own.size(); ++i) EXPECT_NEAR(own[i], expected[i], 8 * u);
  }
}

// What T cannot hold is infinite, and not made no number by what is left of it; a scale brings it into range.
TEST_F(CudaTest, SplitColumnsOverflow) {
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast})
    for (const float scale : {1.f, 0x1p-3f}) {
      Runner own;
      DeformProblem q(square(24, layout));
      q.input.fill([] { return 60000; });
      q.mask.fill([] { return -4; });
      q.offset.fill([] { return 0; });
      OnDevice<Half> d(q, own);
      std::vector<double> expected = q.columns();
      for (double& x : expected) x *= scale;
      expect_same("column", d.read(d.make({}, own.input("scale", std::vector<float>{scale}))), expected, rounded<Half>);
    }
}

// A scale that is no number, which stands for gradients that are none, makes the result none.
TEST_F(CudaTest, FixedPointOfNoNumbers) {
  DeformProblem q(square(3, Layout::kContiguous));
  q.fill_exact(1);
  OnDevice<float> d(q, gpu);
  const auto to = d.gradients<FixedPoint>(std::numeric_limits<float>::quiet_NaN());
  d.spread(to);
  for (const double x : d.grad_input(to)) EXPECT_TRUE(std::isnan(x));
}

// A sample that is no number adds nothing; nor does one outside, even times infinity.
TEST_F(CudaTest, SamplesOutsideAddNothing) {
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast})
    for (const double where : {-1.0, -5.0, 9.0, kNotANumber}) {
      Runner own;
      DeformProblem q({1, 8, 1, 1, {4}, {1}, {4}, {0, 0}, {1}, layout, layout});
      q.input.fill([] { return 2; });
      q.mask.fill([] { return 3; });
      q.offset.fill([&] { return where; });
      std::fill(q.grad_columns.begin(), q.grad_columns.end(), std::numeric_limits<double>::infinity());
      OnDevice<float> d(q, own);
      const auto to = d.gradients<float>();
      d.spread(to);
      for (const double x : d.grad_input(to)) EXPECT_EQ(x, 0);
      const double mask = own.read(to.mask.view.data)[0], offset = own.read(to.offset.view.data)[0];
      EXPECT_TRUE(std::isnan(where) ? std::isnan(mask) : mask == 0) << mask;
      EXPECT_EQ(std::isinf(offset), where == -1) << "the slope from the right";
    }
}

template <class T>
class DeformTraffic : public CudaTest {};
using OfEachWidth = ::testing::Types<float, Half>;
TYPED_TEST_SUITE(DeformTraffic, OfEachWidth);

TYPED_TEST(DeformTraffic, Coalesced) {
  if (simt::kAddressSanitizer || simt::kThreadSanitizer) GTEST_SKIP() << "counted without sanitizers";
  using T = TypeParam;
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    const DeformCase c{2, 64, 1, 1, {32, 32}, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}, layout, layout};
    SCOPED_TRACE(c.text());
    DeformProblem q(c);
    q.fill_exact(1);
    q.offset.fill([] { return 0; });
    Runner gpu;
    OnDevice<T> d(q, gpu);
    constexpr double kSectors = 1.3, kBytes = 1.15;
    const RunOptions all{true};
    // Blocks of other taps read the same pixels, which lie in the L2 cache: up to once for each of 9.
    const bool last = layout == Layout::kChannelsLast;
    const auto expect_samples = [&] {
      gpu.expect_loads(d.in.offset.view.data, kSectors, kBytes);
      gpu.expect_loads(d.in.mask.view.data, kSectors, kBytes);
      gpu.expect_loads(d.in.input.data, last ? 1.0 : kSectors, last ? 6 : 11);
    };
    gpu.expect_stores(d.make(all).data, 1.0, kBytes);
    expect_samples();
    const auto to = d.template gradients<Acc<T>>();
    gpu.expect_loads(d.spread(to, all), 1.0, kBytes);
    expect_samples();
    gpu.expect_stores(to.offset.view.data, kSectors, kBytes);
    gpu.expect_stores(to.mask.view.data, kSectors, kBytes);
  }
}

// Few channels in an offset group: those of several taps, or offset groups, are side by side.
TEST_F(CudaTest, TrafficOfFewChannels) {
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast})
    for (const int64_t offset_groups : {1, 8}) {
      Runner own;
      DeformCase c{1,      4 * offset_groups, 1,      offset_groups, {12, 12}, {3, 3},
                   {1, 1}, {1, 1, 1, 1},      {1, 1}, layout,        layout};
      SCOPED_TRACE(c.text());
      DeformProblem q(c);
      q.fill_exact(1);
      OnDevice<float> d(q, own);
      own.expect_stores(d.make().data, 1.3, 1.3);
      own.expect_loads(d.spread(d.gradients<float>()), 1.3, 1.3);
    }
}

// Indices of more than 31 bits: between images, rows of columns, offsets and sums.
TEST_F(CudaTest, DeformOfLargeTensors) {
  constexpr int64_t kFar = (int64_t{1} << 31) + 64;
  for (const bool channels_last : {false, true}) {
    Runner own;
    const DeformProblem q({2, 8, 1, 1, {4}, {1}, {1}, {0, 0}, {1}});
    const View<float> layout{nullptr, kFar, channels_last ? 1 : 4, {{0, 0, channels_last ? 8 : 1}}};
    float* const input = own.reserve<float>("input", kFar + 32);
    const float* const offset = own.reserve<float>("offset", kFar + 4);
    float* const data = own.reserve<float>("columns", kFar + 8);
    float* const sums = own.reserve<float>("sums", kFar + 32);
    for (int i = 0; i < 32; ++i) own.write(input + kFar + i, {static_cast<float>(i)});
    for (const int64_t image : {int64_t{0}, kFar}) own.write(offset + image, std::vector<float>(4));
    own.write(sums + kFar, std::vector<float>(32));
    DeformInputs<float> in{};
    in.geometry = q.g;
    in.input = {input, layout.n, layout.c, layout.spatial};
    in.offset.view = {offset, kFar, 4, {{0, 0, 1}}};
    in.images = {0, 2};
    in.positions = {3, 4};
    cuda::make_columns(in, Columns<float>{data, 0, kFar}, Launch{own, {.same_in_every_order = false}});
    DeformGradients<float, float> to;
    to.sums = {sums, kFar, layout.c, layout.spatial[2]};
    cuda::spread_columns(in, Columns<const float>{data, 0, kFar}, to, Launch{own, {.same_in_every_order = false}});
    for (int i = 0; i < 8; ++i) {
      const int64_t place = i * layout.c + 3 * layout.spatial[2];
      EXPECT_EQ(own.read(data + kFar + i, 1)[0], place);
      EXPECT_NE(own.read(sums + kFar + place, 1)[0], 0);
    }
  }
}

}  // namespace
}  // namespace torch_ext::test
