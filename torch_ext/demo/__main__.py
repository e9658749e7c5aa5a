"""python -m torch_ext.demo [--output DIR] [--quick]"""

import argparse
import importlib.util
import sys
from pathlib import Path

NEEDED = ("sklearn", "torchvision", "matplotlib", "rich")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m torch_ext.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for what the demo saves")
    parser.add_argument("--quick", action="store_true", help="a short version for tests: fewer epochs, a small model")
    options = parser.parse_args(arguments)

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"The demo needs {', '.join(missing)}. Install it by: pip install torch_ext[demo]", file=sys.stderr)
        return 2
    from torch_ext.demo.report import run  # only now, since it imports what was looked for

    return run(options.output, quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
