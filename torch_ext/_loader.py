"""Loads the C++ library, whose ops then live in torch.ops.torch_ext."""

import json
from pathlib import Path

import torch

LIBRARY = Path(__file__).parent / "lib" / "libtorch_ext.so"
_BUILD = "pip install --no-build-isolation ."


def load(library: Path = LIBRARY) -> None:
    """Loads the library, or raises an ImportError that says what is wrong and what to do about it."""
    if not library.exists():
        raise ImportError(
            f"torch_ext: the library {library} does not exist. Likely causes: torch_ext was not built, or this is a "
            f"source tree and the built copy is elsewhere. In the source tree, run: {_BUILD}"
        )
    record = library.with_suffix(".torch")  # written by setup.py and CMake: the torch that it was built with
    built_with = record.read_text().strip() if record.exists() else None
    if built_with and _minor(built_with) != _minor(torch.__version__):
        raise ImportError(
            f"torch_ext was built with torch {built_with}, but this is torch {torch.__version__}; a build serves one "
            f"minor release of torch. Build torch_ext again (in the source tree: {_BUILD}) or install "
            f"torch {_minor(built_with)}."
        )
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        raise ImportError(
            f"torch_ext: the library {library} does not load: {error}. Likely causes: it was built with another build "
            f"of torch than {torch.__version__} (recorded: {built_with or 'nothing'}), with a newer compiler than the "
            "libstdc++ found here, or another copy of torch_ext is loaded already. "
            f"To build it again, run in the source tree: {_BUILD}"
        ) from error


def build_info() -> dict:
    """What the library says of itself: versions, compiler, instruction sets, and "cuda": a release or None."""
    return json.loads(torch.ops.torch_ext._build_info())


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
