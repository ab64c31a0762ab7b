"""Start the command, or say in one line what this Python lacks for it: pip may have installed no dependencies."""

import sys
from importlib.util import find_spec

NEEDED = ("torch", "triton", "numpy", "PIL", "safetensors", "tqdm", "pytest", "xdist")


def main() -> int:
    """Return the exit code."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(f"gpu-check: {sys.executable} has no {', '.join(missing)}", file=sys.stderr)
        return 2
    from bench.gpu_check import command

    return command.main()


if __name__ == "__main__":
    raise SystemExit(main())
