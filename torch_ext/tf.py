"""TensorFlow's convolutions under TensorFlow's names, with its tensors, numbers and argument rules.

NHWC data, TensorFlow's default, is read as a channels_last view of the same memory: nothing is copied.
"""

from collections.abc import Sequence

from torch import Tensor

from torch_ext import functional

__all__ = ["conv2d", "depthwise_conv2d", "separable_conv2d"]

Pairs = Sequence[Sequence[int]]


def depthwise_conv2d(
    input: Tensor,
    filter: Tensor,
    strides: Sequence[int],
    padding: str | Pairs,
    data_format: str = "NHWC",
    dilations: int | Sequence[int] | None = None,
    *,
    rate: int | Sequence[int] | None = None,
) -> Tensor:
    """`tf.nn.depthwise_conv2d`: output channel c * M + m is input channel c, correlated with filter[:, :, c, m].

    Args:
        input: [N, H, W, C], or [N, C, H, W] for data_format 'NCHW'.
        filter: [kh, kw, C, M].
        strides: Four numbers in the order of data_format; those of batch and channels must be 1.
        padding: 'SAME', 'VALID', or four pairs (before, after) in the order of data_format.
        data_format: 'NHWC' or 'NCHW'. Default: 'NHWC'.
        dilations: A number or (height, width); above 1 only with strides of 1. Default: 1.
        rate: TensorFlow 1's name of dilations.

    Returns:
        [N, oh, ow, C * M], or [N, C * M, oh, ow].

    Raises:
        ValueError: If an argument breaks one of TensorFlow's rules.

    Example:
        >>> import torch, torch_ext
        >>> input, filter = torch.arange(1.0, 13).view(1, 2, 3, 2), torch.arange(1.0, 17).view(2, 2, 2, 2)
        >>> torch_ext.tf.depthwise_conv2d(input, filter, [1, 1, 1, 1], "VALID").flatten().tolist()
        [196.0, 216.0, 272.0, 296.0, 252.0, 280.0, 344.0, 376.0]
    """
    op = "depthwise_conv2d"
    stride, sides, dilation = _depthwise_numbers(op, strides, padding, data_format, dilations, rate)
    nchw = _to_nchw(op, input, data_format)
    weight = _depthwise_weight(op, filter, nchw.shape[1])
    return _from_nchw(functional.depthwise_conv2d(nchw, weight, None, stride, sides, dilation), data_format)


def separable_conv2d(
    input: Tensor,
    depthwise_filter: Tensor,
    pointwise_filter: Tensor,
    strides: Sequence[int],
    padding: str | Pairs,
    data_format: str = "NHWC",
    dilations: int | Sequence[int] | None = None,
    *,
    rate: int | Sequence[int] | None = None,
) -> Tensor:
    """`tf.nn.separable_conv2d`: a depthwise convolution, then a 1x1 one across its channels.

    Args:
        input: [N, H, W, C], or [N, C, H, W] for data_format 'NCHW'.
        depthwise_filter: [kh, kw, C, M].
        pointwise_filter: [1, 1, C * M, O].
        strides, padding, data_format, dilations, rate: Of the depthwise step, as in `depthwise_conv2d`.

    Returns:
        [N, oh, ow, O], or [N, O, oh, ow].

    Raises:
        ValueError: If an argument breaks one of TensorFlow's rules.

    Example:
        >>> import torch, torch_ext
        >>> filters = torch.randn(3, 3, 4, 2), torch.randn(1, 1, 8, 5)
        >>> torch_ext.tf.separable_conv2d(torch.randn(1, 9, 9, 4), *filters, [1, 2, 2, 1], "SAME").shape
        torch.Size([1, 5, 5, 5])
    """
    op = "separable_conv2d"
    stride, sides, dilation = _depthwise_numbers(op, strides, padding, data_format, dilations, rate)
    nchw = _to_nchw(op, input, data_format)
    weight = _depthwise_weight(op, depthwise_filter, nchw.shape[1], "depthwise_filter")
    if pointwise_filter.dim() != 4 or tuple(pointwise_filter.shape[:3]) != (1, 1, weight.shape[0]):
        raise ValueError(
            f"{op}: expected pointwise_filter of shape [1, 1, C * M, O] with C * M = {weight.shape[0]}, but got "
            f"{list(pointwise_filter.shape)}"
        )
    pointwise = pointwise_filter.permute(3, 2, 0, 1)
    output = functional.separable_conv2d(nchw, weight, pointwise, None, stride, sides, dilation)
    return _from_nchw(output, data_format)


def conv2d(
    input: Tensor,
    filters: Tensor,
    strides: int | Sequence[int],
    padding: str | Pairs,
    data_format: str = "NHWC",
    dilations: int | Sequence[int] | None = None,
) -> Tensor:
    """`tf.nn.conv2d`. Filters with fewer input channels than the input make a grouped convolution.

    Args:
        input: [N, H, W, C], or [N, C, H, W] for data_format 'NCHW'.
        filters: [kh, kw, C / groups, O].
        strides: A number, (height, width), or four numbers in the order of data_format; those of batch and channels
            must be 1.
        padding: 'SAME', 'VALID', or four pairs (before, after) in the order of data_format.
        data_format: 'NHWC' or 'NCHW'. Default: 'NHWC'.
        dilations: In the forms of strides. Default: 1.

    Returns:
        [N, oh, ow, O], or [N, O, oh, ow].

    Raises:
        ValueError: If an argument breaks one of TensorFlow's rules.

    Example:
        >>> import torch, torch_ext
        >>> torch_ext.tf.conv2d(torch.randn(1, 9, 9, 4), torch.randn(3, 3, 4, 5), 2, "VALID").shape
        torch.Size([1, 4, 4, 5])
    """
    op = "conv2d"
    stride = _height_width(op, "strides", strides, data_format)
    dilation = _height_width(op, "dilations", 1 if dilations is None else dilations, data_format)
    sides = _padding(op, padding, data_format)
    nchw = _to_nchw(op, input, data_format)
    channels = nchw.shape[1]
    if filters.dim() != 4 or filters.shape[2] == 0 or channels % filters.shape[2] != 0:
        raise ValueError(
            f"{op}: expected filters of shape [kh, kw, C / groups, O] with C = {channels}, but got "
            f"{list(filters.shape)}"
        )
    groups = channels // filters.shape[2]
    output = functional.group_conv2d(nchw, filters.permute(3, 2, 0, 1), None, stride, sides, dilation, groups)
    return _from_nchw(output, data_format)


def _depthwise_numbers(
    op: str,
    strides: Sequence[int],
    padding: str | Pairs,
    data_format: str,
    dilations: int | Sequence[int] | None,
    rate: int | Sequence[int] | None,
) -> tuple[list[int], str | list[tuple[int, int]], list[int]]:
    """Stride, padding and dilation of the depthwise step, by TensorFlow's rules."""
    if dilations is not None and rate is not None:
        raise ValueError(f"{op}: expected dilations or rate, but got both")
    if isinstance(strides, int) or len(strides) != 4:
        raise ValueError(f"{op}: expected strides of length 4, but got {strides!r}")
    stride = _height_width(op, "strides", strides, data_format)
    given = next((value for value in (dilations, rate) if value is not None), 1)
    if not isinstance(given, int) and len(given) != 2:
        raise ValueError(f"{op}: expected dilations to be a number or (height, width), but got {given!r}")
    dilation = _height_width(op, "dilations", given, data_format)
    if max(stride) > 1 and max(dilation) > 1:
        raise ValueError(f"{op}: expected strides of 1 with dilations above 1, but got {strides!r} and {given!r}")
    return stride, _padding(op, padding, data_format), dilation


def _spatial(data_format: str) -> tuple[int, int]:
    """The positions of height and width."""
    return (1, 2) if data_format == "NHWC" else (2, 3)


def _height_width(op: str, name: str, value: int | Sequence[int], data_format: str) -> list[int]:
    """A number, (height, width), or four numbers in the order of data_format, as [height, width]."""
    _check_format(op, data_format)
    given = [value] if isinstance(value, int) else list(value)
    if len(given) not in (1, 2, 4):
        raise ValueError(f"{op}: expected {name} to be 1, 2 or 4 numbers, but got {value!r}")
    if any(number < 1 for number in given):
        raise ValueError(f"{op}: expected {name} of at least 1, but got {value!r}")
    if len(given) < 4:
        return given * (2 // len(given))
    height, width = _spatial(data_format)
    if any(number != 1 for axis, number in enumerate(given) if axis not in (height, width)):
        raise ValueError(f"{op}: expected {name} of batch and channels to be 1, but got {value!r}")
    return [given[height], given[width]]


def _padding(op: str, padding: str | Pairs, data_format: str) -> str | list[tuple[int, int]]:
    """TensorFlow's padding in the forms of torch_ext.functional."""
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"{op}: expected padding 'SAME', 'VALID' or four pairs, but got {padding!r}")
        return padding.lower()
    if len(padding) != 4 or any(isinstance(pair, int) or len(pair) != 2 for pair in padding):
        raise ValueError(f"{op}: expected padding 'SAME', 'VALID' or four pairs, but got {padding!r}")
    height, width = _spatial(data_format)
    pairs = [(int(before), int(after)) for before, after in padding]
    if any(pair != (0, 0) for axis, pair in enumerate(pairs) if axis not in (height, width)):
        raise ValueError(f"{op}: expected no padding of batch and channels, but got {padding!r}")
    if any(side < 0 for pair in pairs for side in pair):
        raise ValueError(f"{op}: negative padding is not supported, but got {padding!r}")
    return [pairs[height], pairs[width]]


def _check_format(op: str, data_format: str) -> None:
    if data_format not in ("NHWC", "NCHW"):
        raise ValueError(f"{op}: expected data_format 'NHWC' or 'NCHW', but got {data_format!r}")


def _to_nchw(op: str, input: Tensor, data_format: str) -> Tensor:
    if input.dim() != 4:
        raise ValueError(f"{op}: expected input of 4 dimensions, but got size {list(input.shape)}")
    return input.permute(0, 3, 1, 2) if data_format == "NHWC" else input


def _from_nchw(output: Tensor, data_format: str) -> Tensor:
    return output.permute(0, 2, 3, 1) if data_format == "NHWC" else output


def _depthwise_weight(op: str, filter: Tensor, channels: int, name: str = "filter") -> Tensor:
    """[kh, kw, C, M] as [C * M, 1, kh, kw]; a view if M is 1."""
    if filter.dim() != 4 or filter.shape[2] != channels:
        raise ValueError(
            f"{op}: expected {name} of shape [kh, kw, C, M] with C = {channels}, but got {list(filter.shape)}"
        )
    return filter.permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1)
