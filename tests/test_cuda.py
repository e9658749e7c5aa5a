"""What only a GPU has: streams, graphs, atomic sums, several devices."""

from collections.abc import Iterator

import pytest
import torch

from torch_ext import which_kernel


def depthwise() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 32, 28, 28), torch.randn(32, 1, 5, 5)


def deformable() -> list[torch.Tensor]:
    """The arguments of the backward op: grad_output, input, offset, weight, mask."""
    torch.manual_seed(0)
    sizes = (2, 4, 20, 20), (2, 8, 20, 20), (2, 18, 20, 20), (4, 8, 3, 3), (2, 9, 20, 20)
    return [torch.randn(size) for size in sizes]


def deform_backward(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.ops.torch_ext.deform_conv_backward(*tensors, [1, 1], [1] * 4, [1, 1], [True] * 5)


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


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic(deterministic: None) -> None:
    tensors = deformable()
    first, *others = (deform_backward(*tensors) for _ in range(3))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(other, first, strict=True))
    expected = deform_backward(*(t.cpu().double() for t in tensors))
    for a, b in zip(first, expected, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["grad_output", "weight", "mask"])
def test_deterministic_sums_of_no_numbers(deterministic: None, name: str, special: float) -> None:
    """Fixed-point numbers cannot hold them: then the gradient of the input has no number at all."""
    tensors = deformable()
    tensors[{"grad_output": 0, "weight": 3, "mask": 4}[name]].view(-1)[100] = special
    assert deform_backward(*tensors)[0].isnan().all()


def test_devices_must_be_one() -> None:
    input, weight = depthwise()
    with pytest.raises(RuntimeError, match=r"input device \(cuda:0\) and weight device \(cpu\) should be the same"):
        torch.ops.torch_ext.depthwise_conv2d(input, weight.cpu())
