"""Which kernel a call takes."""

import inspect
from typing import Any

import torch
from torch import Tensor

from torch_ext import functional
from torch_ext._arguments import ArgumentError, both_sides, numbers, padding_list
from torch_ext._loader import build_info

_OUTPUTS = ("forward", "grad_input", "grad_weight")
_MIRRORED = {"forward": "grad_input", "grad_input": "forward", "grad_weight": "grad_weight"}


def which_kernel(op: str, *args: Any, output: str = "forward", **kwargs: Any) -> str:
    """Says which kernel a call takes, without running it.

    Args:
        op: The name of a function of `torch_ext.functional`.
        *args, **kwargs: The function's own arguments. Tensors may be on the meta device: they stand for CPU tensors.
        output: 'forward', 'grad_input' or 'grad_weight'. Default: 'forward'.

    Returns:
        'depthwise/avx2', 'direct/avx2' (groups of few channels, narrow pointwise layers, and in 16 bit every other
        one), the same with 'scalar', or 'aten::convolution', which is PyTorch's own: of a padded copy of the input,
        'aten::constant_pad_nd + aten::convolution', if padding differs between the sides of an axis. A separable call
        is 'separable/avx2', or has two steps, as in 'depthwise/avx2 + direct/avx2'; a deformable one is 'deform/avx2'.
        csrc/core/select.h has the table.

    Raises:
        RuntimeError: If the call is not a valid one.

    Example:
        >>> import torch, torch_ext
        >>> input, weight = torch.empty(1, 8, 9, 9, device="meta"), torch.empty(4, 8, 3, 3, device="meta")
        >>> torch_ext.which_kernel("group_conv2d", input, weight, padding=1)
        'aten::convolution'
    """
    if op not in functional.__all__:
        raise ArgumentError(f"which_kernel: expected one of {', '.join(functional.__all__)}, but got {op!r}")
    if output not in _OUTPUTS:
        raise ArgumentError(f"which_kernel: expected output to be one of {', '.join(_OUTPUTS)}, but got {output!r}")
    call = inspect.signature(getattr(functional, op)).bind(*args, **kwargs)
    call.apply_defaults()
    special = {"depthwise_conv_transpose": _transposed, "separable_conv": _separable, "deform_conv": _deform}
    answer = special.get(op[:-2], _conv)
    return answer(op, call.arguments, output)


def core_arguments(op: str, call: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a depthwise_convNd or group_convNd call as the core op `conv` takes them.

    Of a separable_convNd call, those of its first step.
    """
    n, input, weight = int(op[-2]), call["input"], call["weight"]
    if input.dim() not in (n + 1, n + 2) or weight.dim() != n + 2:
        raise ArgumentError(
            f"{op}: expected input of {n + 2} or {n + 1} dimensions and weight of {n + 2}, but got sizes "
            f"{list(input.shape)} and {list(weight.shape)}"
        )
    input = input if input.dim() == n + 2 else input.unsqueeze(0)
    stride, dilation = (numbers(op, name, call[name], n) for name in ("stride", "dilation"))
    sides = padding_list(op, call["padding"], n)
    if isinstance(sides, str):
        sides = torch.ops.torch_ext._same_padding(input.shape[2:], weight.shape[2:], stride, dilation, sides)
    groups = call.get("groups", input.shape[1])
    return input, weight, call["bias"], stride, both_sides(sides, n), dilation, groups


def _conv(op: str, call: dict[str, Any], output: str) -> str:
    input, weight, bias, *numbers = core_arguments(op, call)
    return torch.ops.torch_ext._which_kernel(op, *(_autocast(t) for t in (input, weight, bias)), *numbers, output)


def _autocast(tensor: Tensor | None) -> Tensor | None:
    """A tensor like the one that is computed with where autocast is on."""
    if tensor is None or tensor.dtype == torch.float64 or tensor.is_cuda or not torch.is_autocast_enabled("cpu"):
        return tensor
    return torch.empty_like(tensor, dtype=torch.get_autocast_dtype("cpu"), device="meta")


def _separable(op: str, call: dict[str, Any], output: str) -> str:
    input, depthwise_weight, bias, *numbers, _ = core_arguments(
        op, {**call, "weight": call["depthwise_weight"], "groups": None}
    )
    tensors = input, depthwise_weight, call["pointwise_weight"], bias
    return torch.ops.torch_ext._which_separable_kernel(op, *(_autocast(t) for t in tensors), *numbers, output)


def _deform(op: str, call: dict[str, Any], output: str) -> str:
    _result(op, call)  # which checks the call
    if call["input"].is_cuda:
        if build_info()["cuda"] is None:
            raise NotImplementedError(f"{op}: this build of torch_ext has no CUDA kernels, but got CUDA tensors")
        return "deform/cuda"
    return "deform/scalar" if torch.ops.torch_ext._isa() == "scalar" else "deform/avx2"


def _transposed(op: str, call: dict[str, Any], output: str) -> str:
    """A transposed convolution is the gradient, with respect to the input, of one whose input has the result's size."""
    groups = call["weight"].shape[0]
    mirrored = {**call, "input": _result(op, call), "bias": None, "groups": groups}
    return _conv(op, mirrored, _MIRRORED[output])


def _result(op: str, call: dict[str, Any]) -> Tensor:
    """A tensor like the result of a call. Nothing runs: Meta gives sizes and strides; memory is not touched."""
    function = getattr(functional, op)
    names = inspect.signature(function).parameters
    meta = {
        name: value.to("meta") if isinstance(value, Tensor) else value for name, value in call.items() if name in names
    }
    return torch.empty_like(function(**meta), device=call["input"].device)
