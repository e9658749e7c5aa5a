"""Random but realistic convolutions, PyTorch's and ours: python benchmarks/guard.py

Every result is compared with float64. Exits 1 if a pass is slower than 0.95 of PyTorch (0.9 for calls under 0.2 ms) in
three runs of three. The shapes depend on the seed alone. Heap and instruction set are as in bench.py.
"""

import argparse
import math
import random
import sys
from collections.abc import Iterator

import machine
from layers import CONV_PASSES, Layer

MAX_FLOPS, MAX_ELEMENTS = 2e9, 1 << 24


def random_layers(seed: int, count: int) -> Iterator[tuple[Layer, int]]:
    """Layers and batch sizes: channels 1 to 2048, kernels 1 to 11, strides 1 to 3, dilations 1 to 6, maps 1 to 112."""
    draw = random.Random(seed)
    found = 0
    while found < count:
        layer, batch = random_layer(draw, f"random{found}"), draw.choice([1, 1, 2, 4, 8])
        if min(layer.out_spatial) < 1 or layer.flops(batch) > MAX_FLOPS or layer.elements(batch) > MAX_ELEMENTS:
            continue
        found += 1
        yield layer, batch


def random_layer(draw: random.Random, name: str) -> Layer:
    dims = draw.choice([1, 2, 2, 2, 2, 3])
    per_group = draw.choice([1, 1, 1, 2, 4, 8, 16, draw.randint(1, 64)])
    groups = 2 ** draw.randint(0, 10) if draw.random() < 0.7 else draw.randint(1, 64)
    if draw.random() < 0.3:
        groups, per_group = 1, per_group * groups
    per_group = min(per_group, max(1, 2048 // groups))
    outputs = draw.choice([per_group, per_group, 2 * per_group, draw.randint(1, 4 * per_group)])
    kernel = draw.choice([1, 3, 3, 3, 5, 7, draw.randint(1, 11)])
    stride = draw.choice([1, 1, 1, 2, draw.randint(1, 3)])
    dilation = draw.choice([1, 1, 1, 1, 2, draw.randint(1, 6)])
    size = draw.choice([7, 14, 28, 56, 112, draw.randint(1, 112)])
    sizes = {1: (size * draw.choice([1, 4, 16]),), 2: (size, size), 3: (draw.choice([1, 4, 8]), size, size)}[dims]
    padding = draw.choice([dilation * (kernel - 1) // 2] * 3 + [0])
    groups = min(groups, max(1, 2048 // max(per_group, outputs)))
    depthwise = groups > 1 and per_group == 1
    return Layer(
        name=name,
        op="depthwise" if depthwise else "group" if groups > 1 else "pointwise" if kernel == 1 else "conv",
        in_channels=groups * per_group,
        out_channels=groups * outputs,
        groups=groups,
        spatial=sizes,
        kernel=(kernel,) * dims,
        stride=(stride,) * dims,
        padding=((padding, padding),) * dims,
        dilation=(dilation,) * dims,
        network="",
    )


def describe(layer: Layer, batch: int) -> str:
    channels = f"{layer.in_channels} -> {layer.out_channels} in {layer.groups}"
    image = "x".join(map(str, layer.spatial))
    return f"N{batch}, {channels}, {image}, k{layer.kernel[0]} s{layer.stride[0]} d{layer.dilation[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seconds", type=float, default=0.02, help="least time for each pair of calls")
    options = parser.parse_args()
    machine.restart({**machine.PINNED_HEAP, **machine.AVX2_ONLY})

    import rich.console
    import rich.progress
    import rich.table
    import torch
    from bench import measure
    from problems import Problem, check

    import torch_ext  # noqa: F401  (registers the ops)

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.ops.torch_ext._set_isa("avx2")
    console = rich.console.Console(highlight=False, width=170)
    console.print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    table = rich.table.Table("shape", "layout", "pass", "PyTorch, ms", "ours, ms", "ratio", "kernel")
    ratios, below = [], 0
    shapes = list(random_layers(options.seed, options.shapes))
    for layer, batch in rich.progress.track(shapes, console=console, disable=not console.is_terminal):
        problem = Problem(layer, batch)
        expected = problem.expected()
        for layout in ("contiguous", "channels_last"):
            check(problem, expected, options.dtype, layout)
            calls, plain = problem.calls(options.dtype, layout), problem.calls("float32", layout)
            for name in CONV_PASSES:
                arguments = problem, calls, options.dtype, layout, name, options.threads, options.seconds, plain
                row = measure(*arguments)
                for _ in range(2):
                    if "guard" in row["misses"]:
                        row = max(row, measure(*arguments), key=lambda each: each["ratio"])
                ratios.append(row["ratio"])
                if "guard" in row["misses"]:
                    below += 1
                    times = (f"{row[key]:.3f}" for key in ("torch_ms", "ours_ms"))
                    table.add_row(describe(layer, batch), layout, name, *times, f"{row['ratio']:.2f}", row["kernel"])
    console.print(table)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    console.print(
        f"{len(shapes)} shapes, {len(ratios)} passes, all as in float64: {mean:.2f}x PyTorch in the geometric mean, "
        f"{below} below the guard"
    )
    if below:
        sys.exit(1)


if __name__ == "__main__":
    main()
