"""Derivatives of every op and order, against finite differences and against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from devices import passes
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import torch_ext
from torch_ext.testing import CASES, Case

# Finite differences in float64; the cases are small. Batch 0 has no elements to vary, expanded ones no single ones.
SMALL = [case for case in CASES if case.input[0] > 0 and case.layout != "expanded"]  # random offsets are no integers


def differentiable(case: Case) -> list[Tensor]:
    return [tensor for tensor in case.tensors(requires_grad=True) if tensor is not None]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_gradcheck(case: Case) -> None:
    assert passes(gradcheck, case.function, differentiable(case), check_forward_ad=True, fast_mode=True)


# The slow way looks at every element, undefined gradients and vmap; the fast way above at a random projection.
@pytest.mark.parametrize("case", [case for case in SMALL if case.dims == 2], ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradcheck_of_every_element(case: Case) -> None:
    assert passes(
        gradcheck,
        case.function,
        differentiable(case),
        check_forward_ad=True,
        check_undefined_grad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_gradgradcheck(case: Case) -> None:
    assert passes(gradgradcheck, case.function, differentiable(case), check_fwd_over_rev=True, fast_mode=True)


def test_third_derivative() -> None:
    input = torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 1, 3, dtype=torch.float64, requires_grad=True)

    def first(input: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        output = torch_ext.depthwise_conv1d(input, weight, padding=1).pow(3).sum()
        return torch.autograd.grad(output, (input, weight), create_graph=True)

    assert passes(gradgradcheck, first, [input, weight])


@pytest.mark.parametrize("transform", ["hessian", "jacfwd of jacrev", "jacrev of jacfwd", "jacfwd of jacfwd"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_hessian_by_value(transform: str) -> None:
    """Hessians of both ops equal those of F.conv2d: a derivative that is dropped gives zeros without an error."""
    torch.manual_seed(1)
    input, weight = torch.randn(1, 2, 4, 3, dtype=torch.float64), torch.randn(4, 1, 2, 2, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)

    def hessian(convolution):  # noqa: ANN001, ANN202
        def loss(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return convolution(input, weight, bias).pow(3).sum()

        argnums = (0, 1, 2)
        if transform == "hessian":
            return torch.func.hessian(loss, argnums)
        outer, inner = (getattr(torch.func, name) for name in transform.split(" of "))
        return outer(inner(loss, argnums), argnums)

    ours = hessian(lambda *t: torch_ext.depthwise_conv2d(*t, stride=(2, 1), padding=1))(input, weight, bias)
    torchs = hessian(lambda *t: F.conv2d(*t, stride=(2, 1), padding=1, groups=2))(input, weight, bias)
    for row, expected_row in zip(ours, torchs, strict=True):
        for block, expected in zip(row, expected_row, strict=True):
            assert expected.abs().max() > 0.1
            torch.testing.assert_close(block, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frozen", ["input", "weight", "bias"])
def test_only_wanted_gradients(frozen: str) -> None:
    tensors = {"input": torch.randn(2, 3, 5), "weight": torch.randn(3, 1, 3), "bias": torch.randn(3)}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name != frozen)
    torch_ext.depthwise_conv1d(**tensors).sum().backward()
    for name, tensor in tensors.items():
        assert (tensor.grad is None) == (name == frozen)


def test_masked_off_gradients_are_none() -> None:
    input, weight = torch.randn(2, 3, 5), torch.randn(3, 1, 3)
    call = (torch.randn(2, 3, 3), input, weight, [1], [0, 0], [1], 3)
    for mask in [[True, False, False], [False, True, False], [False, False, True], [False, False, False]]:
        gradients = torch.ops.torch_ext.conv_backward(*call, mask)
        assert [gradient is not None for gradient in gradients] == mask


@pytest.mark.parametrize("n", [1, 2, 3])
def test_gradients_follow_their_own_format(n: int) -> None:
    """Neither the format of grad_output nor that of the other tensor matters."""
    size = (2, 3, *(5,) * n)

    def adjacent(tensor: Tensor) -> Tensor:
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)

    weight = torch.randn(3, 1, *(3,) * n, requires_grad=True)
    for format in (torch.clone, adjacent):
        input = format(torch.randn(size)).requires_grad_()
        output = torch_ext.functional.__dict__[f"depthwise_conv{n}d"](input, weight, padding=1)
        for other in (torch.clone, adjacent):
            gradient, grad_weight = torch.autograd.grad(
                output, (input, weight), other(torch.randn_like(output)), retain_graph=True
            )
            assert gradient.stride() == input.stride()
            assert grad_weight.stride() == weight.stride()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_func_transforms_agree_with_torch() -> None:
    input, weight = torch.randn(4, 3, 6, dtype=torch.float64), torch.randn(6, 1, 3, dtype=torch.float64)

    def transformed(convolution):  # noqa: ANN001, ANN202
        def loss(weight: Tensor, sample: Tensor) -> Tensor:
            return convolution(sample[None], weight).square().sum()

        yield torch.func.grad(loss)(weight, input[0])
        yield torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, input)
        yield torch.func.jvp(lambda w: loss(w, input[0]), (weight,), (torch.ones_like(weight),))[1]
        yield torch.func.vmap(convolution, (1, None), 1)(input[:, None, :, :].transpose(0, 1), weight)

    ours = transformed(lambda x, w: torch_ext.depthwise_conv1d(x, w, padding=1))
    torchs = transformed(lambda x, w: F.conv1d(x, w, padding=1, groups=3))
    for actual, expected in zip(ours, torchs, strict=True):
        torch.testing.assert_close(actual, expected)


def test_saved_tensors_are_freed_and_versions_checked() -> None:
    input, weight = torch.randn(1, 2, 5), torch.randn(2, 1, 3, requires_grad=True)
    output = torch_ext.depthwise_conv1d(input, weight).sum()
    output.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        output.backward()
    output = torch_ext.depthwise_conv1d(input, weight).sum()
    input.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def test_deep_graph_is_freed() -> None:
    """A chain of nodes is freed without recursion."""
    weight = torch.ones(1, 1, 1, requires_grad=True)
    output = torch.ones(1, 1, 1)
    for _ in range(20_000):
        output = torch.ops.torch_ext.conv(output, weight, None, [1], [0, 0], [1], 1)
    del output
