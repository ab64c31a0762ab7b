"""Put our functions in the place of other codebases' op modules, whether those are imported already or will be."""

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, TracebackType

from torch import nn

from pggan_fast.compat import basicsr, rosinality, stylegan
from pggan_fast.compat.references import ABSENT, exchange, setter

Contents = Callable[[ModuleType], dict[str, object]]

CODEBASES = {"stylegan3": "torch_utils", "stylegan2-ada": "torch_utils", "rosinality": "op", "basicsr": "basicsr"}
"""{codebase: the package that its op modules are in}"""

PACKAGES: dict[str, dict[str, Contents]] = {
    "torch_utils": stylegan.MODULES,
    "op": rosinality.MODULES,
    "basicsr": basicsr.MODULES,
}
"""{package: {module: what it holds}}. A module counts under any parent too, as copies of a codebase are nested."""

_EXCLUDED = ("builtins", "numpy", "pggan_fast", "sys", "torch", "triton")
_installed: dict[str, list[Callable[[], None]]] = {}
"""Of every package that is installed, what undoes it."""


class Installation:
    """Packages that `install` has just installed; as a context manager it uninstalls them at the end."""

    def __init__(self, packages: Sequence[str]):
        self.packages = tuple(packages)

    def __enter__(self) -> "Installation":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _undo(self.packages)


def install(name: str = "all") -> Installation:
    """Let a codebase's op modules run on our ops, under their own names and signatures.

    name: "stylegan3", "stylegan2-ada" (`torch_utils.ops.*`), "rosinality" (`op.*`), "basicsr" (`basicsr.ops.*`) or
    "all". Modules that are imported later come from here and their own source never runs, so that nothing is
    compiled. In modules that are imported already the functions are exchanged, and so is what other modules took from
    them with `from ... import`.

    Takes effect at once; `with install(...):` ends it behind the block, `uninstall()` at any time. Installing what is
    installed changes nothing.
    """
    fresh = [package for package in _packages("install", name) if package not in _installed]
    for package in fresh:
        undo = _installed[package] = _exchange_imported(PACKAGES[package])
        finder = _Finder(PACKAGES[package])
        sys.meta_path.insert(0, finder)
        undo.append(finder.remove)
    return Installation(fresh)


def uninstall(name: str = "all") -> None:
    """Undo `install`: modules get back what they held, those that came from here are imported anew when next asked for.

    What a module took from rosinality's or BasicSR's ops while they were installed stays ours until that module is
    imported again: to restore it would compile their extensions.
    """
    _undo(_packages("uninstall", name))


def _packages(function: str, name: str) -> list[str]:
    if name not in ("all", *CODEBASES):
        raise ValueError(f"{function}: name is {name!r}, allowed: {', '.join((*CODEBASES, 'all'))}")
    return list(PACKAGES) if name == "all" else [CODEBASES[name]]


def _undo(packages: Sequence[str]) -> None:
    for package in packages:
        for undo in reversed(_installed.pop(package, [])):
            undo()


def contents_of(modules: dict[str, Contents], name: str) -> Contents | None:
    """Return what the module of this dotted name holds, None if it is not one of them."""
    return next((made for known, made in modules.items() if name == known or name.endswith(f".{known}")), None)


def _contents_by_source(modules: dict[str, Contents], name: str, find: Callable) -> Contents | None:
    """Return what a module under a path of its own holds: the first of all packages' modules of the same last name that
    has all that the source defines, with the same parameters, if it is of `modules`. `find` returns its spec."""
    alike = _contents_by_last_name().get(name.rpartition(".")[2])
    if not alike or name.partition(".")[0] in _EXCLUDED or any(contents_of(of, name) for of in PACKAGES.values()):
        return None
    try:
        body = ast.parse(find().loader.get_source(name)).body
    except Exception:  # it has no source, or not one that this Python reads
        return None
    defined = [d for d in body if isinstance(d, ast.FunctionDef | ast.ClassDef) and d.name[0] != "_"]
    theirs = {d.name: _parameters(d) for d in defined}
    for of, made in alike if theirs else ():
        ours = {key: value for key, value in made(ModuleType(name)).items() if key in theirs}
        taken = {key: [*inspect.signature(value).parameters][: len(theirs[key])] for key, value in ours.items()}
        if taken == theirs:
            return made if of is modules else None
    return None


@cache
def _contents_by_last_name() -> dict[str, list[tuple[dict[str, Contents], Contents]]]:
    """(modules of a package, what one of them holds) by that one's last name, which every import asks for."""
    found: dict[str, list[tuple[dict[str, Contents], Contents]]] = {}
    for of in PACKAGES.values():
        for known, made in of.items():
            found.setdefault(known.rpartition(".")[2], []).append((of, made))
    return found


def _parameters(definition: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """Names of what a function, or a class by its __init__, takes."""
    inside = [d for d in definition.body if getattr(d, "name", "") == "__init__"]
    taking = inside if isinstance(definition, ast.ClassDef) else [definition]
    return [a.arg for d in taking for a in d.args.args if a.arg != "self"]


class _Finder(MetaPathFinder, Loader):
    """The finder of one codebase's modules, before a search along the path would."""

    def __init__(self, modules: dict[str, Contents]):
        self.modules, self.made = modules, []
        self.contents: dict[str, Contents] = {}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        find = partial(PathFinder.find_spec, name, path)
        made = contents_of(self.modules, name) or _contents_by_source(self.modules, name, find)
        if made is None:
            return None
        self.contents[name] = made
        # As a package it may be asked for a module inside it, which is found here too.
        spec = ModuleSpec(name, self, origin=_source_of(self.modules), is_package=True)
        spec.has_location = True  # a module then has a __file__, which some look beside
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # A module inside that has the name of a function of its package must come before that function.
        inside = f"{module.__name__}.{module.__name__.rpartition('.')[2]}"
        if contents_of(self.modules, inside) is not None:
            importlib.import_module(inside)
        vars(module).update(self.contents[module.__name__](module))
        self.made.append(module)

    def remove(self) -> None:
        """Stop finding, and forget the modules that were made."""
        sys.meta_path.remove(self)
        for module in self.made:
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]
            parent, _, child = module.__name__.rpartition(".")
            if getattr(sys.modules.get(parent), child, None) is module:
                delattr(sys.modules[parent], child)
        for module in self.made:
            if ".torch_utils.ops." in f".{module.__name__}":
                _become_original(module)


def _source_of(modules: dict[str, Contents]) -> str:
    """The file in which our functions for a codebase are."""
    return next(vars(m)["__file__"] for m in (stylegan, rosinality, basicsr) if m.MODULES is modules)


def _become_original(module: ModuleType) -> None:
    """Run a codebase's own source in a module that came from here, for those that hold on to the module itself."""
    ours, name = dict(vars(module)), module.__name__
    try:
        spec = importlib.util.find_spec(name)
        vars(module).clear()
        vars(module).update(vars(importlib.util.module_from_spec(spec)))
        sys.modules[name] = module
        spec.loader.exec_module(module)
    except Exception:  # their source is not there, or does not run here: whoever holds on to ours may keep it
        sys.modules.pop(name, None)
        vars(module).clear()
        vars(module).update(ours)
        return
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)
    theirs = {id(value): vars(module)[key] for key, value in ours.items() if key in vars(module)}
    _rebind({i: value for i, value in theirs.items() if callable(value)})


def _exchange_imported(modules: dict[str, Contents]) -> list[Callable[[], None]]:
    """Exchange the functions of modules that are imported already; returns what undoes it."""
    undo, exchanged = [], {}
    for name, module in list(sys.modules.items()):
        found = partial(getattr, module, "__spec__", None)
        made = contents_of(modules, name) or _contents_by_source(modules, name, found)
        if made is None or not isinstance(module, ModuleType):
            continue
        for key, value in made(module).items():
            before = vars(module).get(key, ABSENT)
            if _is_layer(before) and before is not value:
                # Models that live, classes made of it and pickles go by the class itself.
                undo.append(partial(setattr, before, "forward", vars(before)["forward"]))
                before.forward = value.forward
                continue
            if callable(before):
                exchanged[id(before)] = value
            # The undoing keeps `before` alive, and so its identity its own.
            undo.append(setter(module, key, before))
            setattr(module, key, value)
    return undo + _rebind(exchanged)


def _is_layer(value: object) -> bool:
    """Whether this is a class of modules that holds what its forward needs, which is then all there is to exchange."""
    return isinstance(value, type) and issubclass(value, nn.Module) and {"__init__", "forward"} <= vars(value).keys()


def _rebind(exchanged: dict[int, object]) -> list[Callable[[], None]]:
    """Exchange objects, known by their identity, that modules took from others by name; returns what undoes it."""
    undo = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _EXCLUDED or not isinstance(module, ModuleType):
            continue
        for key, value in list(vars(module).items()):
            exchange(exchanged, module, key, value, undo)
    return undo
