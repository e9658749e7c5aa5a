// A C++ program without Python that uses torch_ext in both ways: it calls a function of the public header, and it runs
// a scripted model that was saved by Python.
//
//   consumer MODEL INPUT EXPECTED     MODEL from torch.jit.save; the tensors INPUT and EXPECTED from torch.save
#include <torch/script.h>
#include <torch_ext.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

namespace {

at::Tensor load_tensor(const char* path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file, "cannot read ", path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  return torch::jit::pickle_load(bytes).toTensor();
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

void call_function() {
  const at::Tensor input = at::randn({2, 4, 9, 9});
  const at::Tensor weight = at::randn({8, 1, 3, 3});
  const at::Tensor output = torch_ext::depthwise_conv2d(input, weight, {}, 2, "same");
  const at::Tensor expected = at::conv2d(input, weight, {}, {2, 2}, {1, 1}, 1, 4);
  TORCH_CHECK(largest_difference(output, expected) < 1e-5, "depthwise_conv2d differs from at::conv2d");
}

void run_model(const char* model_path, const char* input_path, const char* expected_path) {
  torch::jit::Module model = torch::jit::load(model_path);
  const at::Tensor output = model.forward({load_tensor(input_path)}).toTensor();
  const double difference = largest_difference(output, load_tensor(expected_path));
  std::cout << "largest difference from Python: " << difference << "\n";
  TORCH_CHECK(difference < 1e-5, "the scripted model's output differs from Python's");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: consumer MODEL INPUT EXPECTED\n";
    return 2;
  }
  try {
    call_function();
    run_model(argv[1], argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  std::cout << "consumer: OK\n";
}
