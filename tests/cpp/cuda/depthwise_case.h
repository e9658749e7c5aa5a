#pragma once

#include "conv_case.h"
#include "cuda/kernels/depthwise.cuh"
#include "sanitizers.h"

// A depthwise convolution, every pass, against the loop nest.
namespace torch_ext::test {

template <class T>
void run_forward(ConvProblem<T>* p) {
  cuda::depthwise_forward<T>(p->g, p->device_input.input(), p->device_weight.input(), p->device_bias, p->output.view(),
                             p->multiprocessors, p->launch());
}

template <class T>
void run_grad_input(ConvProblem<T>* p) {
  cuda::depthwise_grad_input<T>(p->g, p->device_grad_output.input(), p->device_weight.input(), p->grad_input.view(),
                                p->multiprocessors, p->launch());
}

// `launch` of the first step; the second is run as ever.
template <class T, class Launch>
void run_grad_weight(ConvProblem<T>* p, const Launch& launch) {
  const cuda::DepthwiseGradWeight<T> plan(p->g, p->device_grad_output.input(), p->device_input.input(),
                                          p->multiprocessors);
  auto* workspace = p->gpu.template output<Acc<T>>("workspace", plan.workspace_bytes() / sizeof(Acc<T>));
  plan.run(workspace, p->grad_weight.view(), launch);
}

template <class T>
void check_depthwise(const ConvCase& c) {
  SCOPED_TRACE(c.text());
  ConvProblem<T> p(c);
  run_forward(&p);
  p.output.expect(p.gpu, p.expected_output(), "output");
  run_grad_input(&p);
  p.grad_input.expect(p.gpu, p.expected_grad_input(), "grad_input");
  run_grad_weight(&p, p.launch());
  p.grad_weight.expect(p.gpu, p.expected_grad_weight(), "grad_weight");
}

// Cases take turns in types; under sanitizers, which take long, only some run.
class DepthwiseCuda : public CudaTest {
 protected:
  void check(const ConvCase& c) {
    const int i = count_++;
    if ((simt::kThreadSanitizer && i % 10 != 0) || (simt::kAddressSanitizer && i % 4 != 0)) return;
    switch ((i + i / 4) % 4) {
      case 0:
        return check_depthwise<float>(c);
      case 1:
        return check_depthwise<Half>(c);
      case 2:
        return check_depthwise<BFloat16>(c);
      default:
        return check_depthwise<double>(c);
    }
  }

 private:
  int count_ = 0;
};

}  // namespace torch_ext::test
