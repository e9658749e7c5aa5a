"""Whole training and inference steps, plain and converted, in one process: python benchmarks/models.py

A step's least time counts, both sides in turn. Before anything is timed, both give the same output. The heap is pinned
and both sides are held to AVX2, as in bench.py. Floors are those of FLOORS; --floors exits 1 if one is missed.
"""

import argparse
import copy
import sys

import machine

# PyTorch / ours of a float32 training step: contiguous, channels_last.
FLOORS = {
    "mobilenet_v2": (1.15, 1.0),
    "mobilenet_v3_large": (1.15, 1.05),
    "efficientnet_b0": (1.5, 1.07),
    "convnext_tiny": (1.08, 1.08),
}
BFLOAT16_FLOORS = {"mobilenet_v2": 5.0, "mobilenet_v3_large": 5.0, "convnext_tiny": 1.05}
TORCHVISION = (
    *FLOORS,
    *("shufflenet_v2_x1_0", "resnext50_32x4d", "regnet_y_400mf", "regnet_x_3_2gf", "deeplabv3_resnet50"),
)
BLOCKS = ("x3d_block", "conformer_block")


def build(name: str):
    """A model, and the shape of its input without the batch."""
    import torch
    import torchvision
    from torch import nn

    torch.manual_seed(0)
    if name == "x3d_block":  # an inverted bottleneck of X3D: 1x1x1, 3x3x3 depthwise, 1x1x1
        layers = [nn.Conv3d(24, 54, 1, bias=False), nn.BatchNorm3d(54), nn.ReLU()]
        layers += [nn.Conv3d(54, 54, 3, padding=1, groups=54, bias=False), nn.BatchNorm3d(54), nn.SiLU()]
        layers += [nn.Conv3d(54, 24, 1, bias=False), nn.BatchNorm3d(24)]
        return nn.Sequential(*layers), (24, 8, 56, 56)
    if name == "conformer_block":  # the convolution module of a Conformer
        layers = [nn.Conv1d(512, 1024, 1), nn.GLU(1), nn.Conv1d(512, 512, 31, padding=15, groups=512)]
        return nn.Sequential(*layers, nn.BatchNorm1d(512), nn.SiLU(), nn.Conv1d(512, 512, 1)), (512, 512)
    if name == "deeplabv3_resnet50":
        return torchvision.models.segmentation.deeplabv3_resnet50(weights_backbone=None), (3, 224, 224)
    return getattr(torchvision.models, name)(), (3, 224, 224)


def output(result):
    """The tensor of a model's result: torchvision's segmentation models wrap it."""
    return result["out"] if isinstance(result, dict) else result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*TORCHVISION, *BLOCKS], choices=[*TORCHVISION, *BLOCKS])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--layout", nargs="+", default=["contiguous", "channels_last"])
    parser.add_argument("--seconds", type=float, default=3.0, help="least time for each pair of steps")
    parser.add_argument("--floors", action="store_true")
    parser.add_argument("--default-heap", action="store_true")
    options = parser.parse_args()
    machine.restart({**machine.AVX2_ONLY, **({} if options.default_heap else machine.PINNED_HEAP)})

    import rich.box
    import rich.console
    import rich.table
    import torch

    import torch_ext

    torch.set_num_threads(options.threads)
    torch.ops.torch_ext._set_isa("avx2")
    console = rich.console.Console(highlight=False, width=140)
    console.print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    columns = ("model", "layout", "dtype", "step", "PyTorch, ms", "converted, ms", "ratio", "floor")
    table = rich.table.Table(*columns, box=rich.box.MARKDOWN)
    missed = 0
    for name in options.models:
        for dtype in options.dtype:
            for layout in options.layout:
                plain, shape = build(name)
                if layout == "channels_last" and len(shape) == 2:
                    continue  # there is no such format for 1-D
                formats = {3: torch.channels_last, 4: torch.channels_last_3d}
                kind = {"memory_format": formats[len(shape)]} if layout == "channels_last" else {}
                plain = plain.to(getattr(torch, dtype)).to(**kind)
                ours = torch_ext.convert(copy.deepcopy(plain))
                x = torch.randn(options.batch, *shape, dtype=getattr(torch, dtype)).to(**kind)
                with torch.no_grad():
                    expected, actual = (output(model.eval()(x)).float() for model in (plain, ours))
                assert (expected - actual).abs().max() <= 0.05 * expected.abs().max(), name

                def train(model: torch.nn.Module) -> None:
                    model.train().zero_grad()
                    output(model(x)).float().square().mean().backward()

                def infer(model: torch.nn.Module) -> None:
                    with torch.inference_mode():
                        model.eval()(x)

                for step, run in (("training", train), ("inference", infer)):
                    seconds = machine.least([lambda: run(plain), lambda: run(ours)], options.seconds)
                    ratio = seconds[0] / seconds[1]
                    floor = None
                    if step == "training" and dtype == "bfloat16":
                        floor = BFLOAT16_FLOORS.get(name)
                    elif step == "training" and name in FLOORS:
                        floor = FLOORS[name][layout == "channels_last"]
                    short = floor is not None and ratio < floor
                    missed += short
                    cells = [f"{1e3 * s:.1f}" for s in seconds] + [f"{ratio:.2f}"]
                    table.add_row(name, layout, dtype, step, *cells, f"{floor}{' missed' * short}" if floor else "")
    console.print(table)
    if options.floors and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
