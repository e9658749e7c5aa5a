"""PyTorch's convolutions and ours, layer by layer, in one process: python benchmarks/bench.py --op depthwise

Every result is compared with float64 before it is timed. Both sides run in turn and the least time counts; what is
reported is times in ms, PyTorch / ours, and the share of the roofline that ours reaches: the least time that the
machine's multiply-adds and copies (measured here, at the layer's size) allow.

With --device cuda each call begins with a cold L2 cache. PyTorch is then the faster of its own depthwise kernel ("ATen"
in the tables) and cuDNN, or torchvision; "copy" is the share of the bandwidth of a copy of the layer's size.

The process restarts itself with the heap pinned, since fresh pages cost more than most convolutions (--default-heap:
as users have it), and with both sides held to AVX2 (--isa native: as the CPU is; scalar: our portable kernels).
"""

import argparse
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import machine
from layers import PASSES, Layer, family, floors, guard, read_layers

BATCHES = {"cpu": [1, 8], "cuda": [32, 128]}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ops = sorted({layer.op for layer in read_layers()})
    parser.add_argument("--op", action="append", choices=ops, help="default: all")
    parser.add_argument("--filter", default="", help="only layers whose name or family has this in it")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, nargs="+", help=f"default: {BATCHES}")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="float32, float64, bfloat16, float16 or all")
    parser.add_argument("--layout", nargs="+", default=["contiguous", "channels_last"])
    parser.add_argument("--passes", nargs="+", default=PASSES, choices=PASSES)
    parser.add_argument("--isa", default="avx2", choices=["avx2", "scalar", "native"])
    parser.add_argument("--pytorch-native", action="store_true", help="hold only ours to --isa")
    parser.add_argument("--seconds", type=float, default=0.15, help="least time for each pair of calls")
    parser.add_argument("--floors", action="store_true", help="exit 1 if a floor is missed in three runs of three")
    parser.add_argument("--short", action="store_true", help="print only what misses its floor")
    parser.add_argument(
        "--save",
        metavar="FILE.json",
        help="results, and beside them a plot for each family; of a GPU always, by default in benchmarks/results",
    )
    parser.add_argument("--compare", metavar="FILE.json", help="times our results of an earlier --save")
    parser.add_argument("--default-heap", action="store_true")
    options = parser.parse_args()
    if options.dtype == ["all"]:
        options.dtype = ["float32", "float64", "bfloat16", "float16"]
    options.batch = options.batch or BATCHES[options.device]
    if options.device == "cuda":
        options.threads, options.isa = [1], "native"
    return options


def batches(layer: Layer, wanted: list[int]) -> list[int]:
    """Several large images at once would say nothing that one does not: then one."""
    return [n for n in wanted if n == 1 or layer.elements(n) < 1 << 26] or [1]


def yardsticks(device: str) -> ModuleType:
    """`least`, `peak`, `bandwidth` and more of the device."""
    return importlib.import_module("gpu") if device == "cuda" else machine


def measure(problem, calls, dtype: str, layout: str, pass_name: str, threads: int, seconds: float, plain) -> dict:
    """One row of the results."""
    device = yardsticks(problem.device)
    layer, batch = problem.layer, problem.tensors[0].size(0)
    sides = dict(zip(("torch", "ours", *problem.others), calls[pass_name]))
    if dtype != "float32":
        sides["float32"] = plain[pass_name][1]
    size = layer.elements(batch) * {"float64": 8, "float32": 4}.get(dtype, 2)
    if problem.device == "cuda":
        sides["copy"] = device.copy(size)
    times = dict(zip(sides, device.least([*sides.values()], seconds)))
    torch_s, ours_s = min(times[name] for name in ("torch", "aten", "cudnn") if name in times), times["ours"]
    if sides["torch"] is sides["ours"]:
        torch_s = ours_s = min(torch_s, ours_s)
    flops = layer.flops(batch) * (3 if pass_name == "training" else 1)
    copy_s = times["copy"] if "copy" in times else size / device.bandwidth(size, threads)
    least_s = max(flops / device.peak(dtype, threads), copy_s)
    row = {
        "device": problem.device,
        "op": layer.op,
        "family": family(layer),
        "layer": layer.name,
        "batch": batch,
        "layout": layout,
        "dtype": dtype,
        "threads": threads,
        "pass": pass_name,
        "torch_ms": 1e3 * torch_s,
        "ours_ms": 1e3 * ours_s,
        "ratio": torch_s / ours_s,
        "gflops": flops / ours_s / 1e9,
        "gbytes": size / ours_s / 1e9,
        "roofline": least_s / ours_s,
        "kernel": problem.kernel(dtype, layout, pass_name),
    }
    row |= {f"of_{name}": times[name] / ours_s for name in times if name not in ("torch", "ours")}
    least_of = floors(layer, batch, layout, dtype, pass_name, problem.device)
    row["misses"] = {name: f"{row[name]:.2f} < {floor:.2f}" for name, floor in least_of.items() if row[name] < floor}
    if row["ratio"] < guard(torch_s):
        row["misses"]["guard"] = f"{row['ratio']:.2f} < {guard(torch_s):.2f}"
    return row


def rows(options: argparse.Namespace) -> Iterator[dict]:
    import torch
    from problems import check, make_problem

    torch.set_num_threads(max(options.threads))
    for layer in read_layers():
        if options.op and layer.op not in options.op:
            continue
        if options.filter not in layer.name and options.filter not in family(layer):
            continue
        for batch in batches(layer, options.batch):
            problem = make_problem(layer, batch, options.device)
            expected = problem.expected()
            for dtype in options.dtype:
                for layout in options.layout:
                    torch.set_num_threads(max(options.threads))
                    check(problem, expected, dtype, layout)
                    calls, plain = problem.calls(dtype, layout), problem.calls("float32", layout)
                    for threads in options.threads:
                        torch.set_num_threads(threads)
                        for name in [name for name in calls if name in options.passes]:
                            arguments = problem, calls, dtype, layout, name, threads, options.seconds, plain
                            row = measure(*arguments)
                            for _ in range(2 if options.floors else 0):  # a neighbour may have been at work
                                if row["misses"]:
                                    again = measure(*arguments)
                                    for met in row["misses"].keys() - again["misses"].keys():
                                        del row["misses"][met]
                            yield row


def main() -> None:
    options = parse()
    environment = {} if options.default_heap else machine.PINNED_HEAP
    if options.isa == "avx2" and not options.pytorch_native:
        environment = {**environment, **machine.AVX2_ONLY}
    machine.restart(environment)

    import report
    import torch

    from torch_ext import testing

    torch.manual_seed(0)
    if options.isa != "native":
        torch.ops.torch_ext._set_isa(options.isa)
    if options.device not in testing.devices():
        sys.exit("bench.py: --device cuda needs a GPU, and a build of torch_ext with CUDA")
    if options.device == "cuda":
        card = torch.cuda.get_device_name().lower().replace(" ", "-")
        name = "-".join(filter(None, [card, *(options.op or []), options.filter]))
        options.save = options.save or str(Path(__file__).parent / "results" / f"{name}.json")
    device = yardsticks(options.device)
    header = device.describe()
    report.print_header(header, options, device)
    table = report.Table(options)
    results = []
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        for row in rows(options):
            results.append(row)
            table.add(row)
    table.close()
    short = report.print_summary(results)
    if options.save:
        report.save(options.save, header, results)
    if options.floors and short:
        sys.exit(1)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    main()
