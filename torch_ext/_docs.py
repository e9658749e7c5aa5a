"""Docstrings of torch_ext.functional, one a family. `fill` writes out the number of dimensions.

In the templates, {n} is the number of dimensions, {sizes} an input's and {out} an output's spatial
sizes, {k} a kernel's.
"""

_AXES = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


def fill(template: str, n: int) -> str:
    axes = _AXES[n]
    fields = {
        "n": n,
        "sizes": ", ".join(axes),
        "out": ", ".join("o" + axis.lower() for axis in axes),
        "k": ", ".join("k" + axis.lower() for axis in axes),
        "ones": ", ".join("1" for _ in axes),
        "eights": ", ".join("8" for _ in axes),
        "threes": ", ".join("3" for _ in axes),
        "fours": ", ".join("4" for _ in axes),
        "taps": {1: "3", 2: "9", 3: "27"}[n],
        "axes": ", ".join({1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x")}[n]),
        "nines": ", ".join("9" for _ in axes),
        "causal": ", 'causal'" if n == 1 else "",
    }
    indented = {"common": _COMMON, "raises": _RAISES}
    return template.format(**fields, **{key: text.format(**fields) for key, text in indented.items()})


_COMMON = """stride: Step of the kernel in elements: an int, or one per axis. Default: 1.
        padding: Zeros added around the input, in elements: an int; {n} int(s); {n} pair(s) (before, after);
            ((before, after),) for every axis; or 'valid' (none), 'same' (output size ceil(size / stride), the odd zero
            goes after), 'same_lower' (the odd zero goes before){causal}. Default: 0.
        dilation: Distance between two kernel elements, in elements: an int, or one per axis. Default: 1."""

_RAISES = """RuntimeError: If a shape, a dtype, a device or a number does not fit; the message has what was
            expected and what came."""

DEPTHWISE_CONV = """Convolves every input channel with kernels of its own: a depthwise {n}-D convolution.

    Output channel c * M + m is input channel c, correlated with kernel c * M + m. Equivalent to
    ``torch.nn.functional.conv{n}d(input, weight, bias, stride, padding, dilation, groups=C)``, with more forms of
    padding. The step that Sifre ("Rigid-Motion Scattering for Image Classification", 2014) and Xception (Chollet, 2017,
    arXiv:1610.02357) made known; M is called depth multiplier or channel multiplier.

    Args:
        input: [N, C, {sizes}] or, unbatched, [C, {sizes}]; float32, float64, bfloat16 or float16, in any memory layout.
        weight: [C * M, 1, {k}], of the input's dtype.
        bias: [C * M], or None. Default: None.
        {common}

    Returns:
        [N, C * M, {out}] or [C * M, {out}], of the input's dtype, with
        ``out = (size + before + after - dilation * (k - 1) - 1) // stride + 1`` for each axis.

    Raises:
        {raises}

    Example:
        >>> import torch
        >>> from torch_ext.functional import depthwise_conv{n}d
        >>> input, weight = torch.randn(2, 4, {eights}), torch.randn(8, 1, {threes})
        >>> depthwise_conv{n}d(input, weight, stride=2, padding="same").shape
        torch.Size([2, 8, {fours}])
    """

GROUP_CONV = """Applies a grouped {n}-D convolution: every group of input channels gives one group of output channels.

    The contract of ``torch.nn.functional.conv{n}d(input, weight, bias, stride, padding, dilation, groups)``, with more
    forms of padding; ``groups=1`` is the dense convolution. Groups come from AlexNet (Krizhevsky et al., 2012); as a
    design of their own from ResNeXt (Xie et al., 2017, arXiv:1611.05431).

    Args:
        input: [N, C, {sizes}] or, unbatched, [C, {sizes}]; float32, float64, bfloat16 or float16, in any memory layout.
        weight: [O, C / groups, {k}], of the input's dtype.
        bias: [O], or None. Default: None.
        {common}
        groups: Number of groups; divides C and O. Default: 1.

    Returns:
        [N, O, {out}] or [O, {out}], of the input's dtype, with
        ``out = (size + before + after - dilation * (k - 1) - 1) // stride + 1`` for each axis.

    Raises:
        {raises}

    Example:
        >>> import torch
        >>> from torch_ext.functional import group_conv{n}d
        >>> input, weight = torch.randn(2, 4, {eights}), torch.randn(6, 2, {threes})
        >>> group_conv{n}d(input, weight, padding=1, groups=2).shape
        torch.Size([2, 6, {eights}])
    """

DEPTHWISE_CONV_TRANSPOSE = """Applies a transposed depthwise {n}-D convolution: the adjoint of `depthwise_conv{n}d`.

    Equivalent to ``torch.nn.functional.conv_transpose{n}d(input, weight, bias, stride, padding, output_padding,
    groups=C, dilation=dilation)``. Described in Dumoulin and Visin, "A guide to convolution arithmetic for deep
    learning" (2016, arXiv:1603.07285).

    Args:
        input: [N, C, {sizes}] or, unbatched, [C, {sizes}]; float32, float64, bfloat16 or float16, in any memory layout.
        weight: [C, M, {k}], of the input's dtype.
        bias: [C * M], or None. Default: None.
        stride: Distance in the output between two input elements: an int, or one per axis. Default: 1.
        padding: Elements cut off the output: an int; {n} int(s); {n} pair(s) (before, after); or ((before, after),)
            for every axis. Default: 0.
        output_padding: Elements added to the output's end: an int, or one per axis; less than stride or dilation.
            Default: 0.
        dilation: Distance between two kernel elements, in elements: an int, or one per axis. Default: 1.

    Returns:
        [N, C * M, {out}] or [C * M, {out}], of the input's dtype, with
        ``out = (size - 1) * stride - before - after + dilation * (k - 1) + output_padding + 1`` for each axis.

    Raises:
        {raises}

    Example:
        >>> import torch
        >>> from torch_ext.functional import depthwise_conv_transpose{n}d
        >>> input, weight = torch.randn(2, 4, {fours}), torch.randn(4, 1, {threes})
        >>> depthwise_conv_transpose{n}d(input, weight, stride=2).shape
        torch.Size([2, 4, {nines}])
    """

SEPARABLE_CONV = """Applies a depthwise separable {n}-D convolution: a depthwise one, then a pointwise one.

    Equivalent to ``F.conv{n}d(F.conv{n}d(input, depthwise_weight, None, stride, padding, dilation, groups=C),
    pointwise_weight, bias)``, with more forms of padding. There is no bias and no activation between the two steps, and
    the result of the first is rounded to the input's dtype. The building block of Xception (Chollet, 2017,
    arXiv:1610.02357) and MobileNet (Howard et al., 2017, arXiv:1704.04861).

    Args:
        input: [N, C, {sizes}] or, unbatched, [C, {sizes}]; float32, float64, bfloat16 or float16, in any memory layout.
        depthwise_weight: [C * M, 1, {k}], of the input's dtype.
        pointwise_weight: [O, C * M, {ones}], of the input's dtype.
        bias: [O], or None. Added after the second step. Default: None.
        {common}
            Stride, padding and dilation act on the depthwise step.

    Returns:
        [N, O, {out}] or [O, {out}], of the input's dtype, with
        ``out = (size + before + after - dilation * (k - 1) - 1) // stride + 1`` for each axis.

    Raises:
        {raises}

    Example:
        >>> import torch
        >>> from torch_ext.functional import separable_conv{n}d
        >>> input, depthwise_weight = torch.randn(2, 4, {eights}), torch.randn(4, 1, {threes})
        >>> separable_conv{n}d(input, depthwise_weight, torch.randn(6, 4, {ones}), padding="same").shape
        torch.Size([2, 6, {eights}])
    """

DEFORM_CONV = """Applies a deformable {n}-D convolution: each tap reads the input where an offset says, between pixels.

    Output position i takes, at tap t, the value of the input at ``i * stride + t * dilation - before + offset``, from
    the pixels around it in proportion to their nearness, with zero outside the image. "Deformable Convolutional
    Networks" (Dai et al., 2017, arXiv:1703.06211); with a mask, that of version 2 (Zhu et al., 2019,
    arXiv:1811.11168). In 2-D equivalent to ``torchvision.ops.deform_conv2d(input, offset, weight, bias, stride,
    padding, dilation, mask)``, with more forms of padding, and with its derivative where a coordinate is a whole
    number: that from the right. (mmcv's differs at exactly -1, where a freshly initialised padded layer reads.)

    Groups follow from the sizes: C / weight.size(1) of them, and G offset groups of C / G channels that share offsets
    and mask. A coordinate that is no number makes the outputs that it feeds no numbers. Derivatives beyond the first,
    first ones that are to be differentiated again (``create_graph=True``, `torch.func`) and forward mode are right, but
    slow and of much memory: compositions of PyTorch's ops.

    Args:
        input: [N, C, {sizes}] or, unbatched, [C, {sizes}]; float32, float64, bfloat16 or float16, in any memory layout.
        offset: [N, {n} * G * taps, {out}], in elements, ordered offset group, tap (row by row), axis ({axes}); of the
            input's dtype or, for 16 bit, float32. Unbatched if the input is.
        weight: [O, C / groups, {k}], of the input's dtype.
        bias: [O], or None. Default: None.
        {common}
        mask: [N, G * taps, {out}], a factor of each value; dtype and batch as offset's. Default: None, all ones.

    Returns:
        [N, O, {out}] or [O, {out}], of the input's dtype, with
        ``out = (size + before + after - dilation * (k - 1) - 1) // stride + 1`` for each axis.

    Raises:
        {raises}

    Example:
        >>> import torch
        >>> from torch_ext.functional import deform_conv{n}d
        >>> input, weight = torch.randn(2, 4, {eights}), torch.randn(6, 4, {threes})
        >>> offset, mask = torch.randn(2, {n} * {taps}, {eights}), torch.rand(2, {taps}, {eights})
        >>> deform_conv{n}d(input, offset, weight, padding=1, mask=mask).shape
        torch.Size([2, 6, {eights}])
    """
