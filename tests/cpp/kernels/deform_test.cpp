#include "cpu/kernels/deform_plan.h"

#include "kernel_case.h"
#include "rounded.h"

// The parts of deformable convolution: samples, columns, and what is spread from the columns' gradient.
namespace torch_ext::test {
namespace {

using Deform = KernelTest;
INSTANTIATE_FOR_EVERY_ISA(Deform);

using DeformCase = DeformGeometry<int64_t>;

// The value between pixels, and its slope along an axis, of an image in float64; as the header says.
template <class T>
double value_at(const DeformCase& g, const Tensor<T>& input, int64_t n, int64_t c, const double* at, int slope) {
  double sum = 0;
  bool outside = false;
  for (int a = 0; a < 3; ++a) {
    if (std::isnan(at[a])) return at[a];
    outside |= at[a] < -1 || at[a] >= static_cast<double>(g.conv.in[a]) || (slope < 0 && at[a] == -1);
  }
  if (outside) return 0;
  for (int k = 0; k < 8; ++k) {
    double weight = 1;
    int64_t i[3];
    bool exists = true;
    for (int a = 0; a < 3; ++a) {
      const int high = k >> a & 1;
      const double low = std::floor(at[a]), fraction = at[a] - low;
      i[a] = static_cast<int64_t>(low) + high;
      exists &= i[a] >= 0 && i[a] < g.conv.in[a];
      weight *= a == slope ? (high ? 1 : -1) : high ? fraction : 1 - fraction;
    }
    if (exists && weight != 0) sum += weight * to_double(input.at(n, c, i[0], i[1], i[2]));
  }
  return sum;
}

// All kernels on one problem, in blocks of some positions and taps. T: of input, O: of offset and mask.
template <class T, class O>
void check_deform(const cpu::KernelTable& table, const Case& c, int64_t offset_groups, bool has_mask, int64_t tile) {
  using A = Acc<T>;
  SCOPED_TRACE(detail::text(c.text(), ", offset groups ", offset_groups, ", mask ", has_mask, ", tile ", tile));
  const DeformCase g{c.geometry(), offset_groups};
  const int dims = g.conv.dims;
  const int64_t corners = int64_t{1} << dims, channels = g.conv.in_channels, per_group = channels / offset_groups;
  const int64_t bytes = cpu::sample_bytes(dims, sizeof(A)), pitch = channels;
  const auto& kernels = table.of<T>().deform;
  const auto& sampling = table.of<O>().deform;
  std::mt19937 random(static_cast<uint32_t>(g.conv.in[2] * 31 + g.conv.kernel[2] * 7 + channels));

  Tensor<T> input({g.conv.batch, channels, g.conv.in[0], g.conv.in[1], g.conv.in[2]}, c.input_layout);
  const auto of_outputs = [&](int64_t count) {
    return Tensor<O>({g.conv.batch, count, g.conv.out[0], g.conv.out[1], g.conv.out[2]}, c.output_layout);
  };
  Tensor<O> offset = of_outputs(dims * offset_groups * g.taps()), mask = of_outputs(offset_groups * g.taps());
  Tensor<O> grad_offset = of_outputs(offset.sizes[1]), grad_mask = of_outputs(mask.sizes[1]);
  input.fill(&random, Fill::kIntegers);
  mask.fill(&random, Fill::kIntegers);
  std::uniform_int_distribution<int> quarter(-14, 14);
  offset.for_each([&](auto... i) { offset.at(i...) = from_double<O>(quarter(random) / 4.0); });
  offset.at(0, 0, 0, 0, 0) = nan_of<O>();

  for (int64_t n = 0; n < g.conv.batch; ++n) {
    const int64_t pixels = g.conv.in[0] * g.conv.in[1] * g.conv.in[2];
    Buffer<A> image(pixels * pitch), grad_image(pixels * pitch + 8);
    kernels.pack_positions(input.view(), g.conv.in, n, channels, {pixels / 2, pixels}, image.data + pixels / 2 * pitch,
                           pitch);
    kernels.pack_positions(input.view(), g.conv.in, n, channels, {0, pixels / 2}, image.data, pitch);
    std::fill_n(grad_image.data, pixels * pitch, A(0));
    std::vector<double> to_image(pixels * channels);

    for (int64_t first = 0; first < g.positions(); first += tile)
      for (int64_t tap = 0; tap < g.taps(); tap += 2) {
        const cpu::SampledPart part{
            n, {first, std::min(first + tile, g.positions())}, {tap, std::min(tap + 2, g.taps())}};
        for (int64_t group = 0; group < offset_groups; ++group) {
          std::vector<std::byte> samples(part.samples() * bytes);
          for (const Range half : {Range{(part.positions.begin + part.positions.end) / 2, part.positions.end},
                                   Range{part.positions.begin, (part.positions.begin + part.positions.end) / 2}}) {
            sampling.sample(g, offset.view(), part, group, half, samples.data());
            if (has_mask) sampling.modulate(g, mask.view(), part, group, half, samples.data());
          }
          Buffer<A> columns(part.samples() * per_group), gradient(part.samples() * per_group);
          Buffer<A> dots(part.samples() * corners);
          const A* const from = image.data + group * per_group;
          table.of<A>().deform.make_columns(dims, samples.data(), part.samples(), from, pitch, per_group, columns.data,
                                            per_group);
          std::uniform_int_distribution<int> integer(-4, 4);
          for (int64_t i = 0; i < part.samples() * per_group; ++i) gradient.data[i] = static_cast<A>(integer(random));
          table.of<A>().deform.spread_columns(dims, samples.data(), part.samples(), from, pitch, per_group,
                                              gradient.data, per_group, grad_image.data + group * per_group, pitch,
                                              dots.data);
          sampling.grad_offset(g, samples.data(), dots.data, part, group, part.positions, grad_offset.mutable_view());
          sampling.grad_mask(g, samples.data(), dots.data, part, group, part.positions, grad_mask.mutable_view());

          for (int64_t p = part.positions.begin; p < part.positions.end; ++p)
            for (int64_t t = part.taps.begin; t < part.taps.end; ++t) {
              const int64_t o[3] = {p / g.conv.out[2] / g.conv.out[1], p / g.conv.out[2] % g.conv.out[1],
                                    p % g.conv.out[2]};
              const int64_t k[3] = {t / g.conv.kernel[2] / g.conv.kernel[1], t / g.conv.kernel[2] % g.conv.kernel[1],
                                    t % g.conv.kernel[2]};
              double at[3];
              for (int a = 0; a < 3; ++a) {
                at[a] = static_cast<double>(o[a] * g.conv.stride[a] + k[a] * g.conv.dilation[a] - g.conv.pad_before[a]);
                if (a >= 3 - dims)
                  at[a] += to_double(offset.at(n, (group * g.taps() + t) * dims + a - (3 - dims), o[0], o[1], o[2]));
              }
              const double factor = has_mask ? to_double(mask.at(n, group * g.taps() + t, o[0], o[1], o[2])) : 1;
              const int64_t index = (p - part.positions.begin) * cpu::size(part.taps) + t - part.taps.begin;
              double slopes[3] = {}, to_mask = 0;
              bool is_nan = false;
              for (int64_t ch = 0; ch < per_group; ++ch) {
                const double value = value_at(g, input, n, group * per_group + ch, at, -1);
                const double column = columns.data[index * per_group + ch];
                is_nan = std::isnan(value);
                EXPECT_TRUE(is_nan ? std::isnan(column) : column == value * factor) << column << " " << value * factor;
                const double go = gradient.data[index * per_group + ch];
                to_mask += go * value;
                for (int a = 3 - dims; a < 3; ++a)
                  slopes[a] += go * factor * value_at(g, input, n, group * per_group + ch, at, a);
                for (int64_t pixel = 0; pixel < pixels && !is_nan; ++pixel) {
                  const int64_t i[3] = {pixel / g.conv.in[2] / g.conv.in[1], pixel / g.conv.in[2] % g.conv.in[1],
                                        pixel % g.conv.in[2]};
                  double weight = 1;
                  for (int a = 0; a < 3; ++a) weight *= std::max(0.0, 1 - std::abs(at[a] - static_cast<double>(i[a])));
                  to_image[pixel * channels + group * per_group + ch] += weight * go * factor;
                }
              }
              const double own_mask = to_double(grad_mask.at(n, group * g.taps() + t, o[0], o[1], o[2]));
              EXPECT_TRUE(is_nan ? std::isnan(own_mask) : own_mask == to_double(rounded<O>(to_mask)));
              for (int a = 3 - dims; a < 3; ++a) {
                const double own =
                    to_double(grad_offset.at(n, (group * g.taps() + t) * dims + a - (3 - dims), o[0], o[1], o[2]));
                EXPECT_TRUE(is_nan ? std::isnan(own) : own == to_double(rounded<O>(slopes[a])))
                    << own << " " << slopes[a];
              }
            }
        }
      }
    // Back to the input's layout, rounded once.
    kernels.unpack_positions(grad_image.data, pitch, g.conv.in, n, channels, {0, pixels}, input.mutable_view());
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      for (int64_t ch = 0; ch < channels; ++ch)
        EXPECT_EQ(to_double(input.at(n, ch, pixel / g.conv.in[2] / g.conv.in[1], pixel / g.conv.in[2] % g.conv.in[1],
                                     pixel % g.conv.in[2])),
                  to_double(rounded<T>(to_image[pixel * channels + ch])));
  }
}

TEST_P(Deform, EveryPart) {
  for (const int64_t channels : {1, 3, 7, 8, 9, 13, 17, 58})
    for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kSliced}) {
      Case c{2, channels, channels, 1, {4, 5}, {3, 2}, {1, 1}, {1, 1, 0, 1}, {1, 1}};
      c.input_layout = c.output_layout = layout;
      check_deform<float, float>(table(), c, 1, true, 7);
      check_deform<double, double>(table(), c, 1, false, 100);
      check_deform<BFloat16, float>(table(), c, 1, true, 5);
      check_deform<Half, Half>(table(), c, channels, true, 100);
      check_deform<BFloat16, BFloat16>(table(), c, channels, false, 3);
    }
  for (const int64_t width : {1, 2, 5, 9}) {
    check_deform<float, float>(table(), {1, 6, 6, 1, {width}, {5}, {2}, {4, 3}, {1}}, 2, true, 2);
    check_deform<double, double>(
        table(), {1, 6, 6, 1, {3, 2, width}, {2, 1, 3}, {1, 3, 2}, {1, 1, 0, 2, 2, 2}, {1, 2, 1}}, 3, true, 4);
    check_deform<float, float>(
        table(), {1, 9, 9, 1, {2, 3, width}, {1, 2, 2}, {1, 1, 1}, {0, 0, 1, 0, 1, 1}, {1, 1, 1}}, 1, false, 5);
  }
}

TEST(DeformPlans, RunsAndTiles) {
  for (const int64_t channels : {1, 12, 64})
    for (const int64_t groups : {int64_t{1}, std::min<int64_t>(channels, 3), channels})
      for (const int64_t offset_groups : {int64_t{1}, std::min<int64_t>(channels, 4), channels}) {
        if (channels % groups != 0) continue;
        const Case c{1, channels, channels, groups, {70, 90}, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}};
        const DeformCase g{c.geometry(), offset_groups};
        int64_t next = 0;
        for (const cpu::ChannelRun& run : cpu::channel_runs(g, 16)) {
          EXPECT_EQ(run.channels.begin, next);
          EXPECT_LE(cpu::size(run.channels), 16);
          for (int64_t i = run.channels.begin; i < run.channels.end; ++i) {
            EXPECT_EQ(i / (channels / offset_groups), run.offset_group);
            EXPECT_EQ(i / (channels / groups), run.group);
          }
          next = run.channels.end;
        }
        EXPECT_EQ(next, channels);
        for (const int64_t bytes : {1, 1000, 1 << 20, 1 << 30}) {
          const cpu::DeformTile tile = cpu::deform_tile(g, 100, 300, bytes);
          EXPECT_LE(100 * tile.samples() + 300 * tile.positions, std::max<int64_t>(bytes, 400));
          EXPECT_TRUE(tile.taps >= 1 && tile.taps <= g.taps());
          EXPECT_TRUE(tile.positions >= 1 && tile.positions <= g.positions());
        }
      }
  // A large kernel: some of its taps at a time.
  const Case c{1, 8, 8, 1, {300, 300}, {255, 255}, {1, 1}, {0, 0, 0, 0}, {1, 1}};
  const cpu::DeformTile tile = cpu::deform_tile({c.geometry(), 1}, 64, 128, 1 << 20);
  EXPECT_GT(tile.taps, 1);
  EXPECT_LT(tile.taps, 255 * 255);
}

}  // namespace
}  // namespace torch_ext::test
