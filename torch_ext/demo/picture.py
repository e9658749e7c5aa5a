"""Draws the loss curves of both trainings and the times of the converted models."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torch_ext.demo.conversion import Row, Times
from torch_ext.demo.training import History

OURS, TORCH, INK = "#d1495b", "#30638e", "#444444"


def draw(ours: History, twin: History, rows: Sequence[Row], path: Path) -> None:
    style = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "axes.titlesize": 11,
             "axes.titlelocation": "left", "axes.edgecolor": INK, "axes.axisbelow": True}  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(14, 8.5), layout="constrained")
        axes = figure.subplots(2, 2, width_ratios=[1, 1.35])
        draw_losses(axes[0, 0], ours, twin)
        draw_drift(axes[1, 0], ours, twin)
        draw_times(axes[0, 1], "Forward, eval mode", rows, [row.forward for row in rows])
        draw_times(axes[1, 1], "Forward + backward, train mode", rows, [row.training for row in rows])
        figure.savefig(path, dpi=110)


def draw_losses(axes: Axes, ours: History, twin: History) -> None:
    for history, name, color, line in ((twin, "torch.nn", TORCH, "-"), (ours, "torch_ext.nn", OURS, "--")):
        label = f"{name}: {history.accuracies[-1]:.1%} of the held-out scans right"
        axes.plot(history.losses, line, color=color, label=label, linewidth=1.4, alpha=0.9)
    axes.set(title="Training on handwritten digits", xlabel="step", ylabel="loss (labels smoothed by 0.1)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def draw_drift(axes: Axes, ours: History, twin: History) -> None:
    drift = [abs(a - b) for a, b in zip(ours.losses, twin.losses, strict=True)]
    axes.semilogy([value or None for value in drift], ".", color=INK, markersize=4)  # no logarithm of nothing
    axes.set(title="Rounding drives the two apart: same start, same batches", xlabel="step",
             ylabel="difference of the losses")  # fmt: skip
    axes.grid(alpha=0.25)


def draw_times(axes: Axes, title: str, rows: Sequence[Row], times: Sequence[Times]) -> None:
    """A pair of bars for every model and layout, with the verdict above."""
    places = range(len(rows))
    width = 0.38
    for side, color, label in ((-1, TORCH, "torch.nn"), (1, OURS, "after torch_ext.convert")):
        heights = [1e3 * (time.torch if side < 0 else time.ours) for time in times]
        axes.bar([place + side * width / 2 for place in places], heights, width, color=color, label=label)
    for place, time in enumerate(times):
        axes.annotate(time.verdict.replace(" ", "\n"), (place, 1e3 * max(time.torch, time.ours)), (0, 3),
                      textcoords="offset points", ha="center", fontsize=8.5, color=INK)  # fmt: skip
    axes.set_xticks(places, [f"{row.model}\n{row.layout}" for row in rows], fontsize=7.5, rotation=30, ha="right")
    axes.set(title=title, ylabel="ms (least of several rounds)")
    axes.margins(y=0.15)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False, loc="upper left")
