"""Every public function of the package has its parameters and its result annotated; the package says that it has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pggan_fast

ROOT = Path(__file__).parents[1]
INSIDE = ("ops", "utils", "dropin")  # whose other functions the rest of the package calls, and nobody else
AUTOGRAD = ("Function", "OpFunction", "autograd.Function", "torch.autograd.Function")  # torch calls their methods


def functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef]:
    """The public functions of a module and the public methods of its public classes."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            if not any(ast.unparse(base) in AUTOGRAD for base in node.bases):
                yield from functions(node.body)
        elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
            yield node


def missing(function: ast.FunctionDef) -> list[str]:
    """The names of parameters without an annotation, and "return"."""
    a = function.args
    parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    names = [p.arg for i, p in enumerate(parameters) if p.annotation is None and (i or p.arg not in ("self", "cls"))]
    annotated_init = function.name == "__init__" and len(parameters) > 1  # returns None to mypy as it is
    return names if function.returns is not None or annotated_init else [*names, "return"]


def offenders(folder: Path) -> list[str]:
    """The public functions that lack annotations; of INSIDE those alone that the package offers by name."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        if path.name.startswith("_") and path.name != "__init__.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = path.relative_to(folder).parts[0] in INSIDE
        public = (f for f in functions(tree.body) if not inside or f.name in pggan_fast.__all__)
        names = ((function.name, missing(function)) for function in public)
        found += [f"{path.relative_to(folder)}: {name} ({', '.join(left)})" for name, left in names if left]
    return found


def test_public_functions_are_annotated() -> None:
    assert offenders(ROOT / "pggan_fast") == []


def test_one_that_is_not_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "def f(x, *, y: int): ...\nclass A:\n    def g(self): ...\n    def _h(self): ...\n"
        "class B(torch.autograd.Function):\n    def forward(ctx, x): ...\n"
    )
    assert offenders(tmp_path) == ["a.py: f (x, return)", "a.py: g (return)"]


def test_the_package_says_that_it_is_typed() -> None:
    assert files("pggan_fast").joinpath("py.typed").is_file()
