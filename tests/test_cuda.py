"""What only a GPU has: streams, graphs, atomic sums, several devices, and its memory."""

from collections.abc import Callable

import pytest
import torch
from devices import assert_equal, assert_near
from torch import Tensor

from torch_ext import functional, testing, which_kernel

# Sizes of tensors, and the other arguments.
CALLS = {
    "depthwise_conv2d": ([(2, 32, 28, 28), (32, 1, 5, 5), (32,)], {"padding": 2}),
    "group_conv2d": ([(2, 32, 28, 28), (32, 8, 3, 3), (32,)], {"padding": 1, "groups": 4}),
    "separable_conv2d": ([(2, 32, 28, 28), (32, 1, 3, 3), (16, 32, 1, 1), (16,)], {"padding": 1}),
    "deform_conv2d": ([(2, 8, 28, 28), (2, 18, 28, 28), (12, 8, 3, 3), (12,)], {"padding": 1}),
}
every_op = pytest.mark.parametrize("op", CALLS)


def tensors_of(op: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return random(CALLS[op][0], seed, dtype)


def random(sizes: list[tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]


def step(op: str, tensors: list[Tensor], **changes: int) -> list[Tensor]:
    """Output, and the gradient of every tensor."""
    output = getattr(functional, op)(*tensors, **{**CALLS[op][1], **changes})
    return [output.detach(), *torch.autograd.grad(output, tensors, output.detach())]


def assert_agree(op: str, results: list[Tensor], expected: list[Tensor]) -> None:
    """Bit for bit where nothing is added up by atomics, nor by PyTorch."""
    agree = assert_equal if op in ("depthwise_conv2d", "group_conv2d") else assert_near
    for a, b in zip(results, expected, strict=True):
        agree(a, b, op)


def deformable() -> list[Tensor]:
    """The arguments of the backward op: grad_output, input, offset, weight, mask."""
    torch.manual_seed(0)
    sizes = (2, 4, 20, 20), (2, 8, 20, 20), (2, 18, 20, 20), (4, 8, 3, 3), (2, 9, 20, 20)
    return [torch.randn(size) for size in sizes]


def deform_backward(*tensors: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.torch_ext.deform_conv_backward(*tensors, [1, 1], [1] * 4, [1, 1], [True] * 5)


@every_op
def test_which_kernel(op: str) -> None:
    kernels = {"depthwise_conv2d": "depthwise/cuda", "group_conv2d": "direct/cuda", "deform_conv2d": "deform/cuda"}
    expected = kernels.get(op, "depthwise/cuda + aten::convolution")
    assert which_kernel(op, *tensors_of(op), **CALLS[op][1]) == expected


def test_dense_is_pytorchs() -> None:
    assert which_kernel("group_conv2d", torch.empty(2, 32, 9, 9), torch.empty(32, 32, 3, 3)) == "aten::convolution"


@pytest.mark.parametrize("op", ["depthwise_conv2d", "group_conv2d"])
@pytest.mark.parametrize("dtype", testing.dtypes, ids=lambda dtype: str(dtype)[6:])
def test_same_bits_every_time(op: str, dtype: torch.dtype) -> None:
    tensors = tensors_of(op, dtype=dtype)
    first, *others = (step(op, tensors) for _ in range(3))
    for other in others:
        assert_agree(op, other, first)


@every_op
def test_other_streams(op: str) -> None:
    """A call waits for what its own stream did before."""
    given = tensors_of(op)
    expected = step(op, given)
    late = [torch.full_like(tensor, float("nan"), requires_grad=True) for tensor in given]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # a twentieth of a second
        copy_into(late, given)
        results = step(op, late)
    torch.cuda.current_stream().wait_stream(stream)
    assert_agree(op, results, expected)


@torch.no_grad()
def copy_into(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


@every_op
def test_graph_replay(op: str) -> None:
    """With other numbers in the tensors that it was captured with."""
    static = tensors_of(op)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(op, static)  # what libraries do once is not captured
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(op, static)
    for seed in (1, 2):
        fresh = tensors_of(op, seed)
        copy_into(static, fresh)
        graph.replay()
        assert_agree(op, captured, step(op, fresh))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs are visible")
@every_op
def test_another_device_is_current(op: str) -> None:
    tensors = tensors_of(op)
    expected = step(op, tensors)
    with torch.cuda.device(1):
        results = step(op, tensors)
    assert all(result.device == tensors[0].device for result in results)
    assert_agree(op, results, expected)


def test_devices_must_be_one() -> None:
    input, weight, _ = tensors_of("depthwise_conv2d")
    with pytest.raises(RuntimeError, match=r"input device \(cuda:0\) and weight device \(cpu\) should be the same"):
        torch.ops.torch_ext.depthwise_conv2d(input, weight.cpu())


# Atomic sums


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


# Memory

LARGE = (2, 1024, 1030, 1030)  # more than 2^31 elements, and two images of fewer
LARGE_CALLS = {
    "depthwise_conv2d": ([LARGE, (1024, 1, 3, 3)], {"padding": 1}),
    "group_conv2d": ([LARGE, (1024, 4, 3, 3)], {"groups": 256}),
    "separable_conv2d": ([LARGE, (1024, 1, 3, 3), (8, 1024, 1, 1)], {"stride": 2}),
    "deform_conv2d": ([LARGE, (2, 18, 129, 129), (8, 1024, 3, 3)], {"stride": 8}),
}


@pytest.mark.parametrize("op", LARGE_CALLS)
def test_more_elements_than_32_bits_count(op: str) -> None:
    """As the images one by one."""
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 48 << 30:
        pytest.skip("less than 48 GiB of the GPU's memory are free")
    sizes, arguments = LARGE_CALLS[op]
    tensors = random(sizes, dtype=torch.bfloat16)
    results, sums = step(op, tensors, **arguments), {}
    for i in range(2):
        image = [t.detach()[i : i + 1] if t.shape[0] == 2 else t.detach() for t in tensors]
        alone = step(op, [t.requires_grad_() for t in image], **arguments)
        for j, (whole, part) in enumerate(zip(results, alone, strict=True)):
            if whole.shape[0] == 2:
                assert_near_in_place(whole[i : i + 1], part)
            else:
                sums[j] = sums.get(j, 0) + part.float()
    assert len(sums) == len(tensors) - sum(size[0] == 2 for size in sizes)
    for j, total in sums.items():
        assert_near(results[j], total)


def assert_near_in_place(actual: Tensor, expected: Tensor) -> None:
    """assert_near for 16 bit, without copies in float64."""
    limit = 2 * torch.finfo(actual.dtype).eps * expected.abs().max().item()
    assert actual.sub_(expected).abs_().max().item() <= limit


def extra_memory(call: Callable[[], list[Tensor]]) -> int:
    """What a call takes at most besides its arguments and results, in bytes."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = call()
    return torch.cuda.max_memory_allocated() - before - sum(t.untyped_storage().nbytes() for t in results)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", ["depthwise_conv2d", "group_conv2d", "deform_conv2d"])
def test_peak_memory(op: str, layout: str) -> None:
    """Sums of the weight's gradient, a share for each block; columns of 64 MiB, and what belongs to one image.

    Not of separable convolution, whose second step takes what cuDNN wants.
    """
    step(op, tensors_of(op))  # the libraries' own memory, which they keep
    size, offset = (4, 64, 200, 200), [(4, 18, 200, 200)] if op == "deform_conv2d" else []
    weight = (64, *CALLS[op][0][-2][1:]) if op != "deform_conv2d" else (64, 64, 3, 3)
    arguments = {"groups": 8} if op == "group_conv2d" else {}
    tensors = random([size, *offset, weight, (64,)])
    tensors[0] = testing.LAYOUTS[layout](tensors[0].detach()).requires_grad_()
    image, of_weight = tensors[0][0].nbytes, tensors[-2].nbytes
    blocks = 4 * torch.cuda.get_device_properties(0).multi_processor_count
    allowed = (64 << 20) + 2 * image + 8 * of_weight if op == "deform_conv2d" else (blocks + 1) * of_weight
    assert extra_memory(lambda: step(op, tensors, **arguments)) <= allowed + (1 << 20)
