"""The demo's four parts in order, what they print, and the promises they check."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import torch_ext
import torch_ext.nn
from torch_ext._loader import LIBRARY
from torch_ext.demo import conversion, network, picture, saving, torch_layers, training
from torch_ext.demo.conversion import Row
from torch_ext.demo.training import Digits, History


@dataclass(frozen=True)
class Settings:
    epochs: int = 12
    accuracy: float = 0.98
    accuracy_gap: float = 0.01
    models: tuple[str, ...] = ("mobilenet_v3_large", "efficientnet_b0", "convnext_tiny", "resnext50_32x4d")
    size: int = 224
    rounds: int = 7


# Two epochs are too few for the accuracies that the demo promises.
QUICK = Settings(epochs=2, accuracy=0.5, accuracy_gap=0.1, models=("mobilenet_v3_small",), size=64, rounds=1)


@dataclass
class Promises:
    """Prints each promise as kept or broken, and remembers the broken ones."""

    console: Console
    broken: list[str] = field(default_factory=list)

    def check(self, kept: bool, text: str) -> None:
        self.console.print(f"[green]kept[/]    {text}" if kept else f"[bold red]BROKEN[/]  {text}")
        if not kept:
            self.broken.append(text)


def run(output: Path, quick: bool = False) -> int:
    """The exit status: 0 if every promise was kept."""
    settings = QUICK if quick else Settings()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 132  # a file or a pipe has no width of its own
    promises = Promises(console)
    start = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    threads, isa = torch.get_num_threads(), torch.ops.torch_ext._isa()
    console.print(f"torch_ext {torch_ext.__version__}, torch {torch.__version__}, {threads} threads, kernels for {isa}")

    console.rule("1. Training on handwritten digits", align="left")
    digits = training.load()
    net, ours, twin = train_both(settings, digits, console, promises)
    console.rule("2. torchvision's models, converted", align="left")
    rows = convert_models(settings, console, promises)
    console.rule("3. Saved, and loaded without the Python package", align="left")
    reload_network(net, digits.held_out_images, output, console, promises)
    console.rule("4. Picture", align="left")
    path = output / "demo.png"
    picture.draw(ours, twin, rows, path)
    console.print(f"Loss curves and times: {path.resolve()}", soft_wrap=True)

    console.rule(align="left")
    if promises.broken:
        console.print(f"[bold red]{len(promises.broken)} broken:[/] " + "; ".join(promises.broken))
        return 1
    console.print(f"Every promise kept, in {time.perf_counter() - start:.0f} s.")
    return 0


def progress_bar(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=console)


def train_both(
    settings: Settings, digits: Digits, console: Console, promises: Promises
) -> tuple[nn.Module, History, History]:
    nets = {"torch_ext.nn": network.build(torch_ext.nn), "torch.nn": network.build(torch_layers)}
    net, twin = nets.values()
    sizes = len(digits.labels), len(digits.held_out_labels)
    console.print(
        f"{sizes[0]} scans to learn from, {sizes[1]} held out. An Xception-like network, twice: made of torch_ext.nn "
        "and of torch.nn."
    )
    first = training.compare_first_step(net, twin, digits.images[:64], digits.labels[:64])
    promises.check(first.weights == 0, "the same seed gives equal initial weights")
    promises.check(first.loss <= 1e-5, f"first loss within 1e-5 (difference {first.loss:.1e})")
    promises.check(first.gradients <= 1e-5, f"first gradients within 1e-5 (largest difference {first.gradients:.1e})")

    histories = []
    with progress_bar(console) as progress:
        for name, each in nets.items():
            steps = training.steps(digits, settings.epochs)
            task = progress.add_task(f"{name:12}", total=steps, note="")

            def on_step(history: History, task=task) -> None:
                progress.update(task, completed=len(history.losses), note=f"loss {history.losses[-1]:.3f}")

            histories.append(training.train(each, digits, settings.epochs, on_step=on_step))
    ours, theirs = histories
    console.print(curves(ours, theirs))
    console.print(
        "The two sum the same products in another order, so that last bits differ; each step magnifies that, and "
        "the curves drift apart. Neither is the better one."
    )
    gap = abs(ours.accuracies[-1] - theirs.accuracies[-1])
    promises.check(
        ours.accuracies[-1] >= settings.accuracy,
        f"at least {settings.accuracy:.0%} of the held-out scans right ({ours.accuracies[-1]:.2%})",
    )
    promises.check(
        gap <= settings.accuracy_gap,
        f"accuracies within {100 * settings.accuracy_gap:.0f} point(s) of each other ({100 * gap:.2f})",
    )
    # A time is no promise: another process on the same cores can multiply it.
    console.print(f"Training took {ours.seconds:.1f} s (torch.nn: {theirs.seconds:.1f} s).")
    return net, ours, theirs


def plain_table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def curves(ours: History, twin: History) -> Table:
    table = plain_table("Mean loss of an epoch, accuracy on the held-out scans after it", "epoch")
    for name in ("loss, torch_ext", "loss, torch", "difference", "right, torch_ext", "right, torch"):
        table.add_column(name, justify="right")
    for epoch in range(len(ours.accuracies)):
        losses = ours.epoch_loss(epoch), twin.epoch_loss(epoch)
        shown = f"{losses[0]:.4f}", f"{losses[1]:.4f}", f"{abs(losses[0] - losses[1]):.1e}"
        table.add_row(f"{epoch + 1}", *shown, f"{ours.accuracies[epoch]:.2%}", f"{twin.accuracies[epoch]:.2%}")
    return table


def convert_models(settings: Settings, console: Console, promises: Promises) -> list[Row]:
    size = settings.size
    console.print(
        f"Random weights from a fixed seed; a photo and its mirror image, [2, 3, {size}, {size}]; float32. Times are "
        f"the least of {settings.rounds} rounds, taken in turn: eval mode forward, train mode forward + backward."
    )
    rows: list[Row] = []
    with progress_bar(console) as progress:
        task = progress.add_task("timing", total=len(settings.models) * len(conversion.LAYOUTS), note="")
        for name in settings.models:
            progress.update(task, note=name)
            for row in conversion.compare(name, size, settings.rounds):
                rows.append(row)
                progress.advance(task)
        progress.update(task, note="")
    console.print(times(rows))
    console.print(
        "converted: layers that torch_ext has a kernel for, of all convolutions; the others stay torch's.\n"
        "difference: of the logits, the largest, relative to the largest logit."
    )
    if torch.ops.torch_ext._isa() == "avx512":
        console.print(
            "On this CPU, what PyTorch has faster AVX-512 kernels for stays with it; TORCH_EXT_ISA=avx2 forces ours."
        )
    worst = max(rows, key=lambda row: row.difference)
    promises.check(
        worst.difference <= 1e-4, f"logits agree to 1e-4 (largest difference {worst.difference:.1e}, {worst.model})"
    )
    return rows


def times(rows: list[Row]) -> Table:
    table = plain_table("torch -> torch_ext", "model", "converted", "layout", "difference")
    for name in ("forward, ms", "forward and back, ms"):
        table.add_column(name, justify="right")
        table.add_column()
    for row in rows:
        new = row.layout == next(iter(conversion.LAYOUTS))
        if new:
            table.add_section()
        model = (row.model, f"{row.converted} of {row.convolutions}") if new else ("", "")
        cells = [text for each in (row.forward, row.training) for text in (str(each), colored(each.verdict))]
        table.add_row(*model, row.layout, f"{row.difference:.0e}", *cells)
    return table


def colored(verdict: str) -> str:
    color = {"faster": "green", "slower": "red"}.get(verdict.split()[-1])
    return f"[{color}]{verdict}[/]" if color else verdict


def reload_network(net: nn.Module, images: Tensor, output: Path, console: Console, promises: Promises) -> None:
    saving.save(net, images, output)
    with torch.no_grad():
        expected = net.eval()(images)
    console.print("A fresh Python process imports torch and calls torch.ops.load_library; it never imports torch_ext.")
    results = saving.run_in_fresh_process(LIBRARY, images, output)
    for name, file, result in zip(("scripted", "exported"), (saving.SCRIPTED, saving.EXPORTED), results, strict=True):
        difference = (result - expected).abs().max().item()
        exact = "equal to the bit" if torch.equal(result, expected) else f"largest difference {difference:.1e}"
        promises.check(difference <= 1e-6, f"{name} network ({file}): same outputs within 1e-6 there ({exact})")
