"""PyTorch's own convolution, routed to ours."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_SERVED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@contextlib.contextmanager
def override_aten() -> Iterator[None]:
    """Routes aten::convolution to torch_ext::conv, so that PyTorch's own test material runs on our op.

    And torchvision::deform_conv2d to torch_ext::deform_conv, if torchvision is imported.

    At the keys AutogradCPU and AutogradCUDA, so that our derivatives are the ones that run. Transposed convolutions and
    dtypes that we do not serve go to PyTorch as before.

    Example:
        >>> import torch
        >>> from torch_ext.testing import override_aten
        >>> with override_aten():
        ...     torch.nn.Conv2d(4, 4, 3)(torch.randn(1, 4, 9, 9)).grad_fn.name()
        'torch_ext::ConvBackward'
    """
    original = torch.library.get_kernel("aten::convolution", "AutogradCPU")

    def convolution(
        keys: torch.DispatchKeySet,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> Tensor:
        if transposed or input.dtype not in _SERVED:
            rest = (stride, padding, dilation, transposed, output_padding, groups)
            return original.call_boxed(keys, input, weight, bias, *rest)
        dims = weight.dim() - 2
        stride, padding, dilation = (
            list(numbers) * (dims if len(numbers) == 1 else 1) for numbers in (stride, padding, dilation)
        )
        both_sides = [side for side in padding for _ in range(2)]
        return torch.ops.torch_ext.conv(input, weight, bias, stride, both_sides, dilation, groups)

    libraries = [torch.library.Library("aten", "IMPL")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for key in ("AutogradCPU", "AutogradCUDA"):
                libraries[0].impl("convolution", convolution, key, with_keyset=True)
            if hasattr(torch.ops.torchvision, "deform_conv2d"):
                libraries.append(torch.library.Library("torchvision", "IMPL"))
                for key in ("AutogradCPU", "AutogradCUDA"):
                    libraries[1].impl("deform_conv2d", _deform_conv2d, key)
        yield
    finally:
        for library in libraries:
            library._destroy()


def _deform_conv2d(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *numbers: int | bool
) -> Tensor:
    *sizes, groups, offset_groups, use_mask = numbers
    stride, padding, dilation = sizes[:2], [side for side in sizes[2:4] for _ in range(2)], sizes[4:]
    return torch.ops.torch_ext.deform_conv(
        input, offset, weight, mask if use_mask else None, bias, stride, padding, dilation
    )
