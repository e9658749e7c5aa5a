"""The build: one wheel for every Python, no Python in the library, CMake without the CUDA toolkit."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch

import torch_ext
from torch_ext._loader import LIBRARY

ROOT = Path(__file__).resolve().parent.parent
MINOR = ".".join(torch.__version__.split(".")[:2])


def run(*command: str | Path, **options) -> str:
    result = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert result.returncode == 0, result.stdout
    return result.stdout


def configure(build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Configures as on a machine without nvcc."""
    path = [folder for folder in os.environ["PATH"].split(os.pathsep) if not Path(folder, "nvcc").exists()]
    env = {name: value for name, value in os.environ.items() if not name.startswith("CUDA")}
    env |= {"PATH": os.pathsep.join(path), "CUDA_HOME": "/nonexistent"}
    command = ["cmake", "-S", ROOT, "-B", build, *options]
    return subprocess.run(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")


@needs_cmake
@pytest.mark.parametrize(
    "option",
    [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}", f"-DPython3_EXECUTABLE={sys.executable}"],
    ids=["prefix path", "python"],
)
def test_cmake_configures_without_cuda(tmp_path: Path, option: str) -> None:
    result = configure(tmp_path, option)
    assert result.returncode == 0, result.stdout
    assert str(Path(torch.__file__).parent) in (tmp_path / "CMakeCache.txt").read_text()


@needs_cmake
def test_cmake_says_how_to_find_torch(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DPython3_EXECUTABLE=/bin/false")
    assert result.returncode != 0
    assert "PyTorch is not found. Set Torch_DIR or CMAKE_PREFIX_PATH" in re.sub(r"\s+", " ", result.stdout)


def test_library_holds_no_python() -> None:
    needed = set(re.findall(r"NEEDED.*\[(.+)\]", run("readelf", "--dynamic", "--wide", LIBRARY)))
    assert {"libtorch_cpu.so", "libc10.so"} <= needed
    assert not {name for name in needed if "python" in name or "cuda" in name}
    symbols = run("nm", "--dynamic", "--undefined-only", LIBRARY).split()
    assert not [symbol for symbol in symbols if symbol.startswith(("Py", "_Py"))]


def test_version_is_written_once() -> None:
    assert metadata.version("torch_ext") == torch_ext.__version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder, ROOT)
    return next(folder.iterdir())


def test_wheel_serves_every_python(wheel: Path) -> None:
    assert re.fullmatch(rf"torch_ext-{re.escape(torch_ext.__version__)}-py3-none-linux_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = archive.read(f"torch_ext-{torch_ext.__version__}.dist-info/METADATA").decode()
    assert {
        "torch_ext/lib/libtorch_ext.so",
        "torch_ext/lib/libtorch_ext.torch",
        "torch_ext/include/torch_ext.h",
        "torch_ext/share/cmake/TorchExt/TorchExtConfig.cmake",
        "torch_ext/py.typed",
    } <= names
    assert f"Requires-Dist: torch=={MINOR}.*" in info
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"torch_ext"}


def test_wheel_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", tmp_path, wheel)
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    code = "import torch_ext; print(torch_ext._loader.LIBRARY)"
    assert run(sys.executable, "-c", code, cwd=tmp_path, env=env).strip() == f"{tmp_path}/torch_ext/lib/libtorch_ext.so"
