#include <algorithm>

#include "deform_case.h"

namespace torch_ext::test {
namespace {

using cuda::Columns;
using cuda::DeformGradients;
using cuda::DeformInputs;
using cuda::EitherView;
using cuda::InputSums;
using Fixed = unsigned long long;

// A problem on the device: some positions of some images of it.
template <class T, class O, class M>
struct OnDevice {
  using Problem = DeformProblem<T, O, M>;

  OnDevice(Problem& problem, Range images, Range positions, Runner& runner) : q(problem), gpu(runner) {
    in.geometry = q.g;
    in.input = q.input.view(gpu.input("input", q.input.values));
    in.offset = either(q.offset, gpu.input("offset", q.offset.values));
    if (q.c.has_mask) in.mask = either(q.mask, gpu.input("mask", q.mask.values));
    in.images = images;
    in.positions = positions;
    const int64_t of_group = q.g.taps() * q.g.conv.in_per_group(), all = of_group * q.c.groups;
    row = q.c.groups_in_rows ? all + q.c.gap : of_group + q.c.gap;
    group = q.c.groups_in_rows ? of_group : rows() * row;
    columns_size = q.c.groups_in_rows ? (rows() - 1) * row + all : (rows() * q.c.groups - 1) * row + of_group;
  }

  template <class V>
  static EitherView<const T> either(const Tensor<V>& t, const V* data) {
    EitherView<T> e = either(t, const_cast<V*>(data));
    return {{e.view.data, e.view.n, e.view.c, e.view.spatial}, e.is_wide};
  }
  template <class V>
  static EitherView<T> either(const Tensor<V>& t, V* data) {
    const View<V> v = t.view(data);
    return {{reinterpret_cast<T*>(v.data), v.n, v.c, v.spatial}, !std::is_same_v<V, T>};
  }

  int64_t rows() const { return (in.images.end - in.images.begin) * (in.positions.end - in.positions.begin); }

  // Calls body(image, position, tap, offset group, channel, place in columns).
  template <class Body>
  void for_columns(const Body& body) const {
    const int64_t per_group = q.g.conv.in_per_group();
    int64_t r = 0;
    for (int64_t n = in.images.begin; n < in.images.end; ++n)
      for (int64_t p = in.positions.begin; p < in.positions.end; ++p, ++r)
        for (int64_t tap = 0; tap < q.g.taps(); ++tap)
          for (int64_t ch = 0; ch < q.c.channels; ++ch)
            body(n, p, tap, ch / q.per_offset(), ch,
                 ch / per_group * group + r * row + tap * per_group + ch % per_group);
  }

  void check_columns() {
    T* const data = gpu.output<T>("columns", columns_size);
    cuda::make_columns(in, Columns<T>{data, group, row}, Launch{gpu});
    const std::vector<T> columns = gpu.read(data);
    std::vector<bool> written(columns.size());
    int wrong = 0;
    for_columns([&](int64_t n, int64_t p, int64_t tap, int64_t og, int64_t ch, int64_t place) {
      written[place] = true;
      const auto at = q.coordinates(n, p, tap, og);
      const double expected = q.value(n, ch, at) * q.factor(n, p, tap, og);
      const double own = widen(columns[place]), rounded = widen(narrow<T>(static_cast<Acc<T>>(expected)));
      if (!same(own, rounded) && ++wrong < 5)
        ADD_FAILURE() << "column of image " << n << ", position " << p << ", tap " << tap << ", channel " << ch << ": "
                      << own << ", not " << rounded;
    });
    for (size_t i = 0; i < columns.size(); ++i)
      if (!written[i]) {
        EXPECT_TRUE(std::isnan(widen(columns[i]))) << "written between rows";
      }
  }

  // From whole numbers as the columns' gradient. S: of the input's sums.
  template <class S>
  void check_spread(uint32_t seed) {
    using A = Acc<T>;
    constexpr bool kIsFixed = std::is_same_v<S, Fixed>;
    constexpr A kScale = 1 << 20;
    std::mt19937 random(seed);
    std::uniform_int_distribution<int> whole(-4, 4);
    std::vector<T> gradient(columns_size, narrow<T>(std::numeric_limits<A>::quiet_NaN()));
    for_columns([&](auto, auto, auto, auto, auto, int64_t place) { gradient[place] = narrow<T>(whole(random)); });

    const int64_t pixels = q.g.conv.in[0] * q.g.conv.in[1] * q.g.conv.in[2], all = q.c.batch * q.c.channels * pixels;
    const bool channels_first = q.c.input_layout == Layout::kContiguous;
    Tensor<O> grad_offset(q.of_outputs(q.g.conv.dims), q.c.offset_layout);
    Tensor<M> grad_mask(q.of_outputs(1), q.c.offset_layout);
    O* const to_offset = gpu.in_out("grad_offset", grad_offset.values);
    M* const to_mask = gpu.in_out("grad_mask", grad_mask.values);
    DeformGradients<T, S> to;
    to.offset = either(grad_offset, to_offset);
    if (q.c.has_mask) to.mask = either(grad_mask, to_mask);
    to.sums = {gpu.in_out("sums", std::vector<S>(all)), q.c.channels * pixels, channels_first ? pixels : 1,
               channels_first ? 1 : q.c.channels, kIsFixed ? gpu.input("scale", std::vector<A>{kScale}) : nullptr};
    const T* const from = gpu.input("gradient", gradient);
    cuda::spread_columns(in, Columns<const T>{from, group, row}, to, Launch{gpu});
    // Without what is not wanted.
    if (kIsFixed) {
      cuda::spread_columns(in, Columns<const T>{from, group, row}, DeformGradients<T, S>{{}, to.offset, {}},
                           Launch{gpu});
      to.sums.data = gpu.in_out("sums alone", std::vector<S>(all));
      cuda::spread_columns(in, Columns<const T>{from, group, row}, DeformGradients<T, S>{to.sums, {}, {}}, Launch{gpu});
    }
    grad_offset.values = gpu.read(to_offset);
    grad_mask.values = gpu.read(to_mask);
    const std::vector<S> sums = gpu.read(to.sums.data);
    Tensor<T> grad_input = q.input;
    std::fill(grad_input.values.begin(), grad_input.values.end(), T{});
    T* const to_input = gpu.in_out("grad_input", grad_input.values);
    cuda::round_sums(q.g.conv, {0, q.c.batch}, to.sums, grad_input.view(to_input), Launch{gpu});
    grad_input.values = gpu.read(to_input);

    std::vector<double> expected_sums(all), mask_sums(grad_mask.values.size()), offset_sums(grad_offset.values.size());
    std::vector<bool> mask_written(mask_sums.size()), offset_written(offset_sums.size());
    const auto place = [&](int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) {
      return n * to.sums.image + c * to.sums.channel + ((d * q.g.conv.in[1] + h) * q.g.conv.in[2] + w) * to.sums.pixel;
    };
    for_columns([&](int64_t n, int64_t p, int64_t tap, int64_t og, int64_t ch, int64_t column) {
      const auto at = q.coordinates(n, p, tap, og);
      const Sizes o = unflatten(p, q.g.conv.out);
      const double go = widen(gradient[column]), factor = q.factor(n, p, tap, og);
      if (!q.is_nan(at))
        q.for_pixels(at, -1, [&](int64_t d, int64_t h, int64_t w, double weight) {
          expected_sums[place(n, ch, d, h, w)] += weight * go * factor;
        });
      const int64_t m = grad_mask.place(n, og * q.g.taps() + tap, o[0], o[1], o[2]);
      mask_sums[m] += go * q.value(n, ch, at);
      mask_written[m] = q.c.has_mask;
      for (int a = 0; a < q.g.conv.dims; ++a) {
        const int64_t i = grad_offset.place(n, (og * q.g.taps() + tap) * q.g.conv.dims + a, o[0], o[1], o[2]);
        offset_sums[i] += go * factor * q.value(n, ch, at, 3 - q.g.conv.dims + a);
        offset_written[i] = true;
      }
    });
    const auto check = [&](const char* what, const auto& own, const auto& expected, const auto& written) {
      using V = std::decay_t<decltype(own[0])>;
      int wrong = 0;
      for (size_t i = 0; i < expected.size(); ++i) {
        const double rounded = widen(narrow<V>(static_cast<Acc<V>>(expected[i])));
        if (written[i] ? !same(widen(own[i]), rounded) : !std::isnan(widen(own[i])))
          if (++wrong < 5) ADD_FAILURE() << what << " at " << i << ": " << widen(own[i]) << ", not " << rounded;
      }
    };
    check("grad_mask", grad_mask.values, mask_sums, mask_written);
    check("grad_offset", grad_offset.values, offset_sums, offset_written);
    int wrong = 0;
    for (int64_t i = 0; i < all; ++i) {
      double sum;
      if constexpr (kIsFixed) sum = static_cast<double>(static_cast<int64_t>(sums[i])) / kScale;
      else sum = sums[i];
      if (sum != expected_sums[i] && ++wrong < 5)
        ADD_FAILURE() << "sum of the input's gradient at " << i << ": " << sum << ", not " << expected_sums[i];
    }
    q.input.for_each([&](auto... i) {
      const double own = grad_input.number(i...);
      const double rounded = widen(narrow<T>(static_cast<A>(expected_sums[place(i...)])));
      if (own != rounded && ++wrong < 5) ADD_FAILURE() << "grad_input: " << own << ", not " << rounded;
    });
  }

  Problem& q;
  Runner& gpu;
  DeformInputs<T> in{};
  int64_t group, row, columns_size;
};

// All of a problem, or, with few threads that would have nothing to do, a part of its positions and images.
template <class T, class O = T, class M = O>
void check_deform(const DeformCase& c, bool all = true) {
  SCOPED_TRACE(c.text());
  const auto seed = static_cast<uint32_t>(c.channels * 31 + c.in.back() * 7 + c.offset_groups);
  DeformProblem<T, O, M> problem(c);
  problem.fill_exact(seed);
  const int64_t positions = problem.g.positions();
  const Range some_images{all ? 0 : c.batch / 2, c.batch};
  const Range some{all ? 0 : positions / 3, all ? positions : std::max(positions / 3 + 1, positions - 1)};
  Runner gpu;
  OnDevice<T, O, M> d(problem, some_images, some, gpu);
  d.check_columns();
  d.template check_spread<Acc<T>>(seed + 1);
  d.template check_spread<Fixed>(seed + 2);
}

DeformCase square(int64_t channels, Layout layout) {
  return {2, channels, 1, 1, {4, 5}, {3, 2}, {1, 1}, {1, 1, 0, 1}, {1, 1}, layout, layout};
}

TEST_F(CudaTest, DeformOfEveryCountOfChannels) {
  for (const int64_t channels : {1, 3, 7, 8, 9, 13, 17, 58})
    for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
      DeformCase c = square(channels, layout);
      check_deform<float>(c);
      c.offset_groups = channels > 13 ? channels / (channels % 2 == 0 ? 2 : 1) : channels;
      c.gap = 3;
      check_deform<Half, float>(c, false);
    }
}

template <class T>
class DeformTypes : public CudaTest {};
using DeformElements = ::testing::Types<float, double, BFloat16, Half>;
TYPED_TEST_SUITE(DeformTypes, DeformElements);

TYPED_TEST(DeformTypes, EveryLayout) {
  using T = TypeParam;
  using Wide = Acc<T>;
  for (const Layout layout :
       {Layout::kContiguous, Layout::kChannelsLast, Layout::kPermuted, Layout::kShiftedChannelsLast})
    for (const int64_t channels : {16, 6}) {
      DeformCase c = square(channels, layout);
      check_deform<T>(c);
      c.offset_groups = 2;
      c.offset_layout = layout == Layout::kContiguous ? Layout::kChannelsLast : Layout::kContiguous;
      check_deform<T, Wide>(c, false);
      c.has_mask = false;
      check_deform<T, Wide, T>(c);
      c.has_mask = true;
      c.groups = 2;
      c.offset_groups = 1;
      check_deform<T, T, Wide>(c);
    }
}

TEST_F(CudaTest, DeformOfGroups) {
  const Sizes all[] = {{12, 3, 2},   {12, 2, 3}, {12, 12, 1}, {12, 1, 12},
                       {12, 12, 12}, {12, 4, 2}, {48, 2, 4},  {80, 5, 2}};
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast})
    for (const Sizes& s : all)
      for (const bool groups_in_rows : {false, true}) {
        DeformCase c = square(s[0], layout);
        c.groups = s[1];
        c.offset_groups = s[2];
        c.groups_in_rows = groups_in_rows;
        check_deform<float>(c, groups_in_rows);
      }
}

TEST_F(CudaTest, DeformOfEveryNumberOfDimensions) {
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast})
    for (const int64_t width : {1, 2, 3, 4, 5, 6, 7, 8, 9}) {
      check_deform<float>({3, 8, 1, 2, {width}, {5}, {2}, {4, 3}, {1}, layout, layout});
      const DeformCase planes{2, 8, 2, 1, {2, width}, {2, 3}, {3, 4}, {0, 2, 2, 1}, {2, 1}, layout, layout};
      check_deform<BFloat16>(planes);
      if (width % 3 != 0) continue;
      check_deform<double>(
          {1, 8, 1, 2, {3, 2, width}, {2, 1, 3}, {1, 3, 2}, {1, 1, 0, 2, 2, 2}, {1, 2, 1}, layout, layout});
      check_deform<Half>(
          {2, 16, 2, 1, {2, 3, width}, {1, 2, 2}, {1, 1, 1}, {0, 0, 1, 0, 1, 1}, {1, 1, 1}, layout, layout});
    }
}

// Channels that several warps, or steps of a warp, share.
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

}  // namespace
}  // namespace torch_ext::test
