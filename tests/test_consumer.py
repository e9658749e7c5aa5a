"""A C++ program finds torch_ext by CMake, calls it, and runs a scripted model with no Python in the process."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import torch_ext
from torch_ext._loader import LIBRARY

SOURCE = Path(__file__).resolve().parent / "cpp" / "consumer"
# An installed copy: of `cmake --install` where TORCH_EXT_PREFIX names it, else the Python package itself.
PREFIX = os.environ.get("TORCH_EXT_PREFIX", str(LIBRARY.parent.parent))

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")


def run(*command: str | Path, **options) -> str:
    result = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def consumer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("consumer")
    run("cmake", "-S", SOURCE, "-B", build, f"-DCMAKE_PREFIX_PATH={PREFIX};{torch.utils.cmake_prefix_path}")
    run("cmake", "--build", build)
    return build / "consumer"


class Network(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            torch_ext.nn.Conv2d(3, 8, 3, stride=2, padding="same"),
            nn.ReLU(),
            torch_ext.nn.DepthwiseConv2d(8, 3, padding=1, depth_multiplier=2),
            nn.ReLU(),
            torch_ext.nn.SeparableConv2d(16, 8, 3, stride=2, padding="same_lower"),
            torch_ext.nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4),
        )


def test_program_runs_scripted_model(consumer: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, image = Network().eval(), torch.randn(2, 3, 33, 34)
    torch.jit.script(network).save(tmp_path / "model.pt")
    torch.save(image, tmp_path / "input.pt")
    torch.save(network(image).detach(), tmp_path / "expected.pt")
    output = run(consumer, "model.pt", "input.pt", "expected.pt", cwd=tmp_path, env={})
    assert output.endswith("consumer: OK\n")


def test_no_python_in_the_process(consumer: Path) -> None:
    libraries = run("ldd", consumer)
    assert "libtorch_ext.so" in libraries
    assert "python" not in libraries.replace(str(Path(torch.__file__).parent), "")


def test_other_minor_release_of_torch_is_refused(tmp_path: Path) -> None:
    for folder in ("lib", "include", "share"):
        shutil.copytree(Path(PREFIX, folder), tmp_path / folder)
    (tmp_path / "lib/libtorch_ext.torch").write_text("1.13.1\n")
    prefixes = f"{tmp_path};{torch.utils.cmake_prefix_path}"
    command = ["cmake", "-S", SOURCE, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefixes}"]
    result = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode != 0
    assert "built with torch 1.13.1" in " ".join(result.stdout.split())
