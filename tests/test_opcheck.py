"""torch.library.opcheck on the core ops and their backward ops: schema, autograd registration, Meta, AOT dispatch."""

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
