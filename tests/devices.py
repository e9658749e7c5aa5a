"""What differs on a GPU: PyTorch's own kernels, and sums whose order differs from run to run."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_ext import which_kernel

Assertion = Callable[..., None]  # of a result and what is expected
EMULATED = os.environ.get("TORCH_EXT_EMULATED_CUDA")  # a library whose ops take the place of those for the CPU
not_emulated = pytest.mark.skipif(EMULATED is not None, reason="PyTorch's part and other processes are the CPU's")


def on_gpu() -> bool:
    """Whether what a test creates lies there."""
    return torch.get_default_device().type == "cuda"


def cuda_ops() -> bool:
    """Whether the ops for CUDA run, there or on the emulator."""
    return on_gpu() or EMULATED is not None


def run_process(script: str) -> str:
    """What a script prints in a process of its own, which survives: on the device of the test, with some GiB there."""
    begin, end = "import resource, torch; resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))", ""
    if on_gpu():
        begin = "import torch; torch.set_default_device('cuda'); torch.cuda.set_per_process_memory_fraction(0.1)"
        end = "torch.cuda.synchronize()"  # where its errors are seen
    command = [sys.executable, "-W", "ignore", "-c", f"{begin}\n{script}\n{end}"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


def passes(check: Callable[..., bool], function: Callable, tensors: list[Tensor], **options: Any) -> bool:
    """Runs torch.autograd.gradcheck or gradgradcheck. On a GPU atomic additions come in any order."""
    nondet_tol = 1e-10 if on_gpu() else 0.0
    with torch.device("cpu"):  # where they draw random numbers, with a generator of their own
        return check(function, tensors, nondet_tol=nondet_tol, **options)


def assert_equal(actual: Tensor, expected: Tensor, what: Any = "") -> None:
    """Asserts that `actual` equals `expected`, rounded once."""
    assert_within(0, actual, expected.to(actual.dtype), what)


def assert_near(actual: Tensor, expected: Tensor, what: Any = "") -> None:
    """Asserts that `actual` is as near as cuDNN comes: in 16 bit, within 2 units in the last place of the largest one,
    for it rounds before it adds the bias, and again; in float32 Winograd's filters lose some.
    """
    largest = expected.abs().max().item() if expected.numel() else 0.0
    relative = {torch.float64: 1e-12, torch.float32: 2e-5}.get(actual.dtype, 2 * torch.finfo(actual.dtype).eps)
    assert_within(relative * largest, actual, expected, what)


def assert_within(tolerance: float, actual: Tensor, expected: Tensor, what: Any) -> None:
    message = lambda text: f"{what}\n{text}"  # noqa: E731
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance, msg=message)


def by_kernel(strict: Assertion, op: str, *args: Any, **kwargs: Any) -> Assertion:
    """How to compare results of a call, and its gradients: strictly, or as near as cuDNN comes, if that takes it."""
    return assert_near if cuda_ops() and "aten" in which_kernel(op, *args, **kwargs) else strict
