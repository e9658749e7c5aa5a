"""Memory: what a call allocates, and that results own theirs."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import torch_ext
from torch_ext import testing


def allocated(call: Callable[[], object]) -> tuple[list[int], object]:
    """The sizes of what a call allocates from PyTorch's allocator, and its result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = call()
    events = record.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0], result


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "permuted"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_input_is_not_copied(isa: str, n: int, layout: str) -> None:
    depthwise, weight = getattr(torch_ext, f"depthwise_conv{n}d"), torch.randn(16, 1, *(3,) * n)
    for batch in (1, 16):
        input = testing.LAYOUTS[layout](torch.randn(batch, 16, *(16,) * n))
        sizes, output = allocated(lambda input=input: depthwise(input, weight, padding=1))
        sizes.remove(output.untyped_storage().nbytes())
        assert not sizes

        numbers = ([1] * n, [1] * 2 * n, [1] * n, 16, [True, False, False])
        grads = lambda: torch.ops.torch_ext.conv_backward(output, input, weight, *numbers)  # noqa: B023, E731
        sizes, gradients = allocated(grads)
        sizes.remove(gradients[0].untyped_storage().nbytes())
        assert not sizes


def test_slice_sums_do_not_grow_with_the_batch() -> None:
    weight = torch.randn(16, 1, 3, 3)
    extra = []
    for batch in (512, 2048):
        input = torch.randn(batch, 16, 16, 16)
        numbers = ([1, 1], [1] * 4, [1, 1], 16, [False, True, True])
        arguments = (input, input, weight, *numbers)
        sizes, _ = allocated(lambda arguments=arguments: torch.ops.torch_ext.conv_backward(*arguments))
        extra.append(sum(sizes))
    assert extra[0] == extra[1]
    assert extra[0] < 1 << 20


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_separable_training_keeps_no_hidden_activation(dtype: torch.dtype, channels_last: bool) -> None:
    """What a training step holds between forward and backward: less by all that lies between the two steps."""
    input, weight, pointwise = torch.randn(8, 16, 64, 64), torch.randn(64, 1, 3, 3), torch.randn(8, 64, 1, 1)
    format = torch.channels_last if channels_last else torch.contiguous_format
    tensors = [t.to(dtype=dtype, memory_format=format).requires_grad_() for t in (input, weight, pointwise)]

    def held(call: Callable[[], torch.Tensor]) -> int:
        saved = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        given = set(saved)

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = call()
        saved[output.untyped_storage().data_ptr()] = output.untyped_storage().nbytes()
        return sum(size for place, size in saved.items() if place not in given)

    def two_steps() -> torch.Tensor:
        return torch_ext.group_conv2d(torch_ext.depthwise_conv2d(tensors[0], tensors[1], padding=1), tensors[2])

    hidden = 8 * 64 * 64 * 64 * dtype.itemsize
    separable = lambda: torch_ext.separable_conv2d(*tensors, padding=1)  # noqa: E731
    assert held(two_steps) - held(separable) == hidden


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(16, 4, 64, 64), (1, 4, 320, 300), (1, 2, 100000)])
def test_separable_never_has_the_whole_hidden_activation(
    size: tuple[int, ...], dtype: torch.dtype, channels_last: bool
) -> None:
    """Of several images as of one, forward and backward have some 2 MiB of it at a time."""
    n, channels = len(size) - 2, size[1]
    layout = testing.LAYOUTS["channels_last" if channels_last else "contiguous"]
    shapes = size, (16 * channels, 1, *(3,) * n), (8, 16 * channels, *(1,) * n)
    tensors = [layout(torch.randn(shape).to(dtype)).requires_grad_() for shape in shapes]
    hidden = tensors[0].numel() * 16 * dtype.itemsize
    call = lambda: getattr(torch_ext, f"separable_conv{n}d")(*tensors, padding=1)  # noqa: E731
    output = call()
    sizes, _ = allocated(call)
    backward, _ = allocated(lambda: torch.autograd.grad(output, tensors, output))
    assert hidden > 2.5 * (2 << 20)
    assert max(sizes) <= max(output.nbytes, 2 << 20)
    assert max(backward) <= max(output.nbytes, 2.25 * (1 << 20))


def test_results_share_no_memory(isa: str) -> None:
    """Also where a view would have the right values: a kernel of one tap that is 1."""
    input, weight = torch.randn(2, 3, 5), torch.ones(3, 1, 1)
    output = torch_ext.depthwise_conv1d(input, weight)
    gradients = torch.ops.torch_ext.conv_backward(input, input, weight, [1], [0, 0], [1], 3, [True] * 3)
    assert torch.equal(output, input)
    assert torch.equal(gradients[0], input)
    places = [t.untyped_storage().data_ptr() for t in (input, weight, output, *gradients)]
    assert len(set(places)) == len(places)
    assert output.is_leaf and output._base is None


PEAK = """
import sys, torch
from torch_ext import testing
n, isa = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)

def peak(call):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    status = lambda key: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) << 10
    before = status("VmRSS:")
    result = call()
    return status("VmHWM:") - before - sum(t.nbytes for t in result if t is not None)

def calls(input, weight, padding, dilation):
    groups, dims = input.shape[1] // weight.shape[1], input.dim() - 2
    numbers = ([1] * dims, [padding] * 2 * dims, [dilation] * dims, groups)
    conv = lambda: [torch.ops.torch_ext.conv(input, weight, None, *numbers)]
    grad_output = conv()[0]
    backward = lambda i: lambda: torch.ops.torch_ext.conv_backward(
        grad_output, input, weight, *numbers, [i == 0, i == 1, i == 2])
    return {"forward": conv, "grad_input": backward(0), "grad_weight": backward(1), "grad_bias": backward(2)}

def tensor(*size):
    return torch.full(size, 0.5)

cases = {
    "batch 256": calls(tensor(256, 8, 48, 48), tensor(8, 1, 3, 3), 1, 1),
    "length 10^6": calls(tensor(1, 8, 1000000), tensor(8, 1, 3), 1, 1),
    "length 10^6, channels last": calls(tensor(1, 1000000, 8).movedim(2, 1), tensor(8, 1, 3), 1, 1),
    "kernel 255": calls(tensor(1, 8, 40, 600), tensor(8, 1, 1, 255), 0, 1),
    "kernel 255 x 255": calls(tensor(1, 8, 12, 12), tensor(8, 1, 255, 255), 127, 1),
    "kernel 31 x 31": calls(tensor(1, 8, 56, 56), tensor(8, 1, 31, 31), 15, 1),
    "dilation 1000": calls(tensor(1, 8, 16, 2100), tensor(8, 1, 3, 3), 1000, 1000),
    "wide and deep": calls(tensor(1, 512, 6, 2000), tensor(512, 1, 5, 5), 2, 1),
    "groups of 4": calls(tensor(64, 64, 28, 28), tensor(64, 4, 3, 3), 1, 1),
    "groups of 4, bfloat16": calls(tensor(64, 64, 28, 28).bfloat16(), tensor(64, 4, 3, 3).bfloat16(), 1, 1),
    "groups of 8, channels last": calls(tensor(64, 28, 28, 64).movedim(3, 1), tensor(64, 8, 3, 3), 1, 1),
    "dense, bfloat16": calls(tensor(32, 72, 28, 28).bfloat16(), tensor(40, 72, 3, 3).bfloat16(), 1, 1),
    "pointwise": calls(tensor(16, 48, 64, 64), tensor(64, 48, 1, 1), 0, 1),
    "wide channels last": calls(tensor(1, 6, 2000, 512).movedim(3, 1), tensor(512, 1, 5, 5), 2, 1),
}
with testing.isa(isa):
    tensor(1 << 20).sum()
    for call in calls(tensor(1, 8, 9, 9), tensor(8, 1, 3, 3), 1, 1).values():
        call()  # what a first call loads is not its memory
    for what, passes in cases.items():
        for name, call in passes.items():
            weight = 8 * 255 * 255 * 4 if "255 x" in what else 512 * 25 * 4 if "wide" in what else 8 * 255 * 4
            if "groups" in what or "dense" in what or "point" in what:
                weight = {"groups of 4": 64 * 36, "groups of 8": 64 * 72, "dense": 40 * 648, "pointwise": 64 * 48}[
                    what.split(",")[0]
                ] * 4 * (32 if name == "grad_weight" else 1)  # up to 64 slices have sums of their own
            # One thread's scratch, the packed weight or slice sums, and a page here and there.
            allowed = (1 << 20) + 2 * weight + (1 << 18)
            used = peak(call)
            print(what, name, used >> 10, "KiB")
            if used > allowed:
                print("TOO MUCH:", what, name, used >> 10, "KiB of", allowed >> 10)
"""


@pytest.mark.parametrize("name", [name for name in ("scalar", "avx2") if name in testing.isas()])
def test_peak_memory(name: str) -> None:
    """Scratch is at most 1 MiB a thread, however long, deep, wide or dilated the call is."""
    run = subprocess.run([sys.executable, "-c", PEAK, "1", name], capture_output=True, text=True)
    if "clear_refs" in run.stderr:
        pytest.skip("this kernel does not let a process reset its peak")
    assert run.returncode == 0, run.stderr
    assert "TOO MUCH" not in run.stdout, run.stdout
