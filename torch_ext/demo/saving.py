"""Saves the trained network, and runs it in a process that has the shared library but not the Python package."""

import subprocess
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

SCRIPTED, EXPORTED = "digits_scripted.pt", "digits_exported.pt2"

# All that a user of the saved files needs. It is run with `python -c` in their folder.
FRESH_PROCESS = f"""
import sys
import torch

torch.ops.load_library(sys.argv[1])
images = torch.load("images.pt")
with torch.no_grad():
    outputs = [
        torch.jit.load("{SCRIPTED}")(images),
        torch.export.load("{EXPORTED}").module()(images),
    ]
assert "torch_ext" not in sys.modules
torch.save(outputs, "outputs.pt")
"""


def save(net: nn.Module, images: Tensor, folder: Path) -> None:
    """Writes the network in both formats; both take a batch of any size."""
    net.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer releases of torch call TorchScript deprecated
        torch.jit.script(net).save(folder / SCRIPTED)
    exported = torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(exported, folder / EXPORTED)


def run_in_fresh_process(library: Path, images: Tensor, folder: Path) -> tuple[Tensor, Tensor]:
    """What the scripted and the exported network give there."""
    inputs, outputs = folder / "images.pt", folder / "outputs.pt"
    torch.save(images, inputs)
    command = [sys.executable, "-W", "ignore", "-c", FRESH_PROCESS, str(library)]
    try:
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if process.returncode:
            raise RuntimeError(f"the fresh process stopped with code {process.returncode}:\n{process.stderr}")
        scripted, exported = torch.load(outputs)
    finally:
        inputs.unlink()
        outputs.unlink(missing_ok=True)
    return scripted, exported
