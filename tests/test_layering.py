"""The one-way order of the packages, read off the import statements of every source file."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 400

# A part may import the parts on the lines above its own, and itself.
ORDER = (
    {"_moved", "_native", "_startup", "reference", "kernels", "utils"},
    {"ops"},
    {"metrics", "layers"},
    {"networks", "dropin", "compat"},
    {"interop", "data"},
    {"__init__"},
    {"training"},
    {"generation"},
    {"evaluation"},
    {"convert", "demo", "doctor"},
    {"cli", "__main__"},
)
SIDEWAYS = {("__main__", "cli"), ("dropin", "compat"), ("_startup", "utils")}
KERNELS_NEED = {"torch", "triton", *sys.stdlib_module_names}
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package by its dotted name, kernels/ under its installed name."""
    found = {}
    for folder, package in (("pggan_fast", "pggan_fast"), ("kernels", "pggan_fast.kernels")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join((package, *parts))] = path
    return found


def imports(name: str, tree: ast.AST, known: set[str]) -> set[str]:
    """Dotted names of what a module imports, wherever in it and however written."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from package import x` imports a module or something out of package/__init__.
                target = f"{base}.{alias.name}"
                is_module = any(k == target or k.startswith(f"{target}.") for k in known)
                found.add(target if is_module else base)
    return found


def part(name: str) -> str:
    """The part of pggan_fast that a dotted name belongs to."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def violations(root: Path) -> list[str]:
    """Return what a source tree imports against the order, one line each."""
    found = []
    known = modules(root)
    for name, path in known.items():
        me = part(name)
        if me not in RANK:
            found.append(f"{name}: {me} has no place in ORDER")
            continue
        for target in sorted(imports(name, ast.parse(path.read_text()), set(known))):
            top = target.split(".")[0]
            if top == "kernels":
                found.append(f"{name} imports a top-level kernels")
            if me == "kernels" and top != "pggan_fast" and top not in KERNELS_NEED:
                found.append(f"{name} imports {target}")
            if top != "pggan_fast" or part(target) == me:
                continue
            other = part(target)
            if other not in RANK:
                found.append(f"{name} imports {target}, which has no place in ORDER")
            elif RANK[other] >= RANK[me] and (me, other) not in SIDEWAYS:
                found.append(f"{name} imports {target}")
    return found


def test_imports_follow_the_order() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("pggan_fast/ops/a.py", "from ..layers import X", " imports pggan_fast.layers"),
        ("pggan_fast/ops/a.py", "from .. import layers", " imports pggan_fast.layers"),
        ("pggan_fast/ops/a.py", "import pggan_fast", " imports pggan_fast"),
        ("pggan_fast/ops/a.py", "def f(): import pggan_fast.cli", " imports pggan_fast.cli"),
        ("pggan_fast/layers.py", "from .networks import X", " imports pggan_fast.networks"),
        ("pggan_fast/networks/a.py", "from pggan_fast import dropin", " imports pggan_fast.dropin"),
        (
            "pggan_fast/training/a.py",
            "from ..generation import images",
            " imports pggan_fast.generation.images",
        ),
        ("pggan_fast/ops/a.py", "import kernels.k", " imports a top-level kernels"),
        ("pggan_fast/extra.py", "", ": extra has no place in ORDER"),
        ("kernels/a.py", "import numpy", " imports numpy"),
        ("kernels/a.py", "from .. import reference", " imports pggan_fast.reference"),
    ],
)
def test_an_import_against_the_order_is_found(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    fine = {
        "pggan_fast/__init__.py": "from . import layers, networks, ops",
        "pggan_fast/reference.py": "import torch",
        "pggan_fast/ops/__init__.py": "from .. import reference\nfrom ..kernels import k",
        "pggan_fast/layers.py": "from . import ops\nfrom pggan_fast.ops import bias_act",
        "pggan_fast/networks/__init__.py": "from ..layers import X",
        "pggan_fast/dropin/__init__.py": "from ..ops import x",
        "pggan_fast/interop/__init__.py": "from ..networks import Generator",
        "pggan_fast/metrics/swd.py": "import numpy",
        "pggan_fast/generation/images.py": "from ..training import x",
        "pggan_fast/cli.py": "from . import __version__\nfrom .training import x",
        "kernels/k.py": "import math\nimport triton.language as tl\nfrom .j import x",
        "kernels/j.py": "import torch",
    }
    for name, text in fine.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert violations(tmp_path) == []
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(line)
    name = file.removesuffix(".py").replace("/", ".").replace("kernels", "pggan_fast.kernels")
    assert violations(tmp_path) == [name + complaint]


@pytest.mark.skipif(not (ROOT / "bench/baseline/eager.py").exists(), reason="bench/ has no baselines")
def test_the_baselines_do_not_use_the_package() -> None:
    """Nothing that makes the package faster may make what it is compared with faster."""
    found = imports("bench.baseline.eager", ast.parse((ROOT / "bench/baseline/eager.py").read_text()), set())
    assert not {name for name in found if name.split(".")[0] == "pggan_fast"}


def test_no_file_is_too_long_to_read() -> None:
    kinds = ("*.py", "*.cpp", "*.h", "*.cu", "*.cuh")
    folders = ("pggan_fast", "kernels", "csrc", "bench", "experiments", "tests")
    paths = [ROOT / "setup.py"]
    paths += [p for folder in folders for kind in kinds for p in (ROOT / folder).rglob(kind)]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in paths}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}
