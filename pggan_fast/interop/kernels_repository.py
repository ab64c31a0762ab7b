"""The ops as a repository for Hugging Face's `kernels`: `python -m pggan_fast.interop.kernels_repository OUT`.

`kernels` imports a build from any folder, and several versions of it into one process. So the copy imports by relative
names alone, and registers its ops in a namespace of its own, named after what it holds. It is the universal build, for
every device and torch: Triton's kernels where Triton runs, plain PyTorch elsewhere, nothing compiled.

    build.toml                     name, version and backends, for kernel-builder
    README.md                      model card
    torch-ext/pggan_fast_ops/      sources
    build/torch-universal/         the same, with metadata.json: what get_kernel and get_local_kernel import
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import sys
import tokenize
from pathlib import Path

from pggan_fast import ops, reference
from pggan_fast.utils.errors import UserError

NAME, VERSION, LICENSE = "pggan-fast-ops", 1, "apache-2.0"
BACKENDS = ("cuda", "rocm", "xpu", "cpu")
PARTS = ("_native.py", "reference.py", "ops", "kernels")
NOT_COMPILED = "this repository holds no compiled kernels, pip install pggan-fast has them\n"

INIT = '''"""Fused ops for progressive GANs and the StyleGAN family; `reference` has their formulas."""

from . import ops, reference
from .ops import *  # noqa: F403
from .ops import __all__ as _of_ops

__all__ = [*_of_ops, "ops", "reference"]
'''

CARD = """---
library_name: kernels
license: {license}
tags: [kernels, gan, progressive-gan, stylegan, triton]
---

# {name}

The ops of pggan-fast ("Progressive Growing of GANs", Karras et al., ICLR 2018, and the StyleGAN family):
Triton's kernels on GPUs, plain PyTorch elsewhere. Each op is twice differentiable and takes `impl="auto"`, `"triton"`
or `"reference"`; `reference` has every formula.

```python
from kernels import get_kernel

ops = get_kernel("USER/{name}", version={kernel_version}, trust_remote_code=["USER/{name}"])
y = ops.equalized_conv2d(x, weight, bias, up=2, act="lrelu", pixel_norm=True)
```

Ops: {ops}.
"""


def write_repository(out: Path) -> Path:
    """Write the repository to the new folder `out` and return it. Raises UserError if there is something in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not empty; choose another folder")
    files = read_sources()
    namespace = f"pggan_fast_ops_{hashlib.sha256(''.join(files.values()).encode()).hexdigest()[:8]}"
    files = {name: rewrite(text, depth=name.count("/"), namespace=namespace) for name, text in files.items()}
    files |= {"__init__.py": INIT, "_C.txt": NOT_COMPILED, "_C_cuda.txt": NOT_COMPILED}
    for folder in (out / "torch-ext/pggan_fast_ops", out / "build/torch-universal"):
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    backends = ", ".join(f'"{backend}"' for backend in BACKENDS)
    (out / "build.toml").write_text(
        f'[general]\nedition = 5\nname = "{NAME}"\nversion = {VERSION}\nlicense = "{LICENSE}"\n'
        f"backends = [{backends}]\n\n[torch-noarch]\n",
        encoding="utf-8",
    )
    names = ", ".join(f"`{name}`" for name in ops.__all__)
    card = CARD.format(license=LICENSE, name=NAME, kernel_version=VERSION, ops=names)
    (out / "README.md").write_text(card, encoding="utf-8")
    metadata = {"id": f"_{namespace}", "name": NAME, "version": VERSION, "license": LICENSE, "python-depends": []}
    metadata["backend"] = {"type": BACKENDS[0]}  # what a universal build is made for first; it runs on the others
    described = out / "build/torch-universal/metadata.json"
    described.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    return out


def read_sources() -> dict[str, str]:
    """Return the text of each source file of the ops, by its path below the package."""
    package = Path(reference.__file__).parent
    kernels = importlib.util.find_spec("pggan_fast.kernels")  # elsewhere than the package in a checkout
    assert kernels is not None and kernels.origin is not None
    found = {}
    for part in PARTS:
        root = Path(kernels.origin).parent if part == "kernels" else package / part
        for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
            name = part if root.is_file() else f"{part}/{path.relative_to(root).as_posix()}"
            found[name] = path.read_text(encoding="utf-8")
    return found


def rewrite(text: str, *, depth: int, namespace: str) -> str:
    """Return a source `depth` folders below the package with relative imports and its ops in `namespace`.

    Raises ValueError for a name of the package that would be left, since it would reach an installed one.
    """
    dots = "." * (depth + 1)
    text = re.sub(r"^(\s*)from pggan_fast\.?([\w.]*) import ", rf"\1from {dots}\2 import ", text, flags=re.MULTILINE)
    text = text.replace('f"pggan_fast.kernels.', """f"{__name__.rpartition('.ops.')[0]}.kernels.""")
    text = re.sub(r'"pggan_fast(_triton)?([".])', rf'"{namespace}\1\2', text)
    text = re.sub(r"\btorch\.ops\.pggan_fast", f"torch.ops.{namespace}", text)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and token.string.startswith("pggan_fast") and namespace not in token.string:
            raise ValueError(f"line {token.start[0]}: {token.line.strip()}")
    return text


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pggan_fast.interop.kernels_repository OUT")
    try:
        print(f"written: {write_repository(Path(sys.argv[1]))}")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
