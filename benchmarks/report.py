"""Results of bench.py as tables, a file and plots."""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean
from types import ModuleType

import rich.box
import rich.console
import rich.table
from layers import PASSES

CONSOLE = rich.console.Console(highlight=False, width=170)
# Their time / ours.
SHARES = {
    "of_two_ops": "two ops",
    "of_plain": "plain",
    "of_aten": "ATen",
    "of_cudnn": "cuDNN",
    "of_copy": "copy",
}
KEY = ("device", "op", "layer", "batch", "layout", "dtype", "threads", "pass")


def print_header(header: dict, options: argparse.Namespace, device: ModuleType) -> None:
    CONSOLE.print(", ".join(f"{name} {value}" for name, value in header.items()))
    for threads in options.threads:
        copies = [f"{size >> 10} KiB {device.bandwidth(size, threads) / 1e9:.0f}" for size in device.COPY_SIZES[2::2]]
        CONSOLE.print(
            f"{threads} threads: {device.peak('float32', threads) / 1e9:.0f} GFLOP/s in float32, "
            f"{device.peak('float64', threads) / 1e9:.0f} in float64; copies, GB/s: " + ", ".join(copies)
        )
    CONSOLE.print()


def key(row: dict) -> tuple:
    return tuple({"device": "cpu", **row}[name] for name in KEY)  # older files are of CPUs


class Table:
    """Rows as they come, a table for each layer."""

    COLUMNS = ("batch", "layout", "dtype", "threads", "pass", "torch", "ours", "ratio", "GFLOP/s", "GB/s", "roofline")

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.layer: tuple[str, str] | None = None
        self.rows: list[dict] = []
        self.earlier = {}
        if options.compare:
            old = json.loads(Path(options.compare).read_text())["results"]
            self.earlier = {key(row): row for row in old}

    def add(self, row: dict) -> None:
        if (row["op"], row["layer"]) != self.layer:
            self.close()
            self.layer = row["op"], row["layer"]
        if row["misses"] or not self.options.short:
            self.rows.append(row)

    def close(self) -> None:
        if not self.rows:
            return
        first = self.rows[0]
        table = rich.table.Table(title=f"{first['op']} {first['layer']} ({first['family']})", title_justify="left")
        for name in self.COLUMNS:
            table.add_column(name, justify="left" if name in ("layout", "dtype", "pass") else "right")
        shares = [share for share in SHARES if any(share in row for row in self.rows)]
        for share in shares:
            table.add_column(SHARES[share], justify="right")
        if self.earlier:
            table.add_column("was", justify="right")
        table.add_column("kernel")
        table.add_column("short of its floor")
        for row in self.rows:
            cells = [str(row[name]) for name in ("batch", "layout", "dtype", "threads", "pass")]
            cells += [f"{row[name]:.3f}" for name in ("torch_ms", "ours_ms")]
            cells += [f"{row['ratio']:.2f}", f"{row['gflops']:.1f}", f"{row['gbytes']:.1f}", f"{row['roofline']:.2f}"]
            cells += [f"{row[share]:.2f}" if share in row else "" for share in shares]
            if self.earlier:
                old = self.earlier.get(key(row))
                cells.append(f"{old['ours_ms'] / row['ours_ms']:.2f}x" if old else "")
            table.add_row(
                *cells,
                row["kernel"],
                ", ".join(f"{name} {text}" for name, text in row["misses"].items()),
                style="red" if "guard" in row["misses"] else "",
            )
        CONSOLE.print(table)
        self.rows = []


def print_summary(results: list[dict]) -> int:
    """A line for each family, layout and dtype: means and the worst. Returns how many rows are short of a floor."""
    groups = defaultdict(list)
    for row in results:
        groups[row["op"], row["family"], row["layout"], row["dtype"]].append(row)
    CONSOLE.print("PyTorch / ours: geometric mean (least); share of the roofline", style="italic")
    table = rich.table.Table(box=rich.box.MARKDOWN)
    shares = [f"of {name}" for name in SHARES.values()]
    for name in ("op", "family", "layout", "dtype", *PASSES, *shares, "roofline", "short", "below guard"):
        table.add_column(name)
    for group, rows in groups.items():
        cells = []
        for name in PASSES:
            ratios = [row["ratio"] for row in rows if row["pass"] == name]
            cells.append(f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})" if ratios else "")
        for share in (*SHARES, "roofline"):
            shares = [row[share] for row in rows if share in row]
            cells.append(f"{geometric_mean(shares):.2f} ({min(shares):.2f})" if shares else "")
        cells += [
            f"{sum(bool(row['misses']) for row in rows)}/{len(rows)}",
            str(sum("guard" in r["misses"] for r in rows)),
        ]
        table.add_row(*group, *cells)
    CONSOLE.print(table)
    short = sum(bool(row["misses"]) for row in results)
    guarded = sum("guard" in row["misses"] for row in results)
    CONSOLE.print(f"{short} of {len(results)} rows are short of a floor, {guarded} below the guard")
    return short


def save(path: str, header: dict, results: list[dict]) -> None:
    """The results as JSON, and a plot for each op and family: PyTorch / ours, by layer and pass."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({**header, "results": results}, indent=1))
    groups = defaultdict(list)
    for row in results:
        groups[row["op"], row["family"]].append(row)
    for (op, family), rows in groups.items():
        name = f"{op}-{family}".replace(", ", "-").replace("<= ", "to").replace("> ", "over").replace(" ", "-")
        _plot(
            Path(path).with_suffix("").parent / f"{Path(path).stem}-{name}.png",
            ", ".join([op, family, *([header["gpu"]] if "gpu" in header else [])]),
            rows,
        )
    CONSOLE.print(f"saved {path}")


def _plot(path: Path, title: str, rows: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = sorted({f"{row['layer']}, {row['dtype']}" for row in rows})
    passes = [name for name in PASSES if any(row["pass"] == name for row in rows)]
    size = 13, 1.5 + 0.4 * len(labels)
    figure, grid = plt.subplots(1, len(passes), sharey=True, squeeze=False, figsize=size, layout="constrained")
    axes = grid[0]
    for axis, name in zip(axes, passes):
        for layout, marker in (("contiguous", "s"), ("channels_last", "o")):
            chosen = [row for row in rows if row["pass"] == name and row["layout"] == layout]
            y = [labels.index(f"{row['layer']}, {row['dtype']}") for row in chosen]
            axis.scatter([row["ratio"] for row in chosen], y, marker=marker, alpha=0.6, label=layout)
        axis.axvline(1, color="gray")
        axis.set(xscale="log", title=name, xlabel="PyTorch's time / ours")
        axis.set_yticks(range(len(labels)), labels)
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
    plt.close(figure)
