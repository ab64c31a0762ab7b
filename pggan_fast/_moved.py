"""Modules under the names that they had first: `import pggan_fast.training.dataset` still works, with a warning."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

NEW_NAMES = {
    "layers.beyond": "layers.extra",
    "layers.paper": "layers.pggan",
    "training.ahead": "data.prefetch",
    "training.capture": "training.runtime.cuda_graph",
    "training.critic": "training.bound_discriminator",
    "training.data": "data.batches",
    "training.dataset": "data.dataset",
    "training.device": "utils.device",
    "training.distributed": "utils.distributed",
    "training.errors": "utils.errors",
    "training.generate": "generation.images",
    "training.images": "utils.images",
    "training.interpolate": "generation.interpolation",
    "training.memory": "training.runtime.malloc",
    "training.prepare": "data.prepare",
    "training.run": "training.run_folder",
    "training.samples": "networks.sampling",
    "training.sources": "data.sources",
    "training.video": "generation.video",
    "training.weights": "interop.weights",
}


class OldNames(MetaPathFinder, Loader):
    """Find a module of NEW_NAMES under its old name; both names give one module object."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if new_name(name) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = new_name(spec.name)
        warnings.warn(f"{spec.name} is now {new}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing, the module ran under its new name; undo what the import system wrote into it."""
        module.__spec__ = module.__spec__.loader_state


def new_name(old: str) -> str | None:
    """Return what a module `pggan_fast.a.b` is called today, None where the name has not changed."""
    for before, now in NEW_NAMES.items():
        before, now = f"{__package__}.{before}", f"{__package__}.{now}"
        if old == before or old.startswith(f"{before}."):
            return now + old.removeprefix(before)
    return None


def install() -> None:
    """Answer imports of the old names. Call once; first in line, before a package finds its parts by path."""
    sys.meta_path.insert(0, OldNames())
