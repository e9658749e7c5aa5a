"""torch.library.opcheck on the core ops and their backward ops: schema, autograd registration, Meta, AOT dispatch."""

from typing import Any

import pytest
import torch
from torch.library import opcheck

from torch_ext.testing import CASES, Case

CONVS = [case for case in CASES if case.is_conv and case.layout != "expanded"]
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def check(op: torch._ops.OpOverload, arguments: tuple) -> None:
    # test_schema runs the op twice and compares: it needs dense tensors, so views with holes skip that one utility.
    holes = any(isinstance(a, torch.Tensor) and not is_dense(a) for a in arguments)
    opcheck(op, arguments, test_utils=UTILITIES[holes:])


def is_dense(tensor: torch.Tensor) -> bool:
    return torch.empty_like(tensor).stride() == tensor.stride()


@pytest.mark.parametrize("case", CONVS, ids=lambda case: case.name)
def test_conv(case: Case) -> None:
    check(torch.ops.torch_ext.conv.default, case.core(*case.tensors(torch.float32, requires_grad=True)))


@pytest.mark.parametrize("case", CONVS, ids=lambda case: case.name)
@pytest.mark.parametrize("mask", [(True, True, True), (False, True, False)])
def test_conv_backward(case: Case, mask: tuple[bool, ...]) -> None:
    input, weight, bias, *numbers = case.core(*case.tensors(torch.float32))
    grad_output = torch.randn_like(torch.ops.torch_ext.conv(input, weight, bias, *numbers))
    tensors = (tensor.detach().requires_grad_() for tensor in (grad_output, input, weight))
    check(torch.ops.torch_ext.conv_backward.default, (*tensors, *numbers, list(mask)))


SEPARABLES = [case for case in CASES if case.op.startswith("separable") and "unbatched" not in case.what]


def separable_arguments(case: Case, **options: Any) -> tuple[list[torch.Tensor | None], list[list[int]]]:
    """The tensors of a case, and the numbers as the core ops take them."""
    tensors = case.tensors(**options)
    first = Case(case.op.replace("separable", "depthwise"), "", case.input, case.weights[:1], case.arguments)
    *_, stride, padding, dilation, _ = first.core(*first.tensors())
    return tensors, [stride, padding, dilation]


@pytest.mark.parametrize("case", SEPARABLES, ids=lambda case: case.name)
def test_separable_conv(case: Case) -> None:
    tensors, numbers = separable_arguments(case, dtype=torch.float32, requires_grad=True)
    check(torch.ops.torch_ext.separable_conv.default, (*tensors, *numbers))


@pytest.mark.parametrize("case", SEPARABLES, ids=lambda case: case.name)
@pytest.mark.parametrize("mask", [(True,) * 4, (True, False, False, False), (False, True, False, False),
                                  (False, False, True, False), (False, False, False, True)])  # fmt: skip
def test_separable_conv_backward(case: Case, mask: tuple[bool, ...]) -> None:
    tensors, numbers = separable_arguments(case, dtype=torch.float32)
    grad_output = torch.randn_like(torch.ops.torch_ext.separable_conv(*tensors, *numbers))
    given = (tensor.detach().requires_grad_() for tensor in (grad_output, *tensors[:3]))
    check(torch.ops.torch_ext.separable_conv_backward.default, (*given, *numbers, list(mask)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("case", SEPARABLES, ids=lambda case: case.name)
def test_meta_agrees_with_the_cpu_on_separable(case: Case, dtype: torch.dtype) -> None:
    tensors, numbers = separable_arguments(case, dtype=dtype)
    on_meta = [tensor if tensor is None else tensor.to("meta") for tensor in tensors]
    results = []
    for given in (tensors, on_meta):
        output = torch.ops.torch_ext.separable_conv(*given, *numbers)
        backward = torch.ops.torch_ext.separable_conv_backward(output, *given[:3], *numbers, [True] * 4)
        results.append([(t.shape, t.dtype, t.stride()) for t in (output, *backward)])
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("case", [case for case in CONVS if case.dims == 2], ids=lambda case: case.name)
def test_meta_agrees_with_the_cpu(case: Case, dtype: torch.dtype) -> None:
    """Sizes, strides and dtypes of forward and gradients, in the dtypes that opcheck did not see."""
    arguments = case.core(*case.tensors(dtype))
    input, weight, bias, *numbers = arguments
    real = [torch.ops.torch_ext.conv(*arguments)]
    real += torch.ops.torch_ext.conv_backward(real[0], input, weight, *numbers, [True] * 3)
    on_meta = [tensor if tensor is None else tensor.to("meta") for tensor in (input, weight, bias)]
    for tensor, source in zip(on_meta, (input, weight, bias), strict=True):
        if tensor is not None and is_dense(source):
            assert tensor.stride() == source.stride()
    meta = [torch.ops.torch_ext.conv(*on_meta, *numbers)]
    meta += torch.ops.torch_ext.conv_backward(real[0].to("meta"), *on_meta[:2], *numbers, [True] * 3)
    for a, b in zip(real, meta, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if is_dense(input) and is_dense(weight):
            assert a.stride() == b.stride()
