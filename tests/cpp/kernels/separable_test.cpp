#include "cpu/kernels/separable.h"

#include "cpu/kernels/pieces.h"

#include "kernel_case.h"
#include "rounded.h"

namespace torch_ext::test {
namespace {

using Separable = KernelTest;
INSTANTIATE_FOR_EVERY_ISA(Separable);

// By strips against both steps in float64, the first rounded to T. False where there are no strips.
template <class T>
bool check_strips(const cpu::KernelTable& table, const Case& c, int64_t outputs, bool channels_last) {
  using A = Acc<T>;
  SCOPED_TRACE(detail::text(c.text(), ", outputs ", outputs, ", channels_last ", channels_last));
  const auto& kernels = table.of<T>();
  const Geometry g = c.geometry();
  const Layout layout = channels_last ? Layout::kChannelsLast : Layout::kContiguous;
  const Sizes between{g.batch, g.out_channels, g.out[0], g.out[1], g.out[2]};
  Tensor<T> input({g.batch, g.in_channels, g.in[0], g.in[1], g.in[2]}, c.input_layout), hidden(between, layout);
  Tensor<T> weight({g.out_channels, 1, g.kernel[0], g.kernel[1], g.kernel[2]}, Layout::kContiguous);
  Tensor<T> pointwise({outputs, g.out_channels, 1, 1, 1}, Layout::kContiguous), bias({1, outputs, 1, 1, 1}, layout);
  Tensor<T> output({g.batch, outputs, g.out[0], g.out[1], g.out[2]}, layout);
  std::mt19937 random(static_cast<uint32_t>(g.in[2] * 31 + g.kernel[2] * 7 + g.in_channels));
  for (Tensor<T>* t : {&input, &weight, &pointwise, &bias}) t->fill(&random, Fill::kIntegers);

  Case second{g.batch,   g.out_channels,     outputs,  1, {g.out[0], g.out[1], g.out[2]}, {1, 1, 1},
              {1, 1, 1}, {0, 0, 0, 0, 0, 0}, {1, 1, 1}};
  const Geometry p = second.geometry();
  const auto plan = cpu::plan_separable<T>(g, p, cpu::layout(input.view()), channels_last);
  if (!plan) return false;

  const Tensor<double> first = reference(g, input, weight, static_cast<const T*>(nullptr), hidden).output;
  hidden.for_each([&](auto... i) { hidden.at(i...) = rounded<T>(first.at(i...)); });
  const Tensor<double> expected = reference(p, hidden, pointwise, bias.data.get(), output).output;

  View<T> to = output.mutable_view();
  to.c = plan->output().channel;
  to.spatial = {{0, 0, plan->output().column}};
  const auto pixels = cpu::plan_strip_pixels<T>(*plan, cpu::strip_positions(plan->strip_box(0)));
  Buffer<A> depthwise(plan->depthwise.weight_size()), panels(pixels ? pixels->weight_size() : 1);
  kernels.depthwise.pack_weight(plan->depthwise, weight.view(), depthwise.data);
  if (pixels)
    kernels.direct.pack_panels(*pixels, pointwise.view(), bias.data.get(), panels.data, {0, pixels->panels()});
  Tensor<A> wide({outputs, g.out_channels, 1, 1, 1}, Layout::kContiguous);
  wide.for_each([&](auto... i) { wide.at(i...) = static_cast<A>(to_double(pointwise.at(i...))); });
  const cpu::SeparableWeights<T> weights{depthwise.data, panels.data, *cpu::with_even_taps(p, wide.view()),
                                         bias.data.get()};
  for (int64_t strip = plan->strips() - 1; strip >= 0; --strip) {
    cpu::SeparableStrips<T> strips(*plan, kernels, input.view(), weights, to);
    std::unique_ptr<Buffer<A>> scratch;
    strips.strip(strip, [&](int64_t numbers) {
      EXPECT_LE(numbers * static_cast<int64_t>(sizeof(A)), 1 << 20);
      scratch = std::make_unique<Buffer<A>>(numbers);
      return scratch->data;
    });
  }
  expect_close(output, expected, sizeof(T) >= 4, "output");
  return true;
}

TEST_P(Separable, Strips) {
  int checked = 0;
  const auto check_types = [&](const Case& c, int64_t outputs) {
    for (const bool channels_last : {false, true}) {
      checked += check_strips<float>(table(), c, outputs, channels_last);
      checked += check_strips<double>(table(), c, outputs, channels_last);
      checked += check_strips<BFloat16>(table(), c, outputs, channels_last);
      checked += check_strips<Half>(table(), c, outputs, channels_last);
    }
  };
  for (const int64_t channels : {1, 3, 7, 8, 9, 13, 17, 58})
    for (const int64_t size : {1, 2, 5, 8, 9})
      for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kSliced}) {
        Case c = square(channels, size, 3, 1);
        c.groups = c.in_channels, c.input_layout = layout;
        c.out_channels = channels * (1 + size % 2);
        check_types(c, 1 + channels % 11);
      }
  // Many strips: of rows of a slice, of slices, and of parts of a row; kernels wider than the image, strides over them.
  for (const int64_t stride : {1, 2, 5})
    for (const int64_t kernel : {1, 2, 5, 7}) {
      const int64_t pad = kernel / 2;
      Case c{2, 12, 12, 12, {61, 60}, {kernel, kernel}, {stride, stride}, {pad, pad, pad, pad}, {1, 2}};
      check_types(c, 10);
      c.input_layout = Layout::kChannelsLast;
      check_types(c, 9);
      check_types({1, 4, 8, 4, {9, 13, 20}, {3, kernel, 3}, {1, stride, 1}, {1, 1, pad, pad, 0, 1}, {1, 1, 1}}, 5);
      check_types({1, 16, 16, 16, {5000}, {kernel}, {stride}, {pad, pad}, {1}, Layout::kChannelsLast}, 8);
      check_types({1, 16, 16, 16, {1, 3000}, {1, kernel}, {1, stride}, {0, 0, pad, 0}, {1, 1}}, 8);
    }
  EXPECT_GT(checked, 500);
}

// Every row is computed once, from all rows that it depends on. Gives the number of pieces.
int64_t check_pieces(const Geometry& g, int64_t most) {
  const cpu::Pieces pieces(g, 4, most);
  const int a = pieces.axis();
  SCOPED_TRACE(detail::text("axis ", a, ", out ", g.out[a], ", kernel ", g.kernel[a], ", stride ", g.stride[a],
                            ", dilation ", g.dilation[a], ", padding ", g.pad_before[a], ", most ", most));
  EXPECT_GE(a, 3 - g.dims);
  std::vector<int> outputs(g.batch * g.out[a]), inputs(g.batch * g.in[a]);
  const auto within = [](int64_t row, Range r) { return r.begin <= row && row < r.end; };
  for (int64_t i = 0; i < pieces.count(); ++i) {
    const cpu::Piece p = pieces.piece(i);
    EXPECT_LE(p.reach.begin, p.hidden.begin);
    EXPECT_GE(p.reach.end, p.hidden.end);
    EXPECT_GE(cpu::part_of(g, p.images, a, p.source, p.hidden).pad_before[a], 0);
    EXPECT_TRUE(cpu::size(p.target) <= 0 || cpu::part_of(g, p.images, a, p.target, p.reach).pad_before[a] >= 0);
    for (int64_t n = p.images.begin; n < p.images.end; ++n) {
      for (int64_t row = p.hidden.begin; row < p.hidden.end; ++row) ++outputs[n * g.out[a] + row];
      for (int64_t row = p.target.begin; row < p.target.end; ++row) ++inputs[n * g.in[a] + row];
    }
    for (int64_t out = 0; out < g.out[a]; ++out)
      for (int64_t tap = 0; tap < g.kernel[a]; ++tap) {
        const int64_t in = out * g.stride[a] + tap * g.dilation[a] - g.pad_before[a];
        if (in < 0 || in >= g.in[a]) continue;
        EXPECT_TRUE(!within(out, p.hidden) || within(in, p.source)) << out << " " << in;
        EXPECT_TRUE(!within(in, p.target) || within(out, p.reach)) << out << " " << in;
      }
  }
  EXPECT_EQ(std::count(outputs.begin(), outputs.end(), 1), std::ssize(outputs));
  EXPECT_EQ(std::count(inputs.begin(), inputs.end(), 1), std::ssize(inputs));
  return pieces.count();
}

TEST(SeparablePieces, EveryRowOnce) {
  int cut = 0;
  for (int64_t kernel : {1, 2, 3, 7})
    for (int64_t stride : {1, 2, 3, 5})
      for (int64_t dilation : {1, 2})
        for (int64_t before : {0, 1, 6, 20})
          for (int64_t after : {0, 2}) {
            const int64_t b = before, d = dilation, k = kernel, s = stride;
            const Case tall{2, 4, 4, 4, {61, 30}, {k, k}, {s, s}, {b, after, b, after}, {d, d}};
            const Case wide{1, 4, 8, 4, {9, 20, 60}, {1, 2, k}, {1, 1, s}, {0, 1, 0, 1, b, after}, {1, 1, d}};
            for (const Case& c : {tall, wide})
              for (int64_t most : {1, 1000, 10000, 1 << 20}) cut += check_pieces(c.geometry(), most) > c.batch;
          }
  EXPECT_GT(cut, 300);
  for (int64_t size : {1, 2, 3}) {
    check_pieces(Case{2, 4, 4, 4, {size}, {1}, {1}, {0, 0}, {1}}.geometry(), 4);
    check_pieces(Case{2, 4, 4, 4, {2, size}, {1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}}.geometry(), 4);
  }
}

}  // namespace
}  // namespace torch_ext::test
