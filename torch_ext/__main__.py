"""python -m torch_ext info: says what is installed and how it will run here."""

import argparse

import torch

from torch_ext._loader import LIBRARY, build_info


def info() -> str:
    build = build_info()
    rows = {
        "torch_ext": build["version"],
        "torch": f"{torch.__version__} (built with {build['torch']})",
        "compiler": build["compiler"],
        "instruction set": f"{torch.ops.torch_ext._isa()} (this CPU has {', '.join(build['isa_supported'])})",
        "threads": str(torch.get_num_threads()),
        "OpenMP": f"yes ({build['openmp']})" if build["openmp"] else "no: kernels run on one thread",
        "CUDA": f"yes ({build['cuda']})" if build["cuda"] else "no: built for the CPU alone",
        "library": str(LIBRARY),
    }
    return "\n".join(f"{name + ':':17}{value}" for name, value in rows.items())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m torch_ext", description=__doc__)
    parser.add_argument("command", choices=["info"])
    parser.parse_args()
    print(info())


if __name__ == "__main__":
    main()
