"""PyTorch's depthwise convolution and ours, in one process: python benchmarks/compare.py [--threads N] [--isa avx2]

Prints a Markdown table of times in ms (least of several, both sides in turn) as `PyTorch -> ours (ratio)`. The results
are compared before anything is timed. The heap is pinned for both sides (the process restarts itself): fresh pages cost
more than most convolutions.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable

PINNED = {
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "1073741824",
}

# name, batch, channels, size, kernel, stride, dilation, multiplier
LAYERS: list[tuple] = [
    ("3x3, 128 ch, 56²", 8, 128, 56, 3, 1, 1, 1),
    ("3x3 stride 2, 96 ch, 112²", 8, 96, 112, 3, 2, 1, 1),
    ("5x5, 240 ch, 28²", 8, 240, 28, 5, 1, 1, 1),
    ("7x7, 96 ch, 56²", 8, 96, 56, 7, 1, 1, 1),
    ("13x13, 1024 ch, 7²", 2, 1024, 7, 13, 1, 1, 1),
    ("31x31, 128 ch, 56²", 1, 128, 56, 31, 1, 1, 1),
    ("3x3 dilation 2, 128 ch, 28²", 8, 128, 28, 3, 1, 2, 1),
    ("3x3 multiplier 2, 64 ch, 56²", 4, 64, 56, 3, 1, 1, 2),
]


def least(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    """The least time of each function in ms, measured in turn."""
    times = [float("inf")] * len(functions)
    for _ in range(rounds):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            times[i] = min(times[i], 1000 * (time.perf_counter() - start))
    return times


def measure(layer: tuple, layout: str, rounds: int) -> list[str]:
    """A cell for each pass."""
    import torch

    _, n, c, size, k, stride, dilation, multiplier = layer
    pad, format = dilation * (k - 1) // 2, getattr(torch, layout)
    x = torch.randn(n, c, size, size).to(memory_format=format)
    w = torch.randn(c * multiplier, 1, k, k).to(memory_format=format)
    ours = [stride] * 2, [pad] * 4, [dilation] * 2, c
    theirs = [stride] * 2, [pad] * 2, [dilation] * 2, False, [0, 0], c
    conv, conv_backward = torch.ops.torch_ext.conv, torch.ops.torch_ext.conv_backward
    aten_conv, aten_backward = torch.ops.aten.convolution, torch.ops.aten.convolution_backward
    g = torch.randn_like(aten_conv(x, w, None, *theirs))

    passes: list[list[Callable[[], torch.Tensor]]] = [
        [lambda: aten_conv(x, w, None, *theirs), lambda: conv(x, w, None, *ours)],
        [
            lambda: aten_backward(g, x, w, None, *theirs, [True, False, False])[0],
            lambda: conv_backward(g, x, w, *ours, [True, False, False])[0],
        ],
        [
            lambda: aten_backward(g, x, w, None, *theirs, [False, True, False])[1],
            lambda: conv_backward(g, x, w, *ours, [False, True, False])[1],
        ],
    ]
    cells = []
    for pair in passes:
        expected, actual = (function() for function in pair)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        torch_ms, ours_ms = least(pair, rounds)
        cells.append(f"{torch_ms:.2f} -> {ours_ms:.2f} ({torch_ms / ours_ms:.2f})")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--isa", default="avx2", help="whose kernels are ours: scalar or avx2")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if os.environ.keys().isdisjoint(PINNED):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PINNED})

    import torch

    import torch_ext  # noqa: F401  (registers the ops)

    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    torch.ops.torch_ext._set_isa(options.isa)
    cpu = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__} ({cpu}), {options.threads} threads, ours {options.isa}, float32\n")
    print("| layer | layout | forward | grad input | grad weight |\n| --- | --- | --- | --- | --- |")
    for layer in LAYERS:
        for layout in ("contiguous_format", "channels_last"):
            cells = measure(layer, layout, options.rounds)
            print("|", " | ".join([layer[0], layout.removesuffix("_format"), *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
