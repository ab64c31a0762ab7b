"""What the Python code of a forward reads while it is traced, so that a trace is used only while all of it holds.

A trace freezes every Python value that the code looked at: `self.training`, `self.depth`, a module global. Each such
read becomes a guard. What cannot be guarded, or would be lost by tracing (a side effect, a random number, a grad mode,
an autograd.Function), ends the trace.
"""

import builtins
import dis
import functools
import random
import sys
import sysconfig
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

_TORCH = torch.__path__[0]
_STDLIB = sysconfig.get_paths()["stdlib"]
_HERE = str(Path(__file__).parent)

# Contexts and functions of torch that a trace does not record.
_LOST = tuple(f"{_TORCH}/{part}" for part in ("autograd/", "amp/", "random.py", "cuda/"))
_LOST_WHOEVER_CALLS = {
    f"{_TORCH}/utils/_contextlib.py": "runs under a context of torch, such as no_grad",
    f"{_TORCH}/utils/checkpoint.py": "uses gradient checkpointing",
}
_ENVIRONMENT = (
    print,
    open,
    input,
    time.time,
    time.perf_counter,
    torch.is_grad_enabled,
    torch.is_autocast_enabled,
    torch.is_inference_mode_enabled,
    torch.get_default_dtype,
    torch.set_grad_enabled,
)
# Attributes that torch.nn.Module itself keeps; `training` is the one that forwards read.
_INTERNAL = frozenset(nn.Module().__dict__) - {"training"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.memory_format, slice)
_CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_CODE += (types.MethodDescriptorType, types.WrapperDescriptorType, functools.partial)


class NotTraceable(Exception):
    """The reason, in a line, why a forward cannot be replaced by its trace."""


def is_plain(value: Any) -> bool:
    """Whether equality tells that a value is what it was."""
    if isinstance(value, (tuple, frozenset)):
        return all(map(is_plain, value))
    return isinstance(value, _PLAIN)


class Reads:
    """Attributes of modules and globals that were read, with their values then."""

    def __init__(self) -> None:
        self.attributes: dict[tuple[int, str], tuple[nn.Module, str, Any]] = {}
        self.globals: dict[tuple[int, str], tuple[dict, str, Any]] = {}
        self.containers: dict[int, nn.Module] = {}
        """Modules whose children were looked at, as by a loop over a ModuleList."""

    def attribute(self, module: nn.Module, name: str, value: Any) -> None:
        """Remembers `module.name`. Raises NotTraceable for a value that may change without a trace."""
        if isinstance(value, (list, dict, set)):
            raise NotTraceable(f"reads {name}, a {type(value).__name__} that may change")
        if is_plain(value):
            self.attributes[id(module), name] = (module, name, value)
        elif not isinstance(value, (*_CODE, nn.Module, torch.Tensor, torch.fx.Proxy)):
            raise NotTraceable(f"reads {name}, a {type(value).__name__} that may change")

    def scope(self, frame: types.FrameType) -> None:
        """Remembers what the code of a frame may read of its module's globals and enclosing functions."""
        for name in _globals_of(frame.f_code):
            if name not in frame.f_globals:
                continue
            value = frame.f_globals[name]
            if isinstance(value, set):
                value = frozenset(value)  # equal to the set while nothing is added or removed
            if is_plain(value):
                self.globals[id(frame.f_globals), name] = (frame.f_globals, name, value)
            elif not isinstance(value, _CODE) and not callable(value):
                raise NotTraceable(f"reads the global {name}, a {type(value).__name__} that may change")
        for name in frame.f_code.co_freevars:
            value = frame.f_locals.get(name)
            if not isinstance(value, _CODE) and not _made_inside(frame, name):
                raise NotTraceable(f"reads {name} of an enclosing function")


@functools.lru_cache(maxsize=4096)
def _globals_of(code: types.CodeType) -> tuple[str, ...]:
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return tuple(sorted(names - set(dir(builtins))))


def _made_inside(frame: types.FrameType, name: str) -> bool:
    """Whether the variable belongs to a function that itself runs under the trace."""
    caller = frame.f_back
    while caller is not None and not caller.f_code.co_filename.startswith(_HERE):
        if name in caller.f_code.co_cellvars:
            return True
        caller = caller.f_back
    return False


def _is_users(filename: str) -> bool:
    """Not of torch, the standard library or this package; site-packages lie inside the standard library's folder."""
    in_stdlib = filename.startswith(_STDLIB) and "site-packages" not in filename
    return not filename.startswith((_TORCH, _HERE, "<")) and not in_stdlib


class _Profile:
    """What sys.setprofile calls: raises out of the traced code at what a trace would lose."""

    def __init__(self, reads: Reads):
        self.reads = reads

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> None:
        filename = frame.f_code.co_filename
        if event == "call":
            if filename in _LOST_WHOEVER_CALLS:
                raise NotTraceable(_LOST_WHOEVER_CALLS[filename])
            if _is_users(filename):
                self.reads.scope(frame)
            elif filename.startswith(_LOST) and frame.f_back and _is_users(frame.f_back.f_code.co_filename):
                raise NotTraceable(f"calls {frame.f_code.co_name} of {filename.removeprefix(_TORCH)}")
        elif event == "c_call" and _is_users(filename):
            if any(argument is function for function in _ENVIRONMENT):
                raise NotTraceable(f"calls {argument.__name__}")
            owner = getattr(argument, "__self__", None)
            if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
                raise NotTraceable(f"calls the autograd function {owner.__name__}")


@contextmanager
def watching(reads: Reads) -> Iterator[None]:
    """Inside, reads of module attributes go to `reads`, and what a trace would lose raises NotTraceable."""
    plain_get, plain_set = object.__getattribute__, nn.Module.__setattr__
    thread = threading.get_ident()

    def get(module: nn.Module, name: str) -> Any:
        value = plain_get(module, name)
        if name == "_modules":
            reads.containers[id(module)] = module
        if name not in _INTERNAL and not name.startswith("__") and threading.get_ident() == thread:
            reads.attribute(module, name, value)
        return value

    def refuse(module: nn.Module, name: str, value: Any) -> None:
        if threading.get_ident() == thread:
            raise NotTraceable(f"sets {name}")
        plain_set(module, name, value)

    before = sys.getprofile()
    with random_states_kept() as drawn:
        nn.Module.__getattribute__, nn.Module.__setattr__ = get, refuse
        sys.setprofile(_Profile(reads))
        try:
            yield
        finally:
            sys.setprofile(before)
            del nn.Module.__getattribute__
            nn.Module.__setattr__ = plain_set
        if drawn():
            raise NotTraceable("draws random numbers")


@contextmanager
def unwatched() -> Iterator[None]:
    """Inside a trace, for what is not the traced code."""
    profile = sys.getprofile()
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.setprofile(profile)


@contextmanager
def random_states_kept() -> Iterator[Callable[[], bool]]:
    """Afterwards every random generator is where it was; yields a function that tells whether one has moved."""
    before = _random_states()
    try:
        yield lambda: _printed(_random_states()) != _printed(before)
    finally:
        python, cpu, gpus, numpy_state = before
        random.setstate(python)
        torch.set_rng_state(cpu)
        for index, state in enumerate(gpus):
            torch.cuda.set_rng_state(state, index)
        if numpy_state is not None:
            sys.modules["numpy.random"].set_state(numpy_state)


def _random_states() -> tuple:
    """Of Python, torch on the CPU, torch on each GPU in use, and NumPy if it was imported."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    numpy_random = sys.modules.get("numpy.random")
    return random.getstate(), torch.get_rng_state(), gpus, None if numpy_random is None else numpy_random.get_state()


def _printed(states: tuple) -> tuple:
    """The states as what == compares."""
    python, cpu, gpus, numpy_state = states
    numpy_printed = None if numpy_state is None else (numpy_state[1].tobytes(), *numpy_state[2:])
    return python, *(state.numpy().tobytes() for state in (cpu, *gpus)), numpy_printed
