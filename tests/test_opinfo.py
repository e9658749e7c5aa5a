"""PyTorch's own test material for convolutions, run on our op by `torch_ext.testing.override_aten`."""

import re
import warnings

import pytest
import torch
from devices import assert_near, on_gpu, passes
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from torch_ext.testing import override_aten

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

OPS = {op.name: op for op in op_db if re.fullmatch(r"nn\.functional\.conv[123]d", op.name)}
MODULES = {info.name: info for info in module_db if re.fullmatch(r"nn\.Conv[123]d", info.name)}


def runs_on_ours(output: Tensor) -> bool:
    """Whether our node made this result; views and paddings may lie on top of it."""
    nodes = [output.grad_fn]
    for _ in range(4):
        if any(node is not None and node.name() == "torch_ext::ConvBackward" for node in nodes):
            return True
        nodes = [parent for node in nodes if node is not None for parent, _ in node.next_functions]
    return False


@pytest.mark.parametrize("name", sorted(OPS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_forward(name: str, dtype: torch.dtype) -> None:
    op, count, agree = OPS[name], 0, assert_near if on_gpu() else torch.testing.assert_close
    for sample in op.sample_inputs(torch.get_default_device(), dtype, requires_grad=True):
        expected = op(sample.input, *sample.args, **sample.kwargs)
        with override_aten():
            actual = op(sample.input, *sample.args, **sample.kwargs)
            noncontiguous = sample.noncontiguous()
            strided = op(noncontiguous.input, *noncontiguous.args, **noncontiguous.kwargs)
        assert runs_on_ours(actual), sample
        agree(actual, expected)
        agree(strided, expected)
        count += 1
    assert count > 5


@pytest.mark.parametrize("name", sorted(OPS))
@pytest.mark.parametrize("contiguous", [True, False])
def test_gradients(name: str, contiguous: bool) -> None:
    op, count = OPS[name], 0
    for sample in op.sample_inputs(torch.get_default_device(), torch.float64, requires_grad=True):
        sample = sample if contiguous else sample.noncontiguous()
        tensors = [t for t in (sample.input, *sample.args) if isinstance(t, Tensor)]
        rest = [t for t in sample.args if not isinstance(t, Tensor)]

        def function(*tensors: Tensor) -> Tensor:
            return op(*tensors, *rest, **sample.kwargs)  # noqa: B023

        with override_aten():
            assert passes(gradcheck, function, tensors, check_forward_ad=True, fast_mode=True)
            assert passes(gradgradcheck, function, tensors, check_fwd_over_rev=True, fast_mode=True)
        count += 1
    assert count > 5


@pytest.mark.parametrize("name", sorted(OPS))
def test_errors(name: str) -> None:
    count = 0
    for error in OPS[name].error_inputs(torch.get_default_device()):
        sample = error.sample_input
        with override_aten(), pytest.raises(error.error_type, match=error.error_regex):
            OPS[name](sample.input, *sample.args, **sample.kwargs)
        count += 1
    assert count > 5


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules(name: str) -> None:
    info, count = MODULES[name], 0
    torch.manual_seed(0)
    device = torch.get_default_device()
    for sample in info.module_inputs_func(info, device, torch.float64, requires_grad=True, training=True):
        arguments = sample.constructor_input
        module = info.module_cls(*arguments.args, **arguments.kwargs).double()
        call = sample.forward_input
        expected = module(*call.args, **call.kwargs)
        gradients = torch.autograd.grad(expected.square().sum(), list(module.parameters()))
        with override_aten():
            actual = module(*call.args, **call.kwargs)
            ours = torch.autograd.grad(actual.square().sum(), list(module.parameters()))
        assert runs_on_ours(actual), sample
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(ours, gradients)
        count += 1
    assert count > 3


def test_override_ends() -> None:
    layer, input = torch.nn.Conv2d(4, 4, 3, groups=4), torch.randn(1, 4, 9, 9)
    with override_aten():
        assert runs_on_ours(layer(input))
    assert not runs_on_ours(layer(input))
    with override_aten():
        transposed = torch.nn.ConvTranspose2d(4, 4, 3)(input)
    assert not runs_on_ours(transposed)
