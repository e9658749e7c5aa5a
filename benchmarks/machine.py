"""What the machine can do, measured in the process that measures the kernels: multiply-adds and copies a second."""

import bisect
import ctypes
import functools
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent

# glibc gives freed pages back, and a fresh page costs more than most convolutions do.
PINNED_HEAP = {
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "1073741824",
}
# PyTorch's kernels as they are on a CPU without AVX-512.
AVX2_ONLY = {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
CHILD = "TORCH_EXT_BENCHMARK_CHILD"


def restart(environment: dict[str, str]) -> None:
    """Starts this program once more with the environment that a process can only be born with."""
    if CHILD not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment, CHILD: "1"})


def least(functions: Sequence[Callable[[], object]], seconds: float, rounds: int = 3) -> list[float]:
    """The least time of each function in seconds: all in turn, for `rounds` rounds and `seconds` at least.

    A first call that takes more than 2 s is the only one of its function.
    """
    times = [math.inf] * len(functions)
    start, done = time.perf_counter(), 0
    while done < rounds or (time.perf_counter() - start < seconds and done < 1000):
        for i, function in enumerate(functions):
            if done and times[i] > 2:
                continue
            begin = time.perf_counter()
            function()
            times[i] = min(times[i], time.perf_counter() - begin)
        done += 1
        if min(times) > 2:
            break
    return times


@functools.cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "machine.so")
        flags = ["-O2", "-mavx2", "-mfma", "-shared", "-fPIC"]
        subprocess.run(["g++", *flags, HERE / "machine.cpp", "-o", path], check=True)
        library = ctypes.CDLL(str(path))
    library.fma_float32.restype, library.fma_float32.argtypes = ctypes.c_float, [ctypes.c_int64]
    library.fma_float64.restype, library.fma_float64.argtypes = ctypes.c_double, [ctypes.c_int64]
    return library


@functools.cache
def peak(dtype: str, threads: int) -> float:
    """Floating-point operations a second; 16-bit numbers are computed in float32."""
    rounds, lanes = 4_000_000, 4 if dtype == "float64" else 8
    run = _library().fma_float64 if dtype == "float64" else _library().fma_float32
    with ThreadPoolExecutor(threads) as pool:
        seconds = least([lambda: list(pool.map(run, [rounds] * threads))], 0.2)[0]
    return 2 * 12 * lanes * rounds * threads / seconds


COPY_SIZES = [2**i << 10 for i in range(6, 19)]  # bytes read and written, 64 KiB to 256 MiB


@functools.cache
def _measured_bandwidth(size: int, threads: int) -> float:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    pairs = [(torch.ones(size // 8), torch.ones(size // 8)) for _ in range(2)]
    seconds = least([functools.partial(target.copy_, source) for target, source in pairs], 0.2)
    torch.set_num_threads(before)
    return size / min(seconds)


def bandwidth(size: int, threads: int) -> float:
    """Bytes a second, read and written, of a copy that touches `size` bytes; between measured sizes, their line.

    Two copies take turns, as the two sides of the benchmark do: each finds in the caches what the other has left.
    """
    i = bisect.bisect_left(COPY_SIZES, size)
    if i in (0, len(COPY_SIZES)):
        return _measured_bandwidth(COPY_SIZES[min(i, len(COPY_SIZES) - 1)], threads)
    share = math.log2(size / COPY_SIZES[i - 1])
    below, above = (_measured_bandwidth(COPY_SIZES[k], threads) for k in (i - 1, i))
    return below ** (1 - share) * above**share


def describe() -> dict[str, object]:
    """The machine and the versions, for a file of results."""
    import torch

    import torch_ext

    def output(*command: str) -> str:
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout.strip()

    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "pytorch_isa": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "torch_ext": torch_ext.__version__,
        "isa": torch.ops.torch_ext._isa(),
        "commit": output("git", "describe", "--always", "--dirty"),
        "heap": "pinned" if os.environ.keys() >= PINNED_HEAP.keys() else "default",
    }
