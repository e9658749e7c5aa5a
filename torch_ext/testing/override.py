"""PyTorch's own convolution, routed to ours."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_SERVED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@contextlib.contextmanager
def override_aten() -> Iterator[None]:
    """Routes aten::convolution on the CPU to torch_ext::conv, so that PyTorch's own test material runs on our op.

    At the key AutogradCPU, so that our derivatives are the ones that run. Transposed convolutions and dtypes that we do
    not serve go to PyTorch as before.

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

    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library.impl("convolution", convolution, "AutogradCPU", with_keyset=True)
        yield
    finally:
        library._destroy()
