"""What machine.py measures of a CPU, of a GPU: times by events, copies, multiply-adds."""

import functools
import math
import time
from collections.abc import Callable, Sequence

import machine
import torch

COPY_SIZES = [2**i << 10 for i in range(10, 21)]  # bytes read and written, 1 MiB to 1 GiB


@functools.cache
def _flush() -> torch.Tensor:
    """Writing this leaves nothing else in the L2 cache, and gives the CPU time to launch what is measured next."""
    cache = getattr(torch.cuda.get_device_properties(), "L2_cache_size", 64 << 20)
    return torch.empty(4 * cache, dtype=torch.int8, device="cuda")


def least(functions: Sequence[Callable[[], object]], seconds: float, rounds: int = 10) -> list[float]:
    """The least time of each function in seconds, from a cold L2 cache: all in turn, as `machine.least` does."""
    times = [math.inf] * len(functions)
    for function in functions:  # libraries choose their kernels in the first call
        function()
    begin, done = time.perf_counter(), 0
    while done < rounds or (time.perf_counter() - begin < seconds and done < 1000):
        for i, function in enumerate(functions):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            _flush().zero_()
            start.record()
            function()
            end.record()
            end.synchronize()
            times[i] = min(times[i], 1e-3 * start.elapsed_time(end))
        done += 1
    return times


@functools.cache
def peak(dtype: str, threads: int) -> float:
    """Floating-point operations a second in a matrix product; 16-bit numbers are computed in float32."""
    kind, size = torch.float64 if dtype == "float64" else torch.float32, 4096
    a, b = (torch.ones(size, size, dtype=kind, device="cuda") for _ in range(2))
    return 2 * size**3 / least([lambda: a @ b], 0.2)[0]


@functools.cache
def bandwidth(size: int, threads: int) -> float:
    """Bytes a second, read and written, of a copy that touches `size` bytes."""
    source, target = (torch.ones(max(size // 8, 1), device="cuda") for _ in range(2))
    return size / least([lambda: target.copy_(source)], 0.05)[0]


def describe() -> dict[str, object]:
    """The GPU, the machine and the versions, for a file of results."""
    return {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, **machine.describe()}
