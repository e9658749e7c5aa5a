"""What machine.py does for a CPU, for a GPU: times by events, copies and multiply-adds a second."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence

import machine
import torch

COPY_SIZES = [2**i << 10 for i in range(10, 21)]  # bytes read and written, 1 MiB to 1 GiB
# Multiply-adds a clock and multiprocessor outside the tensor cores, which our kernels do not use: float32, float64.
LANES = {(7, 0): (64, 32), (7, 5): (64, 2), (8, 0): (64, 32), (9, 0): (128, 64), (10, 0): (128, 64)}
LONGEST_SPIN = 1 << 27  # cycles; for calls that wait for the GPU themselves


@functools.cache
def _cold() -> torch.Tensor:
    """Reading this leaves nothing else in the L2 cache; what is written would have to be written back later."""
    return torch.zeros(torch.cuda.get_device_properties().L2_cache_size, device="cuda")  # four times the cache


def _time(function: Callable[[], object], spin: int) -> tuple[float, int]:
    """Seconds from a cold L2 cache, and the cycles that the GPU has to spin before."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # What problems.Native sets is set before the clock runs.
    with getattr(function, "setting", contextlib.nullcontext)():
        call = getattr(function, "call", function)
        while True:
            _cold().sum()
            # The GPU spins until all is queued, so that no launch is in the time; longer if it was done before.
            torch.cuda._sleep(spin)
            start.record()
            call()
            end.record()
            hidden = not start.query()
            end.synchronize()
            if hidden or spin >= LONGEST_SPIN:
                return 1e-3 * start.elapsed_time(end), spin
            spin *= 2


def least(functions: Sequence[Callable[[], object]], seconds: float, rounds: int = 10) -> list[float]:
    """The least time of each function in seconds, from a cold L2 cache: all in turn, as `machine.least` does."""
    times, spins = [math.inf] * len(functions), [1 << 17] * len(functions)
    for function in functions:  # libraries choose their kernels in the first call
        function()
    begin, done = time.perf_counter(), 0
    while done < rounds or (time.perf_counter() - begin < seconds and done < 1000):
        for i, function in enumerate(functions):
            taken, spins[i] = _time(function, spins[i])
            times[i] = min(times[i], taken)
        done += 1
    return times


def peak(dtype: str, threads: int) -> float:
    """Floating-point operations a second at the highest clock; 16-bit numbers are computed in float32."""
    gpu = torch.cuda.get_device_properties()
    lanes = LANES.get((gpu.major, gpu.minor), (128, 2))[dtype == "float64"]
    return 2 * lanes * gpu.multi_processor_count * 1e3 * gpu.clock_rate  # kHz


@functools.lru_cache(maxsize=1)
def copy(size: int) -> Callable[[], object]:
    """Reads and writes `size` bytes together."""
    source, target = (torch.ones(max(size // 2, 1), dtype=torch.int8, device="cuda") for _ in range(2))
    return lambda: target.copy_(source)


@functools.cache
def bandwidth(size: int, threads: int) -> float:
    """Bytes a second, read and written, of a copy that touches `size` bytes."""
    return size / least([copy(size)], 0.05)[0]


def describe() -> dict[str, object]:
    """The GPU, the machine and the versions, for a file of results."""
    versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {"gpu": torch.cuda.get_device_name(), **versions, **machine.describe()}
