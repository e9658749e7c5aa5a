#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <algorithm>
#include <type_traits>
#include <vector>

// The autograd node of a convolution, on every torch release that is served.
namespace torch_ext::ops {

// Nodes are held by intrusive_ptr since torch 2.14, by shared_ptr with a deleter of its own before.
template <class N>
auto make_node() {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, N>) {
    return c10::make_intrusive<N>();
  } else {
    return std::shared_ptr<N>(new N, [](auto* node) { deleteNode(node); });
  }
}

struct Numbers {
  std::vector<c10::SymInt> stride, padding, dilation;
  c10::SymInt groups;  // of conv
};

// What all nodes have in common: saved tensors, the numbers of the convolution, and being a pure function of these and
// of the incoming gradients (Derivative::gradients), which is what compiled autograd traces.
template <class Derivative>
struct ConvNode : torch::autograd::Node {
  std::vector<torch::autograd::SavedVariable> saved;
  Numbers numbers;

  std::string name() const override { return Derivative::name; }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    return Derivative::gradients(grads, unpack(), numbers, wanted());
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved) variable.reset_data();
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(saved, /*is_output=*/false);
    args.collect(numbers.stride);
    args.collect(numbers.padding);
    args.collect(numbers.dilation);
    args.collect(numbers.groups);
  }

  torch::autograd::variable_list apply_with_saved(const torch::autograd::variable_list& grads,
                                                  torch::dynamo::autograd::SwapSavedVariables& swap) override {
    const auto for_each = [&](const auto& visit) {
      visit(saved);
      visit(numbers.stride);
      visit(numbers.padding);
      visit(numbers.dilation);
      visit(numbers.groups);
    };
    for_each([&](auto& value) { swap.before(value); });
    torch::dynamo::autograd::PackedArgs args;
    std::vector<at::TypePtr> schema;
    const auto pack = [&]<class T>(const T& value) {
      args.pack(value);
      schema.push_back(torch::dynamo::autograd::IValuePacker<T>::packed_type());
    };
    pack(unpack());
    pack(numbers.stride);
    pack(numbers.padding);
    pack(numbers.dilation);
    pack(numbers.groups);
    pack(wanted());

    const auto edges = torch::dynamo::autograd::get_input_metadata(next_edges());
    const auto metadata = torch::dynamo::autograd::IValuePacker<std::decay_t<decltype(edges)>>::pack(edges);
    const auto& compiler = torch::dynamo::autograd::getPyCompilerInterface();
    const auto bound = compiler->bind_function(swap.get_py_compiler(), name(), apply_packed, schema,
                                               /*is_custom_function=*/true, /*is_traceable=*/true);
    auto result =
        compiler->call_function(swap.get_py_compiler(), "apply_functional", bound, grads, args.vec(), metadata);
    for_each([&](auto& value) { swap.after(value); });
    return result;
  }

 private:
  static torch::autograd::variable_list apply_packed(const torch::autograd::variable_list& grads,
                                                     const std::vector<at::IValue>& values) {
    torch::dynamo::autograd::PackedArgs args(values);
    const auto tensors = args.unpack<torch::autograd::variable_list>();
    Numbers numbers;
    numbers.stride = args.unpack<std::vector<c10::SymInt>>();
    numbers.padding = args.unpack<std::vector<c10::SymInt>>();
    numbers.dilation = args.unpack<std::vector<c10::SymInt>>();
    numbers.groups = args.unpack<c10::SymInt>();
    return Derivative::gradients(grads, tensors, numbers, args.unpack<std::vector<bool>>());
  }

  torch::autograd::variable_list unpack() const {
    torch::autograd::variable_list tensors;
    for (const auto& variable : saved) tensors.push_back(variable.unpack());
    return tensors;
  }

  std::vector<bool> wanted() const {
    std::vector<bool> result;
    for (size_t i = 0; i < num_outputs(); ++i) result.push_back(task_should_compute_output(i));
    return result;
  }
};

inline bool has_tangent(const torch::autograd::variable_list& tensors) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const at::Tensor& each) { return torch::autograd::isFwGradDefined(each); });
}

// Records the derivative of a call on these tensors if one of them needs it; else null.
template <class D>
auto record(const Numbers& numbers, const torch::autograd::variable_list& tensors, size_t saved) {
  using NodePointer = decltype(make_node<ConvNode<D>>());
  if (!torch::autograd::compute_requires_grad(tensors)) return NodePointer();
  NodePointer node = make_node<ConvNode<D>>();
  node->set_next_edges(torch::autograd::collect_next_edges(tensors));
  for (size_t i = 0; i < saved; ++i) node->saved.emplace_back(tensors[i], /*is_output=*/false);
  node->numbers = numbers;
  return node;
}

}  // namespace torch_ext::ops
