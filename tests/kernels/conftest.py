"""One process either interprets Triton's kernels or compiles them: `make test` collects this folder once for each."""

import os
from pathlib import Path

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = [
    path.name for path in Path(__file__).parent.glob("test_*.py") if path.stem.endswith("_compiled") == INTERPRETED
]
