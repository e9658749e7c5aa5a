"""Every test runs on our own kernels, whatever this CPU would choose, and once more on a GPU.

Tests that ask for `isa` run under each instruction set. On the GPU what a test creates lies there: it is the default
device. Without one, `make emulated` runs the ops for CUDA on tensors of the CPU (tests/cpp/cuda/library).
"""

import os
from collections.abc import Iterator

import pytest
import torch
from devices import EMULATED

from torch_ext import testing

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products; read once, at the first one

# On AVX-512 the default hands many calls to PyTorch: the widest kernels of our own are used instead.
OURS = [name for name in ("scalar", "avx2") if name in testing.isas()]
# About the build, files, other processes, or the CPU's kernels; single tests of other modules are marked cpu_only.
CPU_ONLY = {f"test_{name}" for name in ("benchmarks", "build", "consumer", "ddp", "demo", "docs", "include_rules")}
CPU_ONLY |= {f"test_{name}" for name in ("keras", "loader", "memory", "threads", "which_kernel")}
if EMULATED:
    torch.ops.load_library(EMULATED)
NO_GPU = "no GPU is visible, or this build of torch_ext is for the CPU alone"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = metafunc.module.__name__
    names = OURS if "isa" in metafunc.fixturenames else OURS[-1:]
    if module == "test_cuda":
        names = ["cuda"]
    elif module not in CPU_ONLY and not metafunc.definition.get_closest_marker("cpu_only"):
        names = ["emulated cuda"] if EMULATED else [*names, "cuda"]
    metafunc.parametrize("kernels", names, indirect=True)


@pytest.fixture(autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set, "cuda", or "emulated cuda"."""
    if request.param == "cuda":
        if "cuda" not in testing.devices():
            pytest.skip(NO_GPU)
        cudnn = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.device("cuda"), cudnn:
            yield request.param
    elif request.param == "emulated cuda":
        yield request.param
    elif EMULATED:
        pytest.skip("the ops for the CPU have given way to those for CUDA, on the emulator")
    else:
        with testing.isa(request.param):
            yield request.param


@pytest.fixture
def isa(kernels: str) -> str:
    """For tests that run under each instruction set of ours."""
    return kernels


@pytest.fixture
def deterministic() -> Iterator[None]:
    """For bit-equality on a GPU: atomic additions have one result for any order."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
