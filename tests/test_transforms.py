"""Our ops under torch.compile, compiled autograd, autocast and activation checkpointing."""

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torch_ext


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        torch_ext.nn.Conv2d(3, 8, 3, stride=2, padding="same"),
        nn.ReLU(),
        torch_ext.nn.DepthwiseConv2d(8, 3, padding=1, depth_multiplier=2),
        torch_ext.nn.SeparableConv2d(16, 8, 5, padding=((1, 2), (2, 2)), dilation=1),
        torch_ext.nn.Conv2d(8, 8, 3, groups=4, padding=2, dilation=2),
    )


def run(model: nn.Module, input: Tensor) -> list[Tensor]:
    """Output and all gradients."""
    input = input.detach().requires_grad_()
    output = model(input)
    return [output, *torch.autograd.grad(output.square().mean(), [input, *network_parameters(model)])]


def network_parameters(model: nn.Module) -> list[Tensor]:
    return list(model.parameters())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_compile(backend: str, channels_last: bool) -> None:
    torch._dynamo.reset()
    model = network()
    input = torch.randn(2, 3, 14, 12)
    if channels_last:
        model, input = model.to(memory_format=torch.channels_last), input.to(memory_format=torch.channels_last)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for actual, expected in zip(run(compiled, input), run(model, input), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        if backend == "aot_eager":  # Inductor may choose the format of dense layers
            assert actual.stride() == expected.stride()


def test_compile_does_not_recompile_for_a_batch_size() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model = network()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for batch, size in [(2, 14), (3, 14), (5, 17), (4, 20)]:
        input = torch.randn(batch, 3, size, size)
        torch.testing.assert_close(compiled(input), model(input), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


def test_compiled_autograd() -> None:
    torch._dynamo.reset()
    model, input = network(), torch.randn(2, 3, 14, 12)
    expected = run(model, input)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        input = input.detach().requires_grad_()
        model(input).square().mean().backward()
    actual = [input.grad, *(parameter.grad for parameter in model.parameters())]
    for gradient, reference in zip(actual, expected[1:], strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", ["depthwise_conv2d", "group_conv2d", "depthwise_conv_transpose2d", "separable_conv2d"])
def test_autocast(op: str, dtype: torch.dtype) -> None:
    """Everything is cast to the autocast dtype, whatever comes in; gradients come back in the dtype of their tensor."""
    function = getattr(torch_ext, op)
    input = torch.randn(2, 4, 6, 5)
    weights = [torch.randn(4, 4, 3, 3) if op == "group_conv2d" else torch.randn(4, 1, 3, 3)]
    weights += [torch.randn(4, 4, 1, 1)] if op == "separable_conv2d" else []
    bias = torch.randn(4)
    tensors = [tensor.requires_grad_() for tensor in (input, *weights, bias)]
    with torch.autocast(torch.get_default_device().type, dtype):
        output = function(*tensors)
        mixed = function(input.to(dtype), *tensors[1:])
        with torch.autocast(torch.get_default_device().type, enabled=False):
            assert function(*tensors).dtype == torch.float32
    assert output.dtype == mixed.dtype == dtype
    torch.testing.assert_close(output, function(*(tensor.to(dtype) for tensor in tensors)), rtol=0, atol=0)
    output.float().sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in tensors)


def test_autocast_of_the_core_op() -> None:
    input, weight = torch.randn(2, 4, 6), torch.randn(4, 1, 3)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        output = torch.ops.torch_ext.conv(input, weight, torch.randn(4), [1], [1, 1], [1], 4)
    assert output.dtype == torch.bfloat16


def test_autocast_leaves_float64_alone() -> None:
    input, weight = torch.randn(2, 4, 6, dtype=torch.float64), torch.randn(4, 1, 3, dtype=torch.float64)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        assert torch_ext.depthwise_conv1d(input, weight).dtype == torch.float64


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(use_reentrant: bool) -> None:
    model, input = network(), torch.randn(2, 3, 14, 12)
    expected = run(model, input)
    input = input.requires_grad_()
    checkpoint(model, input, use_reentrant=use_reentrant).square().mean().backward()
    actual = [input.grad, *(parameter.grad for parameter in model.parameters())]
    for gradient, reference in zip(actual, expected[1:], strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


def test_inference_mode_and_no_grad() -> None:
    model, input = network(), torch.randn(2, 3, 14, 12)
    expected = model(input)
    for context in (torch.inference_mode, torch.no_grad):
        with context():
            output = model(input)
        assert output.grad_fn is None
        torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_cuda_without_cuda_kernels_says_so() -> None:
    """Fake CUDA tensors reach no kernel; the real message is behind the dispatcher's CUDA key."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key("torch_ext::conv", "CUDA")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("torch_ext::conv_backward", "CUDA")
