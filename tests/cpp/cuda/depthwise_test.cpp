#include "depthwise_case.h"

namespace torch_ext::test {
namespace {

constexpr Layout kLayouts[] = {
    Layout::kContiguous, Layout::kChannelsLast,       Layout::kSliced, Layout::kPitched, Layout::kShifted,
    Layout::kBatchLast,  Layout::kShiftedChannelsLast};

// Layouts in turns: both tensors contiguous, both channels_last, or any two.
void choose_layouts(int i, ConvCase* c) {
  c->input_layout = i % 3 < 2 ? kLayouts[i % 3] : kLayouts[i / 3 % 7];
  c->output_layout = i % 3 < 2 ? kLayouts[i % 3] : kLayouts[(i / 3 + i / 21) % 7];
  c->weight_layout = i % 5 == 0 ? Layout::kSliced : Layout::kContiguous;
}

TEST_F(DepthwiseCuda, ChannelsAndWidths) {
  int i = 0;
  for (int64_t channels : {1, 3, 7, 8, 9, 13, 17, 58})
    for (int64_t width : {1, 2, 3, 4, 5, 6, 7, 8, 9, 33, 70}) {
      ConvCase c = square_case(channels, 3, 3, 1);
      c.in[1] = width;
      choose_layouts(i++, &c);
      check(c);
    }
}

TEST_F(DepthwiseCuda, WholeVectorsOfChannels) {
  int i = 0;
  for (int64_t channels : {8, 16, 24, 64, 72, 136})
    for (int64_t kernel : {1, 3, 5, 7, 9}) {
      ConvCase c = square_case(channels, 9, kernel, kernel / 2);
      c.in[0] = 4 + i % 3;
      c.kernel[0] = 1 + i % 4;
      c.stride = {1 + i % 2, 1 + i / 2 % 3};
      c.input_layout = c.output_layout = Layout::kChannelsLast;
      ++i;
      check(c);
    }
}

TEST_F(DepthwiseCuda, KernelsAlsoWiderThanTheImage) {
  int i = 0;
  for (int64_t kernel : {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 17, 31})
    for (int64_t width : {4, 7, 18, 50}) {
      ConvCase c = square_case(3, 5, kernel, kernel / 2);
      c.in[1] = width;
      c.kernel[0] = simt::min<int64_t>(kernel, 5);
      c.padding[1] += i % 3;
      c.padding[2] += i % 2 * 2;
      if (i % 5 == 0) c.padding[2] = 0, c.padding[3] = kernel;
      c.bias = i % 2 == 0;
      c.batch = 1 + i % 3;
      choose_layouts(i++, &c);
      check(c);
    }
}

TEST_F(DepthwiseCuda, StridesAndDilations) {
  int i = 0;
  for (int64_t stride : {1, 2, 3, 4, 6})
    for (int64_t dilation : {1, 2, 3, 4, 9})
      for (int64_t kernel : {1, 2, 3, 5}) {
        ConvCase c = square_case(4, 20, kernel, dilation * (kernel - 1) / 2);
        c.in[0] = 6 + i % 5;
        c.kernel[0] = 1 + i % 3;
        c.stride = {1 + i % 3, stride};
        c.dilation = {1 + i / 2 % 3, dilation};
        c.padding[0] = c.padding[1] = i % 4;
        c.padding[3] += i % 3;
        if (i % 7 == 0) c.in[1] = 70;
        c.batch = 1;
        if (i % 4 == 0) c.in_channels = c.out_channels = c.groups = 16;
        choose_layouts(i++, &c);
        check(c);
      }
}

// Groups of several outputs, and of several inputs, which are the same seen from the transpose.
TEST_F(DepthwiseCuda, Multipliers) {
  int i = 0;
  for (int64_t multiplier : {2, 3})
    for (int64_t channels : {2, 5, 8, 40})
      for (int64_t width : {1, 6, 33})
        for (bool inputs : {false, true}) {
          ConvCase c = square_case(channels, 4, 3, 1);
          (inputs ? c.in_channels : c.out_channels) *= multiplier;
          c.in[1] = width;
          c.stride = {1, 1 + i % 2};
          choose_layouts(i++, &c);
          check(c);
        }
}

TEST_F(DepthwiseCuda, OneAndThreeDimensions) {
  int i = 0;
  for (int64_t kernel : {2, 3, 4, 7})
    for (int64_t channels : {3, 8, 17}) {
      for (int64_t width : {1, 9, 70, 500}) {
        ConvCase c{2, channels, channels, channels, {width}, {kernel}, {1 + i % 2}, {kernel - 1, i % 2}, {1 + i % 3}};
        c.padding[0] *= c.dilation[0];
        choose_layouts(i++, &c);
        check(c);
      }
      ConvCase c{1, channels, channels, channels, {4, 5, 6 + i % 9}, {3, 2, kernel}, {1, 1, 1}, {}, {1, 1, 1}};
      c.padding = {1, 1, 0, 1, kernel - 1, 2};
      if (i % 2) c.stride = {2, 1, 2}, c.dilation = {1, 2, 1};
      choose_layouts(i++, &c);
      check(c);
    }
}

// Tiles, where an image is not one, and several images or planes of one tile.
TEST_F(DepthwiseCuda, LargeAndSmallImages) {
  int i = 0;
  for (int64_t size : {64, 100, 131}) {
    ConvCase c = square_case(1, size, 3 + i % 3 * 2, 1);
    c.batch = 1;
    c.kernel[1] = 3;
    if (i == 1) c.stride = {2, 2};
    choose_layouts(i++ % 2 * 3, &c);
    check(c);
  }
  for (int64_t width : {449, 900}) {
    ConvCase c{1, 2, 2, 2, {3, width}, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}};
    choose_layouts(i++ * 3, &c);
    check(c);
  }
  for (int64_t size : {2, 5, 7}) {
    ConvCase c = square_case(70, size, 3, 1);
    c.batch = 9;
    check(c);
  }
}

// What only the direct kernels take: windows that fit in no shared memory, weights neither.
TEST_F(DepthwiseCuda, Direct) {
  ConvCase spread{1, 2, 2, 2, {4, 30}, {2, 3}, {1, 1}, {0, 60000, 30000, 30000}, {60000, 30000}};
  check(spread);
  spread = {1, 2, 2, 2, {3, 4, 9}, {2, 2, 2}, {1, 1, 1}, {70000, 0, 70000, 0, 3, 0}, {70000, 70000, 2}};
  check(spread);
  // A window of 2^64 numbers.
  const int64_t far = (int64_t{1} << 28) - 1;
  check({1, 1, 1, 1, {1, 1, 250}, {2, 2, 3}, {1, 1, 1}, {far, 0, far, 0, 1, 1}, {far, far, 1}});
  ConvCase sparse{1, 2, 2, 2, {5, 2000}, {3, 3}, {1, 900}, {1, 1, 0, 0}, {1, 1}};
  check(sparse);
}

TEST_F(DepthwiseCuda, DirectOfManyTaps) {
  if (simt::kAddressSanitizer || simt::kThreadSanitizer) GTEST_SKIP() << "takes long under sanitizers";
  check_depthwise<double>({1, 1, 1, 1, {10}, {12500}, {1}, {12492, 0}, {1}});
}

TEST_F(DepthwiseCuda, EmptyBatch) {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    ConvCase c = square_case(8, 5, 3, 1);
    c.batch = 0;
    c.input_layout = c.output_layout = layout;
    ConvProblem<float> p(c);
    const auto none = [](const simt::LaunchSize&, auto*, const auto&) { ADD_FAILURE() << "launched"; };
    cuda::depthwise_forward<float>(p.g, p.device_input.input(), p.device_weight.input(), p.device_bias, p.output.view(),
                                   4, none);
    cuda::depthwise_grad_input<float>(p.g, p.device_grad_output.input(), p.device_weight.input(), p.grad_input.view(),
                                      4, none);
    run_grad_weight(&p, p.launch());
    p.grad_weight.expect(p.gpu, Numbers(p.sizes.weight), "grad_weight");
  }
}

// An infinite number reaches the outputs whose taps meet it, and no other.
TEST_F(DepthwiseCuda, InfinityStaysWhereItIs) {
  for (Layout layout : {Layout::kContiguous, Layout::kChannelsLast})
    for (int64_t kernel : {3, 5, 9}) {
      ConvCase c = square_case(8, 12, kernel, 0);
      c.input_layout = c.output_layout = layout;
      c.in[1] = 40;
      c.stride[1] = 3;  // the last columns meet no tap
      ConvProblem<float> p(c);
      const Numbers expected = p.expected_grad_weight();
      std::vector<float> values = p.gpu.read(p.device_input.buffer);
      for (int64_t n = 0; n < 2; ++n)
        for (int64_t i = 0; i < 8; ++i)
          for (int64_t h = 0; h < 12; ++h)
            for (int64_t w = (p.g.out[2] - 1) * 3 + kernel; w < 40; ++w)
              values[p.device_input.place(n, i, 0, h, w)] = INFINITY;
      p.gpu.write(p.device_input.buffer, values);
      run_grad_weight(&p, p.launch());
      p.grad_weight.expect(p.gpu, expected, "grad_weight");
      run_forward(&p);
      p.output.expect(p.gpu, p.expected_output(), "output");
    }
}

}  // namespace
}  // namespace torch_ext::test
