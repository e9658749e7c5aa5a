"""Builds the C++ library and puts it, its header and its CMake files into the package.

The library holds no Python symbol: torch_ext/_loader.py loads it with torch.ops.load_library. So one wheel serves every
Python 3, and the folder torch_ext/ is also a CMake prefix for C++ programs.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import torch
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, include_paths, library_paths

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'"(.+)"', (ROOT / "torch_ext/_version.py").read_text())[1]
TORCH_MINOR = ".".join(torch.__version__.split(".")[:2])

# For the GPU that is there, or for TORCH_CUDA_ARCH_LIST where FORCE_CUDA=1 asks for it. Kernels take the shared memory
# that GPUs have from compute capability 8.0 on.
FORCE_CUDA = os.environ.get("FORCE_CUDA") == "1"
HAS_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
WITH_CUDA = FORCE_CUDA or (HAS_GPU and CUDA_HOME is not None)
if FORCE_CUDA and CUDA_HOME is None:
    sys.exit("torch_ext: FORCE_CUDA=1 needs the CUDA toolkit: nvcc on PATH, or CUDA_HOME")
if torch.cuda.is_available() and not WITH_CUDA:
    print("torch_ext: builds for the CPU alone; GPUs need compute capability 8.0 or higher, and the CUDA toolkit")

if WITH_CUDA:
    if not HAS_GPU:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;12.0+PTX")
    # The toolkit's headers by way of the environment: what is compiled for the CPU has one command for both builds, and
    # so is not compiled again.
    os.environ["CPATH"] = os.pathsep.join([f"{CUDA_HOME}/include", *filter(None, [os.environ.get("CPATH")])])

# This environment's ninja, activated or not: another version would not trust the log and compile everything again.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))


class BuildLibrary(BuildExtension):
    def finalize_options(self) -> None:
        super().finalize_options()
        # Kept between builds, editable ones too, so that only what changed is compiled again.
        self.build_temp = f"build/objects-torch-{torch.__version__}"

    def run(self) -> None:
        super().run()
        library = Path(self.get_ext_fullpath("torch_ext.lib.libtorch_ext"))
        library.with_suffix(".torch").write_text(torch.__version__ + "\n")
        for folder, files in {"include": ["csrc/torch_ext.h"], "share/cmake/TorchExt": Path("cmake").iterdir()}.items():
            target = library.parent.parent / folder
            target.mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copy(file, target)

    def copy_extensions_to_source(self) -> None:
        Path("torch_ext/lib").mkdir(exist_ok=True)
        super().copy_extensions_to_source()


class AnyPython(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


def sources() -> list[str]:
    """All of csrc, but for what only the other kind of build has."""
    found = [path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".cu")]
    only_cuda = {path for path in found if path.is_relative_to("csrc/cuda")}
    left_out = {Path("csrc/ops/cuda_missing.cpp")} if WITH_CUDA else only_cuda
    return sorted(str(path) for path in found if path not in left_out)


library = Extension(
    "torch_ext.lib.libtorch_ext",
    sources=sources(),
    include_dirs=[str(ROOT / "csrc")],
    define_macros=[("TORCH_EXT_VERSION", f'"{VERSION}"')],
    extra_compile_args={
        "cxx": [
            *("-std=c++20", "-O3", "-g0", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden"),
            *("-Wall", "-Wextra"),
            *(f"-isystem{path}" for path in include_paths()),
        ],
        "nvcc": ["-std=c++20", "-O3", "-Xptxas=-v", "-Xcompiler=-fvisibility=hidden,-Wall,-Wextra"],
    },
    # OpenMP and CUDA's runtime are used but not linked: the symbols come from the copies that PyTorch's libraries use.
    libraries=["c10", "torch_cpu", *(["c10_cuda"] if WITH_CUDA else [])],
    library_dirs=library_paths(),
    # With it a C++ program has PyTorch's own ops on a GPU, too.
    extra_link_args=["-Wl,--no-as-needed", "-ltorch_cuda"] if WITH_CUDA else [],
    runtime_library_dirs=["$ORIGIN/../../torch/lib"],
    language="c++",
    py_limited_api=True,
)

setup(
    ext_modules=[library],
    cmdclass={"build_ext": BuildLibrary.with_options(no_python_abi_suffix=True), "bdist_wheel": AnyPython},
    install_requires=[f"torch=={TORCH_MINOR}.*"],
    zip_safe=False,
)
