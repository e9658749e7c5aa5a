"""Which kernel a call takes: the table of csrc/core/select.h, for tensors that are never read."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_ext import testing, which_kernel

OUTPUTS = ("forward", "grad_input", "grad_weight")
ATEN = "aten::convolution"
F32, F64, BF16, F16 = testing.dtypes
ISAS = testing.isas()


def meta(*size: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def depthwise(n: int, dtype: torch.dtype, output: str, c: int = 8, m: int = 1, k: int = 3, **arguments: Any) -> str:
    tensors = meta(2, c, *(9,) * n, dtype=dtype), meta(c * m, 1, *(k,) * n, dtype=dtype)
    return which_kernel(f"depthwise_conv{n}d", *tensors, output=output, **arguments)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("dtype", testing.dtypes)
def test_depthwise_is_ours(isa: str, n: int, output: str, dtype: torch.dtype) -> None:
    ours = f"depthwise/{isa}"
    for more in ({}, {"stride": 2}, {"padding": 1}, {"padding": ((1, 0),)}, {"dilation": 2}, {"k": 5}, {"m": 3}):
        assert depthwise(n, dtype, output, **more) == ours, more
    unbatched = meta(8, *(9,) * n, dtype=dtype), meta(8, 1, *(3,) * n, dtype=dtype)
    assert which_kernel(f"depthwise_conv{n}d", *unbatched, output=output) == ours
    # From one channel to one; and the same convolution seen from its transpose, one output channel a group.
    assert depthwise(n, dtype, output, c=1) == ours
    mirrored = meta(2, 6, *(9,) * n, dtype=dtype), meta(3, 2, *(3,) * n, dtype=dtype)
    assert which_kernel(f"group_conv{n}d", *mirrored, groups=3, output=output) == ours


def grouped(
    n: int,
    dtype: torch.dtype,
    output: str,
    sizes: tuple[int, int, int],
    k: int = 3,
    size: int = 9,
    wide_only: bool = False,
) -> str:
    """Of a convolution with so many groups, inputs and outputs of each; wide_only: one tap on all axes but the last."""
    groups, inputs, outputs = sizes
    kernel = (1,) * (n - 1) + (k,) if wide_only else (k,) * n
    tensors = meta(2, groups * inputs, *(size,) * n, dtype=dtype), meta(groups * outputs, inputs, *kernel, dtype=dtype)
    return which_kernel(f"group_conv{n}d", *tensors, groups=groups, output=output)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("output", OUTPUTS)
def test_groups(isa: str, n: int, output: str) -> None:
    ours = f"direct/{isa}"
    for dtype in testing.dtypes:
        for sizes in ((2, 2, 2), (4, 15, 15), (32, 4, 16), (3, 40, 8)):
            assert grouped(n, dtype, output, sizes) == ours
        assert grouped(n, dtype, output, (2, 65, 16)) == (ATEN if dtype == F32 else ours)
        assert grouped(n, F64, output, (2, 127, 16)) == ours
        assert grouped(n, F64, output, (2, 128, 16)) == ATEN
        # A row of 64 taps.
        assert grouped(n, dtype, output, (2, 65, 16), k=63, size=70, wide_only=True) == (ATEN if dtype == F32 else ours)
        assert grouped(n, dtype, output, (2, 65, 16), k=64, size=70, wide_only=True) == ours


@pytest.mark.parametrize("n", [1, 2, 3])
def test_has_kernel_agrees(n: int) -> None:
    """convert() asks for a weight alone what which_kernel says of a call."""
    for dtype in (F32, F64):
        for sizes, k in (((16, 80, 80), 128), ((16, 80, 80), 3), ((4, 4, 4), 3), ((1, 64, 64), 1), ((1, 99, 99), 1)):
            groups, inputs, outputs = sizes
            weight = meta(groups * outputs, inputs, *(1,) * (n - 1), k, dtype=dtype)
            with testing.isa("avx2" if "avx2" in ISAS else "scalar"):
                named = grouped(n, dtype, "forward", sizes, k=k, size=140 if n == 1 else 132, wide_only=True)
            assert torch.ops.torch_ext._has_kernel(weight, [1], groups) == (named != ATEN), (sizes, k)


def wide(n: int, output: str, channels: int, size: int, layout: str, groups: int = 1, k: int = 3, **more: Any) -> str:
    input = testing.LAYOUTS[layout](torch.empty(more.pop("batch", 2), groups * channels, *(size,) * n))
    weight = torch.empty(groups * channels, channels, *(k,) * n)
    return which_kernel(f"group_conv{n}d", input, weight, groups=groups, output=output, padding="same", **more)


# Dimensions, channels of a group, columns, kernel, stride, dilation; then which of forward, gradient of the input and
# of the weight are ours in contiguous tensors, and in channels_last.
GROUPS_OF_16_TO_64 = [
    ((1, 16, 14, 3, 1, 1), "fiw", "fiw"),
    ((1, 64, 14, 7, 2, 6), "fiw", "fiw"),
    ((1, 64, 13, 3, 1, 1), "", ""),
    ((2, 16, 7, 3, 1, 1), "w", "fiw"),  # RegNetX-800MF
    ((2, 16, 7, 11, 1, 1), "w", "fiw"),
    ((2, 32, 14, 3, 1, 1), "w", "fiw"),
    ((2, 32, 14, 5, 1, 1), "w", "w"),
    ((2, 33, 14, 3, 1, 1), "w", "w"),
    ((2, 48, 28, 3, 2, 1), "iw", "iw"),  # RegNetX-3.2GF
    ((2, 64, 28, 7, 2, 1), "i", "iw"),
    ((2, 64, 28, 11, 2, 1), "", "w"),
    ((2, 64, 28, 1, 2, 1), "", "w"),
    ((2, 64, 28, 3, 1, 2), "fiw", "w"),
    ((2, 64, 14, 3, 1, 6), "w", "w"),
    ((3, 16, 14, 3, 1, 1), "w", "fiw"),
    ((3, 16, 13, 3, 2, 1), "w", "w"),
    ((2, 65, 14, 3, 1, 1), "", ""),
]


@pytest.mark.parametrize(("numbers", "contiguous", "channels_last"), GROUPS_OF_16_TO_64)
def test_groups_of_16_to_64(numbers: tuple[int, ...], contiguous: str, channels_last: str) -> None:
    """Ours where PyTorch's pass is slow: benchmarks/ladder, "PyTorch's cliffs"."""
    n, channels, size, k, stride, dilation = numbers
    for layout, ours in (("contiguous", contiguous), ("channels_last", channels_last)):
        for output, letter in zip(OUTPUTS, "fiw", strict=True):
            answer = wide(n, output, channels, size, layout, groups=2, k=k, stride=stride, dilation=dilation)
            assert answer.split(" + ")[-1] == ("direct/avx2" if letter in ours else ATEN), (layout, output)


def test_outputs_of_padding_alone_are_not_pytorchs() -> None:
    """Its library dies of some."""
    sizes = (2, 64, 14, 1), (16, 64, 4, 1)
    for output in OUTPUTS:
        answer = which_kernel("group_conv2d", *map(lambda s: meta(*s), sizes), padding=(1, 2), stride=3, output=output)
        assert answer == "direct/avx2"
        assert which_kernel("group_conv2d", *map(lambda s: meta(*s), sizes), padding=(1, 2), output=output) == ATEN


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("output", OUTPUTS)
def test_dense_dilated_or_in_3d(n: int, output: str, layout: str) -> None:
    """Ours where PyTorch's pass is slow: see is_slow_dense."""
    ours, last = "direct/avx2", layout == "channels_last"
    for channels, size, stride, dilation, batch in itertools.product(
        (15, 16, 129, 256, 257), (13, 14), (1, 2), (1, 2), (1, 2)
    ):
        answer = wide(n, output, channels, size, layout, stride=stride, dilation=dilation, batch=batch)
        few = stride == 1 and channels <= 128
        slow_weight = output == "grad_weight" and (last or few or n == 3 if dilation > 1 else stride == 1)
        small = n == 3 and batch == 1 and channels == 16 and (dilation > 1 or stride == 1 or last)
        served = n > 1 and channels in (16, 129, 256) and size >= 14 and (n == 3 or dilation > 1)
        is_ours = served and (slow_weight or small)
        assert answer.split(" + ")[-1] == (ours if is_ours else ATEN), (channels, size, stride, dilation, batch)
    assert wide(n, output, 128, 14, layout, k=1, dilation=2) == ATEN


@pytest.mark.parametrize("n", [1, 2, 3])
def test_layers_that_may_be_slow_have_a_kernel(n: int) -> None:
    has_kernel = torch.ops.torch_ext._has_kernel
    kernel = (3,) * n
    assert has_kernel(meta(32, 16, *kernel), [1], 2)
    assert not has_kernel(meta(130, 65, *kernel), [1] * n, 2)
    assert has_kernel(meta(256, 16, *kernel), [1] * n, 1) == (n == 3)
    assert has_kernel(meta(256, 16, *kernel), [2], 1) == (n > 1)
    assert not has_kernel(meta(256, 15, *kernel), [2], 1)
    assert not has_kernel(meta(257, 16, *kernel), [2] * n, 1)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("output", OUTPUTS)
def test_dense(isa: str, n: int, output: str) -> None:
    ours = f"direct/{isa}"
    for dtype in testing.dtypes:
        wide = ATEN if dtype in (F32, F64) else ours
        narrow = ATEN if dtype == F64 else ours
        assert grouped(n, dtype, output, (1, 8, 4)) == wide
        assert grouped(n, dtype, output, (1, 96, 96), k=1, size=32) == wide
        for sizes in ((1, 64, 128), (1, 24, 144), (1, 96, 576)):
            assert grouped(n, dtype, output, sizes, k=1, size=32) == narrow
        # One column is one lane.
        assert grouped(n, dtype, output, (1, 64, 128), k=1, size=1) == wide
        if n == 1:
            assert grouped(n, dtype, output, (1, 64, 128), k=1, size=31) == wide
            assert grouped(n, dtype, output, (1, 64, 128), k=1, size=32) == narrow
        assert grouped(n, dtype, output, (1, 65, 128), k=1, size=32) == wide
        assert grouped(n, dtype, output, (1, 65, 390), k=1, size=32) == narrow


@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_channel_to_many_is_dense(isa: str, n: int) -> None:
    assert depthwise(n, F32, "forward", c=1, m=2) == ATEN
    assert depthwise(n, BF16, "forward", c=1, m=2) == f"direct/{isa}"


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("output", OUTPUTS)
def test_few_channels_to_many_with_a_stride_are_nearly_dense(isa: str, n: int, output: str) -> None:
    ours = depthwise(n, F64, output)
    assert depthwise(n, F32, output, c=2, m=8, stride=2) == ATEN
    assert depthwise(n, F32, output, c=3, m=9, stride=3) == ATEN
    assert depthwise(n, F32, output, c=2, m=8) == ours
    assert depthwise(n, F32, output, c=2, m=7, stride=2) == ours
    assert depthwise(n, F32, output, c=4, m=8, stride=2) == ours
    assert depthwise(n, F64, output, c=2, m=8, stride=2) == ours


@pytest.mark.parametrize("output", OUTPUTS)
def test_pytorch_takes_a_padded_copy_where_the_sides_differ(isa: str, output: str) -> None:
    def dense(**padding: object) -> str:
        return which_kernel("group_conv2d", meta(2, 65, 9, 9), meta(8, 65, 2, 2), output=output, **padding)

    assert dense(padding=1) == dense(padding=((1, 1), (2, 2))) == ATEN
    assert dense(padding=((0, 1), (2, 2))) == dense(padding="same") == f"aten::constant_pad_nd + {ATEN}"


@pytest.mark.skipif("avx512" not in ISAS, reason="this CPU has no AVX-512")
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("dtype", testing.dtypes)
def test_avx512(n: int, dtype: torch.dtype) -> None:
    ours, theirs = "depthwise/avx2", ATEN if dtype in (F32, BF16) else "depthwise/avx2"
    with testing.isa("avx512"):
        for output in OUTPUTS:
            for more in ({}, {"stride": 2}, {"padding": 1}):
                assert depthwise(n, dtype, output, **more) == theirs
            assert depthwise(n, dtype, output, padding=((1, 0),)) == ours
            assert depthwise(n, dtype, output, m=2) == ours
            assert depthwise(n, dtype, output, dilation=2) == (theirs if output == "forward" else ours)
            assert depthwise(n, dtype, output, k=4) == (ours if output == "grad_weight" else theirs)
            assert grouped(n, dtype, output, (1, 8, 4)) == ("direct/avx2" if dtype == F16 else ATEN)
            for sizes in ((2, 7, 7), (4, 4, 4), (32, 2, 3)):
                assert grouped(n, dtype, output, sizes) == "direct/avx2"
            for sizes in ((2, 8, 7), (4, 7, 8), (32, 15, 4)):
                assert grouped(n, dtype, output, sizes) == ("direct/avx2" if dtype in (F16, F64) else ATEN)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("dtype", testing.dtypes)
def test_separable(isa: str, n: int, dtype: torch.dtype) -> None:
    """By strips where the second step has a kernel of ours; the gradients in two steps."""
    ones = (1,) * n
    tensors = meta(2, 8, *(9,) * n), meta(16, 1, *(3,) * n), meta(4, 16, *ones), meta(4)
    ours = dtype != F64 and not (n == 1 and dtype == F32)  # few columns
    for output in OUTPUTS:
        answer = which_kernel(f"separable_conv{n}d", *(t.to(dtype) for t in tensors), padding="same", output=output)
        if ours and output == "forward":
            assert answer in (f"separable/{isa}", f"depthwise/{isa} + direct/{isa}")
        else:
            assert answer == f"depthwise/{isa} + " + (f"direct/{isa}" if ours else ATEN)


@pytest.mark.parametrize("dtype", testing.dtypes)
def test_separable_by_strips(isa: str, dtype: torch.dtype) -> None:
    """Not where the depthwise kernel copies whole images, nor where rows are too long for scratch."""

    def separable(layout: str, c: int = 32, k: int = 3, size: tuple[int, int] = (56, 56)) -> str:
        input = testing.LAYOUTS[layout](torch.empty(2, c, *size, dtype=dtype))
        weights = torch.empty(c, 1, k, k, dtype=dtype), torch.empty(16, c, 1, 1, dtype=dtype)
        return which_kernel("separable_conv2d", input, *weights, padding="same")

    strips = f"separable/{isa}"
    steps = f"depthwise/{isa} + " + (ATEN if dtype == F64 else f"direct/{isa}")
    assert separable("channels_last") == (steps if dtype == F64 else strips)
    assert separable("contiguous") == (strips if dtype == F32 else steps)
    assert separable("contiguous", size=(8, 4000)) == steps
    assert separable("channels_last", k=31) == steps
    if dtype in (F32, F64):
        assert separable("channels_last", c=128) == f"depthwise/{isa} + {ATEN}"


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("m", [1, 2])
def test_transposed(isa: str, n: int, m: int) -> None:
    for dtype, output in itertools.product(testing.dtypes, OUTPUTS):
        tensors = meta(2, 4, *(5,) * n, dtype=dtype), meta(4, m, *(3,) * n, dtype=dtype)
        assert which_kernel(f"depthwise_conv_transpose{n}d", *tensors, stride=2, output=output) == f"depthwise/{isa}"


def test_transposed_is_the_mirror() -> None:
    """Its forward is a gradient with respect to the input, and the reverse: seen where these take different kernels."""
    if "avx512" not in ISAS:
        pytest.skip("the two take one kernel without AVX-512")
    tensors = meta(2, 4, 5, 5), meta(4, 1, 3, 3)
    with testing.isa("avx512"):
        answers = [
            which_kernel("depthwise_conv_transpose2d", *tensors, dilation=2, output=output) for output in OUTPUTS
        ]
    assert answers == ["depthwise/avx2", ATEN, "depthwise/avx2"]


@pytest.mark.parametrize("case", testing.CASES, ids=lambda case: case.name)
def test_meta_and_cpu_agree(case: testing.Case) -> None:
    tensors = case.tensors(F32)
    on_meta = [tensor if tensor is None else tensor.to("meta") for tensor in tensors]
    for output in OUTPUTS:
        answers = [
            which_kernel(case.op, *arguments, output=output, **named)
            for arguments, named in (case.call(*tensors), case.call(*on_meta))
        ]
        assert answers[0] == answers[1]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_strided_groups_of_contiguous_tensors(n: int) -> None:
    """Whose gradient of the input is PyTorch's."""
    for inputs, outputs, stride, layout in itertools.product(
        (4, 8, 15), (4, 8, 32), (1, 2), ("contiguous", "channels_last")
    ):
        input = testing.LAYOUTS[layout](torch.empty(2, 4 * inputs, *(9,) * n))
        weight = torch.empty(4 * outputs, inputs, *(3,) * n)
        for output in OUTPUTS:
            answer = which_kernel(f"group_conv{n}d", input, weight, stride=stride, groups=4, output=output)
            theirs = output == "grad_input" and min(inputs, outputs) >= 8 and stride > 1 and layout == "contiguous"
            assert answer == (ATEN if theirs else "direct/avx2")


def test_huge_call_is_not_run() -> None:
    answer = which_kernel("depthwise_conv2d", meta(1024, 4096, 4096, 4096), meta(4096, 1, 3, 3), padding=1)
    assert answer.startswith("depthwise/")


@pytest.mark.parametrize("name", ISAS)
def test_independent_of_the_thread_count(name: str) -> None:
    before = torch.get_num_threads()
    answers = []
    try:
        with testing.isa(name):
            for threads in (1, 2, 3, 64):
                torch.set_num_threads(threads)
                answers.append(
                    [
                        which_kernel(case.op, *arguments, output=output, **named)
                        for case in testing.CASES
                        if case.dims == 2
                        for output in OUTPUTS
                        for arguments, named in (case.call(*case.tensors(dtype)) for dtype in (F32, BF16))
                    ]
                )
    finally:
        torch.set_num_threads(before)
    assert all(answer == answers[0] for answer in answers)


def test_isa_restores() -> None:
    current = torch.ops.torch_ext._isa
    before = current()
    with testing.isa("scalar"):
        assert current() == "scalar"
        with testing.isa(ISAS[-1]):
            assert current() == ISAS[-1]
        assert current() == "scalar"
        with pytest.raises(ZeroDivisionError), testing.isa(ISAS[-1]):
            raise ZeroDivisionError
        assert current() == "scalar"
    assert current() == before


def test_isa_refuses_what_this_cpu_lacks() -> None:
    before = torch.ops.torch_ext._isa()
    for name in ("sse", "AVX2", "avx1024"):
        with pytest.raises(RuntimeError, match=f"instruction set that this CPU has .*scalar.*got '{name}'"):
            with testing.isa(name):
                pass
    assert torch.ops.torch_ext._isa() == before


def test_bad_questions() -> None:
    tensors = meta(2, 4, 9), meta(4, 1, 3)
    for error in (RuntimeError, ValueError):
        with pytest.raises(error, match="which_kernel: expected one of deform_conv1d.*got 'conv'"):
            which_kernel("conv", *tensors)
        with pytest.raises(error, match="expected output to be one of forward.*got 'grad_bias'"):
            which_kernel("depthwise_conv1d", *tensors, output="grad_bias")
        with pytest.raises(error, match="depthwise_conv2d: expected input of 4 or 3 dimensions"):
            which_kernel("depthwise_conv2d", meta(2, 4), meta(4, 1, 3, 3))
    with pytest.raises(RuntimeError, match="depthwise_conv1d: .*Kernel size can't be greater"):
        which_kernel("depthwise_conv1d", meta(2, 4, 9), meta(4, 1, 11))
    with pytest.raises(RuntimeError, match="group_conv1d: Given groups=3"):
        which_kernel("group_conv1d", *tensors, groups=3)
    with pytest.raises(TypeError):
        which_kernel("depthwise_conv1d", *tensors, strides=2)


def test_autocast_counts(isa: str) -> None:
    input, weight = torch.empty(1, 40, 9, 9), torch.empty(40, 20, 3, 3)
    assert which_kernel("group_conv2d", input, weight, groups=2) == ATEN
    with torch.autocast("cpu", torch.bfloat16):
        assert which_kernel("group_conv2d", input, weight, groups=2) == f"direct/{isa}"
