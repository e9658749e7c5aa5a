"""The oracle: every convolution in plain PyTorch and float64, for any number of dimensions.

One loop over the kernel's taps each; autograd gives their derivatives. Arguments are those of torch_ext.functional, and
so are the names but for the number of dimensions: `depthwise_conv2d` has its oracle in `depthwise_conv`.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_ext._arguments import IntN, Padding

Pairs = list[tuple[int, int]]


def group_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
    groups: int = 1,
) -> Tensor:
    """output[n, g, o, x] = bias[g, o] + sum_kc weight[g, o, c, k] * padded[n, g, c, x * stride + k * dilation]

    Args: as `torch_ext.functional.group_conv2d`, with any number of spatial axes. Returns float64.
    """
    dims = weight.dim() - 2
    if input.dim() == dims + 1:
        return group_conv(input[None], weight, bias, stride, padding, dilation, groups)[0]
    kernel, stride, dilation = weight.shape[2:], _numbers(stride, dims), _numbers(dilation, dims)
    pairs = padding_pairs(padding, input.shape[2:], kernel, stride, dilation)
    padded = F.pad(input.double(), [side for pair in reversed(pairs) for side in pair])
    out = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(padded.shape[2:], kernel, stride, dilation)]

    padded = padded.unflatten(1, (groups, input.shape[1] // groups))
    weight = weight.double().unflatten(0, (groups, weight.shape[0] // groups))
    output = padded.new_zeros(input.shape[0], groups, weight.shape[1], *out)
    for tap, window in _windows(kernel, out, stride, dilation):
        output = output + torch.einsum("ngc...,goc->ngo...", padded[window], weight[(..., *tap)])
    return _add_bias(output.flatten(1, 2), bias)


def depthwise_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
) -> Tensor:
    """One group per input channel. Args: as `torch_ext.functional.depthwise_conv2d`. Returns float64."""
    channels = input.shape[1 - weight.dim()]
    return group_conv(input, weight, bias, stride, padding, dilation, channels)


def depthwise_conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    output_padding: IntN = 0,
    dilation: IntN = 1,
) -> Tensor:
    """output[n, c, m, x * stride + k * dilation - before] += weight[c, m, k] * input[n, c, x], over all x and taps k

    Args: as `torch_ext.functional.depthwise_conv_transpose2d`. Returns float64.
    """
    dims = weight.dim() - 2
    if input.dim() == dims + 1:
        return depthwise_conv_transpose(input[None], weight, bias, stride, padding, output_padding, dilation)[0]
    sizes, kernel, stride, dilation = (
        input.shape[2:],
        weight.shape[2:],
        _numbers(stride, dims),
        _numbers(dilation, dims),
    )
    pairs = padding_pairs(padding, sizes, kernel, stride, dilation)
    extra = _numbers(output_padding, dims)
    # Everything an input element reaches, and the output padding; then `pairs` are cut off.
    full = [(size - 1) * s + d * (k - 1) + 1 + e for size, s, d, k, e in zip(sizes, stride, dilation, kernel, extra)]

    input, weight = input.double(), weight.double()
    output = input.new_zeros(*input.shape[:2], weight.shape[1], *full)
    for tap, window in _windows(kernel, sizes, stride, dilation):
        term = torch.einsum("nc...,cm->ncm...", input, weight[(..., *tap)])
        output[window] = output[window] + term
    cut = tuple(slice(before, size - after) for size, (before, after) in zip(full, pairs))
    return _add_bias(output[(..., *cut)].flatten(1, 2), bias)


def separable_conv(
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
) -> Tensor:
    """depthwise_conv, rounded to the input's dtype, then a 1x1 group_conv with one group.

    Args: as `torch_ext.functional.separable_conv2d`. Returns float64.
    """
    hidden = depthwise_conv(input, depthwise_weight, None, stride, padding, dilation)
    return group_conv(hidden.to(input.dtype), pointwise_weight, bias)


def deform_conv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntN = 1,
    padding: Padding = 0,
    dilation: IntN = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Like group_conv, but tap k reads x * stride + k * dilation - before + offset, and is multiplied by its mask.

    Args: as `torch_ext.functional.deform_conv2d`, with any number of spatial axes. Returns float64.
    """
    dims = weight.dim() - 2
    if input.dim() == dims + 1:
        batched = [None if t is None else t[None] for t in (offset, mask)]
        return deform_conv(input[None], batched[0], weight, bias, stride, padding, dilation, batched[1])[0]
    kernel, stride, dilation = weight.shape[2:], _numbers(stride, dims), _numbers(dilation, dims)
    pairs = padding_pairs(padding, input.shape[2:], kernel, stride, dilation)
    out, taps = offset.shape[2:], list(itertools.product(*(range(k) for k in kernel)))
    offset = offset.double().unflatten(1, (-1, len(taps), dims))
    mask = None if mask is None else mask.double().unflatten(1, (-1, len(taps)))
    images = input.double().unflatten(1, (offset.shape[1], -1))  # [N, offset group, channels of it, *]
    groups = input.shape[1] // weight.shape[1]
    weight = weight.double().unflatten(0, (groups, -1))
    output = input.new_zeros(input.shape[0], groups, weight.shape[1], *out, dtype=torch.float64)
    for t, tap in enumerate(taps):
        at = []
        for axis, (size, step, far, (before, _)) in enumerate(zip(out, stride, dilation, pairs)):
            start = torch.arange(size, dtype=torch.float64) * step + tap[axis] * far - before
            at.append(start.view(-1, *[1] * (dims - 1 - axis)) + offset[:, :, t, axis])
        value = _between_pixels(images, at)
        if mask is not None:
            value = value * mask[:, :, t].unsqueeze(2)
        value = value.flatten(1, 2).unflatten(1, (groups, -1))
        output = output + torch.einsum("ngc...,goc->ngo...", value, weight[(..., *tap)])
    return _add_bias(output.flatten(1, 2), bias)


def _between_pixels(images: Tensor, at: list[Tensor]) -> Tensor:
    """The value of images [N, G, C, *] at coordinates [N, G, *out], one tensor an axis: [N, G, C, *out]."""
    sizes = images.shape[3:]
    padded = F.pad(images.flatten(0, 1), [1, 1] * len(sizes)).unflatten(0, images.shape[:2])
    lower = [coordinate.detach().nan_to_num().floor().clamp(-2, size) for coordinate, size in zip(at, sizes)]
    met = torch.stack([(c.detach() >= -1) & (c.detach() < size) | c.isnan() for c, size in zip(at, sizes)]).all(0)
    result = 0
    for corner in itertools.product((0, 1), repeat=len(sizes)):
        index, weight = 0, 1
        for high, coordinate, low, size in zip(corner, at, lower, sizes):
            index = index * (size + 2) + (low + high).clamp(-1, size).long() + 1
            fraction = coordinate - low
            weight = weight * (fraction if high else 1 - fraction)
        index = index.flatten(2).unsqueeze(2).expand(-1, -1, images.shape[2], -1)
        value = padded.flatten(3).gather(3, index).unflatten(3, met.shape[2:])
        result = result + value * torch.where(met, weight, 0).unsqueeze(2)
    return result


def padding_pairs(
    padding: Padding, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Pairs:
    """Any form of padding as (before, after) for each axis."""
    if padding == "valid":
        return [(0, 0)] * len(sizes)
    if padding == "causal":
        return [(d * (k - 1), 0) for k, d in zip(kernel, dilation)]
    if padding in ("same", "same_lower"):
        pairs = []
        for size, k, s, d in zip(sizes, kernel, stride, dilation):
            out = -(-size // s)
            total = max((out - 1) * s + d * (k - 1) + 1 - size, 0)
            less, more = total // 2, total - total // 2
            pairs.append((less, more) if padding == "same" else (more, less))
        return pairs
    if isinstance(padding, int) or isinstance(padding[0], int):
        return [(p, p) for p in _numbers(padding, len(sizes))]
    return list(padding) * (len(sizes) if len(padding) == 1 else 1)


def _numbers(value: IntN, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value) * (dims if len(value) == 1 else 1)


def _windows(
    kernel: Sequence[int], sizes: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Every tap of a kernel, and the elements that it meets as the kernel takes `sizes` steps."""
    for tap in itertools.product(*(range(k) for k in kernel)):
        starts = [d * k for k, d in zip(tap, dilation)]
        yield tap, (..., *(slice(start, start + s * size, s) for start, size, s in zip(starts, sizes, stride)))


def _add_bias(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output + bias.double().view(-1, *[1] * (output.dim() - 2))
