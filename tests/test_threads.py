"""Results do not depend on how many threads take part, and more than one does."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from torch_ext import testing

# batch, groups, inputs and outputs of a group; size, kernel, stride, dilation, padding
GEOMETRIES = {
    "few channels, large image": ((1, 3, 1, 1), (150, 170), (5, 5), 1, 1, 2),
    "many channels": ((2, 72, 1, 1), (14, 14), (3, 3), 1, 1, 1),
    "stride": ((3, 17, 1, 1), (23, 31), (3, 3), 2, 1, 1),
    "multiplier and dilation": ((2, 9, 1, 3), (20, 21), (3, 3), 1, 2, 2),
    "kernel wider than the image": ((2, 40, 1, 1), (7, 7), (13, 13), 1, 1, 6),
    "one dimension": ((2, 33, 1, 1), (500,), (31,), 1, 1, 15),
    "three dimensions": ((2, 12, 1, 1), (6, 15, 17), (3, 3, 3), 1, 1, 1),
    "groups that share vectors": ((2, 32, 4, 4), (20, 19), (3, 3), 1, 1, 1),
    "groups that fill vectors": ((1, 3, 15, 64), (9, 9), (7, 7), 1, 1, 3),
}


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def passes(name: str, dtype: torch.dtype, layout: str = "contiguous") -> list[torch.Tensor]:
    """Forward and the three gradients, by the core ops."""
    (batch, groups, inputs, outputs), size, kernel, stride, dilation, padding = GEOMETRIES[name]
    n = len(size)
    generator = torch.Generator().manual_seed(0)
    input = testing.LAYOUTS[layout](torch.randn(batch, groups * inputs, *size, generator=generator).to(dtype))
    weight = torch.randn(groups * outputs, inputs, *kernel, generator=generator).to(dtype)
    bias = torch.randn(groups * outputs, generator=generator).to(dtype)
    numbers = [stride] * n, [padding] * (2 * n), [dilation] * n, groups
    output = torch.ops.torch_ext.conv(input, weight, bias, *numbers)
    return [output, *torch.ops.torch_ext.conv_backward(output, input, weight, *numbers, [True] * 3)]


# 'avx512' hands some calls to PyTorch, which does not promise this.
@pytest.mark.parametrize("isa", [isa for isa in testing.isas() if isa != "avx512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_bit_equal_for_any_number_of_threads(name: str, layout: str, dtype: torch.dtype, isa: str) -> None:
    with testing.isa(isa):
        torch.set_num_threads(1)
        expected = passes(name, dtype, layout)
        assert all(tensor.isfinite().all() and tensor.any() for tensor in expected)
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for actual, result in zip(passes(name, dtype, layout), expected, strict=True):
                assert torch.equal(actual, result)


@pytest.mark.parametrize("isa", [isa for isa in testing.isas() if isa != "avx512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(3, 17, 40, 40), (1, 8, 300, 250), (2, 8, 5, 24, 24), (2, 9, 3000)])
def test_separable_is_bit_equal_for_any_number_of_threads(
    size: tuple[int, ...], layout: str, dtype: torch.dtype, isa: str
) -> None:
    """Of several strips, and of several pieces in backward."""
    n, channels, generator = len(size) - 2, size[1], torch.Generator().manual_seed(0)
    make = lambda *size: torch.randn(*size, generator=generator).to(dtype)  # noqa: E731
    input = testing.LAYOUTS[layout](make(*size))
    factors = input, make(2 * channels, 1, *(3,) * n), make(20, 2 * channels, *(1,) * n)
    numbers = [1] * n, [1] * (2 * n), [1] * n

    def all_passes() -> list[torch.Tensor]:
        output = torch.ops.torch_ext.separable_conv(*factors, make(20), *numbers)
        return [output, *torch.ops.torch_ext.separable_conv_backward(output, *factors, *numbers, [True] * 4)]

    with testing.isa(isa):
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            generator.manual_seed(1)
            results.append(all_passes())
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_called_from_several_threads_at_once() -> None:
    """Each has scratch of its own."""
    calls = [*GEOMETRIES] * 4
    expected = {name: passes(name, torch.float32) for name in GEOMETRIES}
    with ThreadPoolExecutor(4) as pool:
        for name, results in zip(calls, pool.map(passes, calls, [torch.float32] * len(calls)), strict=True):
            for actual, result in zip(results, expected[name], strict=True):
                assert torch.equal(actual, result), name


def cpu_time_of_threads() -> dict[str, int]:
    """Clock ticks that each thread of this process has run."""
    ticks = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        ticks[task] = int(fields[11]) + int(fields[12])
    return ticks


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU: nothing can run in parallel")
@pytest.mark.parametrize("output", ["forward", "grad_input", "grad_weight"])
def test_kernels_run_on_two_threads(output: str) -> None:
    """Without -fopenmp at build time at::parallel_for is serial, and nothing else would tell."""
    torch.set_num_threads(2)
    input, weight = torch.randn(8, 64, 56, 56), torch.randn(64, 1, 7, 7)
    numbers = [1, 1], [3] * 4, [1, 1], 64
    before = cpu_time_of_threads()
    for _ in range(60):
        if output == "forward":
            torch.ops.torch_ext.conv(input, weight, None, *numbers)
        else:
            mask = [output == "grad_input", output == "grad_weight", False]
            torch.ops.torch_ext.conv_backward(input, input, weight, *numbers, mask)
    worked = [ticks - before.get(task, 0) for task, ticks in cpu_time_of_threads().items()]
    busy = sorted(worked)[-2:]
    assert busy[0] > 0.3 * busy[1], worked
