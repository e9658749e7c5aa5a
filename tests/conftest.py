"""Every test runs on our kernels, whatever this CPU would choose."""

from collections.abc import Iterator

import pytest

from torch_ext import testing

OURS = [name for name in ("scalar", "avx2") if name in testing.isas()]


@pytest.fixture(autouse=True)
def our_kernels() -> Iterator[None]:
    """On AVX-512 the default hands many calls to PyTorch: the widest kernels of our own are used instead."""
    with testing.isa(OURS[-1]):
        yield


@pytest.fixture(params=OURS)
def isa(request: pytest.FixtureRequest, our_kernels: None) -> Iterator[str]:
    """For tests that run under each instruction set of ours."""
    with testing.isa(request.param):
        yield request.param
