"""What tests and benchmarks share: devices, dtypes, tolerances, one list of cases, and switches for kernels."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from torch_ext._loader import build_info
from torch_ext.testing.cases import CASES, LAYOUTS, Case
from torch_ext.testing.override import override_aten

__all__ = [
    "CASES",
    "LAYOUTS",
    "Case",
    "assert_close",
    "devices",
    "dtypes",
    "isa",
    "isas",
    "override_aten",
    "tolerances",
]

dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
_SUBNORMAL = {torch.float16: 2.0**-25}

_forced = ""  # the instruction set that `isa` chose; '' is the library's own choice


def devices() -> list[str]:
    """The devices that this build has kernels for and this machine has.

    Example:
        >>> from torch_ext import testing
        >>> testing.devices()[0]
        'cpu'
    """
    return ["cpu", "cuda"] if build_info()["cuda"] and torch.cuda.is_available() else ["cpu"]


def isas() -> list[str]:
    """The instruction sets that this CPU can run: 'scalar', perhaps 'avx2' and 'avx512'.

    Example:
        >>> from torch_ext import testing
        >>> testing.isas()[0]
        'scalar'
    """
    return build_info()["isa_supported"]


@contextlib.contextmanager
def isa(name: str) -> Iterator[None]:
    """Uses one instruction set, 'scalar' or 'avx2', in this process. RuntimeError if the CPU does not have it.

    Example:
        >>> import torch, torch_ext
        >>> from torch_ext import testing
        >>> with testing.isa("scalar"):
        ...     torch_ext.which_kernel("depthwise_conv1d", torch.randn(1, 4, 9), torch.randn(4, 1, 3))
        'depthwise/scalar'
    """
    global _forced
    torch.ops.torch_ext._set_isa(name)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before
        torch.ops.torch_ext._set_isa(before)


def tolerances(dtype: torch.dtype, expected: Tensor) -> Tensor:
    """How far each element of a result of our kernels may be from `expected`, computed in float64 from the same input.

    float32: 3e-6 * max|y|; float64: 1e-13 * max|y|; 16 bit: u * |y| + 3e-6 * max|y|, u being half a unit in the last
    place (float16: and half the smallest subnormal).

    Example:
        >>> import torch
        >>> from torch_ext import testing
        >>> testing.tolerances(torch.float64, torch.tensor([1.0, -10.0])).tolist()
        [1e-12, 1e-12]
    """
    magnitude = expected.double().abs()
    largest = magnitude.max() if magnitude.numel() else magnitude.new_zeros(())
    accumulated = (1e-13 if dtype == torch.float64 else 3e-6) * largest
    return _ROUNDING.get(dtype, 0.0) * magnitude + accumulated + _SUBNORMAL.get(dtype, 0.0)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Asserts that `actual` has the size of `expected` (float64) and lies within the tolerances of its own dtype.

    Example:
        >>> import torch
        >>> from torch_ext import testing
        >>> testing.assert_close(torch.ones(2), torch.ones(2, dtype=torch.float64))
    """
    assert actual.shape == expected.shape, f"expected size {list(expected.shape)}, but got {list(actual.shape)}"
    excess = (actual.double() - expected).abs() - tolerances(actual.dtype, expected)
    assert not (excess > 0).any() and not excess.isnan().any(), (
        f"{(excess > 0).sum()} of {excess.numel()} elements are off, by up to {excess.max():.3g} more than allowed"
    )
