"""On a GPU: every case against the reference in float64, derivatives, streams, graphs, determinism."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from torch_ext import testing, which_kernel

pytestmark = pytest.mark.skipif(
    "cuda" not in testing.devices(), reason="no GPU is visible, or this build of torch_ext is for the CPU alone"
)
every_case = pytest.mark.parametrize("case", testing.CASES, ids=lambda case: case.name)


@every_case
@pytest.mark.parametrize("dtype", testing.dtypes, ids=lambda dtype: str(dtype)[6:])
def test_forward(case: testing.Case, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    output = case.function(*case.tensors(dtype, "cuda"))
    assert output.is_cuda and output.dtype == dtype
    assert output.stride() == case.function(*tensors).stride()
    testing.assert_close(output.cpu(), case.expected(*tensors))


@every_case
def test_gradients(case: testing.Case) -> None:
    tensors = case.tensors(torch.float64, "cuda", requires_grad=True)
    given = [t for t in tensors if t is not None]

    def function(*given: torch.Tensor) -> torch.Tensor:
        left = iter(given)
        return case.function(*(t if t is None else next(left) for t in tensors))

    # Sums of atomic additions differ in their last bits.
    assert gradcheck(function, given, check_forward_ad=True, nondet_tol=1e-10, fast_mode=True)
    assert gradgradcheck(function, given, nondet_tol=1e-10, fast_mode=True)


@every_case
@pytest.mark.parametrize("dtype", testing.dtypes, ids=lambda dtype: str(dtype)[6:])
def test_gradients_are_those_of_the_cpu(case: testing.Case, dtype: torch.dtype) -> None:
    results = []
    for device in ("cpu", "cuda"):
        leaves = case.tensors(dtype, device, requires_grad=True)
        if device == "cpu":
            leaves = [None if t is None else t.detach().double().requires_grad_() for t in leaves]
        output = case.function(*leaves)
        given = [t for t in leaves if t is not None]
        results.append(torch.autograd.grad(output, given, torch.ones_like(output)))
    for ours, expected in zip(results[1], results[0], strict=True):
        testing.assert_close(ours.cpu(), expected)


def depthwise(device: str = "cuda") -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 32, 28, 28).to(device), torch.randn(32, 1, 5, 5).to(device)


def test_which_kernel() -> None:
    input, weight = depthwise()
    assert which_kernel("depthwise_conv2d", input, weight) == "depthwise/cuda"
    assert which_kernel("group_conv2d", input, weight.expand(32, 4, 5, 5), groups=8) == "direct/cuda"
    assert which_kernel("group_conv2d", input, weight.expand(32, 32, 5, 5)) == "aten::convolution"


def test_current_stream() -> None:
    """What runs on another stream waits for nothing on the default one."""
    input, weight = depthwise()
    expected = torch.ops.torch_ext.depthwise_conv2d(input, weight)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = torch.ops.torch_ext.depthwise_conv2d(input, weight)
    stream.synchronize()
    assert torch.equal(output, expected)


def test_graph_capture() -> None:
    input, weight = (t.requires_grad_() for t in depthwise())

    def step() -> tuple[torch.Tensor, ...]:
        output = torch.ops.torch_ext.depthwise_conv2d(input, weight, padding=[2, 2])
        return output, *torch.autograd.grad(output, (input, weight), output)

    expected = step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_deterministic() -> None:
    torch.manual_seed(0)
    tensors = torch.randn(2, 8, 20, 20), torch.randn(2, 18, 20, 20), torch.randn(4, 8, 3, 3), torch.rand(2, 9, 20, 20)
    grad_output, numbers = torch.randn(2, 4, 20, 20).cuda(), ([1, 1], [1] * 4, [1, 1])
    arguments = [t.cuda() for t in tensors]
    call = lambda: torch.ops.torch_ext.deform_conv_backward(grad_output, *arguments, *numbers, [True] * 5)  # noqa: E731
    usual = call()
    torch.use_deterministic_algorithms(True)
    try:
        results = [call() for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    for a, b in zip(results[0], usual, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_devices_must_be_one() -> None:
    input, weight = depthwise()
    with pytest.raises(RuntimeError, match=r"input device \(cuda:0\) and weight device \(cpu\) should be the same"):
        torch.ops.torch_ext.depthwise_conv2d(input, weight.cpu())
