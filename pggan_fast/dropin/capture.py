"""A module whose calls run through TorchDynamo: its guards, our rewriting of its graphs, PyTorch's own autograd.

The callable lies where `nn.Module.compile` puts its own, so that class, parameters, names, hooks and every attribute
stay what and where they are. Graphs run eagerly, op by op: there is no AOTAutograd and no Inductor.
"""

import copy
import dis
import os
import re
import sys
import threading
import types
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C import _current_graph_task_id, _is_tracing
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch._C._functorch import peek_interpreter_stack as _interpreters
from torch._dynamo import config, convert_frame, eval_frame, pgo
from torch._dynamo.exc import TorchDynamoException, Unsupported, UserError
from torch._dynamo.types import ConvertFrameReturn
from torch.autograd import forward_ad
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.nn.modules.module import _has_any_global_hook

from pggan_fast.dropin import known, report
from pggan_fast.dropin.corrections import corrected
from pggan_fast.dropin.meaning import meaning
from pggan_fast.dropin.report import COMPILED, JIT_IGNORED, STATE, Graph, Row
from pggan_fast.dropin.rewrite import Options, Rewriter
from pggan_fast.dropin.trial import is_torchs

MOST_GRAPHS = 128
"""Captures of one function; a network that asks for more (a setting that changes at each call) runs as the original."""
STATIC_GRAPHS = 24
"""Captures of one function after which sizes that vary become symbols, which fewer patterns know."""
MOST_FAILURES = 3
"""Failed captures of one function after which it is left alone."""
MOST_KINDS = 256
"""Kinds of call that are remembered as having nothing to fuse."""

_OFF = (
    # What raises, or takes over from the limits and from the handling of errors below.
    *("fail_on_recompile_limit_hit", "error_on_recompile", "suppress_errors"),
    # Guards that are not sound: no hooks that come later, no parameters whose data is exchanged under the same name.
    *("skip_nnmodule_hook_guards", "skip_tensor_guards_with_matching_dict_tags"),
    "assume_dunder_attributes_remain_unchanged",
    "specialize_float",  # floats that vary (a fade's alpha) become symbols, not constants
    "trace_numpy",  # NumPy keeps its own random numbers and rounding
    # There is no compiled backward whose buckets matter, and nothing is written to disk.
    *("optimize_ddp", "automatic_dynamic_local_pgo", "automatic_dynamic_remote_pgo"),
)
_ON = ("assume_static_by_default", "automatic_dynamic_shapes", "capture_profiler_record_function")
# No limits of Dynamo's own: those are per code, which all instances of a class and all users share.
_SETTINGS = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), 1 << 20)
_SETTINGS |= dict.fromkeys(_OFF, False) | dict.fromkeys(_ON, True)
_SETTINGS = {name: value for name, value in _SETTINGS.items() if hasattr(config, name)}
_GUARDS_CLASSES = torch.torch_version.TorchVersion(torch.__version__) >= "2.14"
"""Whether Dynamo has guards for the settings that code reads off classes."""


class _Thread(threading.local):
    around = ""
    """How the accelerated module around this one runs, "captured" or "original": its parts do not begin anew."""


_thread = _Thread()


class Accelerated:
    """The compiled call of one module. Copies and pickles of the module get one of their own, which captures anew."""

    def __init__(self, options: Options, module: nn.Module | None = None):
        self.options = options
        self.graphs: list[Graph] = []
        self.reasons: dict[str, None] = {}
        """Why functions were left as they are, in order."""
        self.calls = self.fused_runs = self._changes = 0
        self._lock = threading.Lock()
        self._begin()
        if module is not None:
            self.__setstate__(module)

    def _begin(self) -> None:
        """Forget what was captured."""
        self._run: Any = None
        self.watched = Watched()
        self._useless: set[tuple] = set()

    def __reduce__(self) -> tuple:
        return Accelerated, (self.options,), self.module

    def __setstate__(self, module: nn.Module) -> None:
        self.module = module
        vars(module)[STATE] = vars(module)[COMPILED] = self
        ignored = getattr(type(module), JIT_IGNORED, [])  # torch.jit.script looks at every attribute
        vars(module)[JIT_IGNORED] = [*ignored, STATE, COMPILED]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.module._call_impl(*args, **kwargs)
        # A shallow copy (a replica of DataParallel) has this very object, and parameters of its own.
        module, around = sys._getframe(1).f_locals.get("self", self.module), _thread.around
        if around == "original" or module is not self.module or _is_transformed():
            return module._call_impl(*args, **kwargs)
        if around == "captured":  # Dynamo captures this module too, if there was a graph break
            return _inlined(module, *args, **kwargs)
        _thread.around = "captured"
        try:
            return self._outermost(module, args, kwargs)
        finally:
            _thread.around = ""

    def _outermost(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        if self.watched.changed():
            self._begin()
            self._changes += 1
        if self._changes > MOST_GRAPHS:
            self.leave("what it reads off classes or the environment changes all the time")
        kind = (module.training, torch.is_grad_enabled(), *map(_kind, (*args, *kwargs, *kwargs.values())))
        if self._changes > MOST_GRAPHS or kind in self._useless:
            _thread.around = "original"
            return module._call_impl(*args, **kwargs)
        before = self.fused_runs
        try:
            return (self._run or self._optimized())(module, *args, **kwargs)
        except TorchDynamoException as error:
            self.leave(error)
            return module._call_impl(*args, **kwargs)
        finally:
            self.calls += 1
            if self.watched.written:
                self._changes = MOST_GRAPHS + 1
            if self.fused_runs == before and len(self._useless) < MOST_KINDS:
                self._useless.add(kind)

    def _optimized(self) -> Any:
        """`nn.Module._call_impl` under Dynamo: a function of (module, *args, **kwargs)."""
        with self._lock:
            try:
                self._run = self._run or Capture(self).run
            except Exception as error:  # a release of torch that has no such parts, or Dynamo is disabled
                self.leave(f"TorchDynamo cannot be used here: {report.reason(error)}")
                self._run = nn.Module._call_impl
            return self._run

    def leave(self, reason: Any) -> None:
        """Remember why something runs as the original."""
        self.reasons[report.reason(reason)] = None


def _kind(argument: Any) -> Any:
    """Return what is remembered of an argument: a flag or a step may decide what there is to fuse."""
    if isinstance(argument, Tensor):
        return argument.shape
    return argument if isinstance(argument, (int, str)) else argument.__class__


def _inlined(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The module's call in a frame of ours: those of torch's own modules are skipped unless another inlines them."""
    return self._call_impl(*args, **kwargs)


def _is_transformed() -> bool:
    """Whether a transformation is at work that the ops do not know, or a hook that Dynamo does not see.

    A checkpoint is one: what it computes again in backward must save the very tensors that forward saved.
    """
    return (
        _interpreters() is not None
        or forward_ad._current_level >= 0
        or _is_tracing()
        or is_fx_symbolic_tracing()
        or _has_any_global_hook()
        or _current_graph_task_id() != -1
        or _top_saved_tensors_default_hooks(False) is not None
    )


class Watched:
    """Things that captured code depends on without a guard of Dynamo's: methods of classes, environment variables."""

    def __init__(self) -> None:
        self.values: dict[tuple[type, str], Any] = {}
        self.environment: dict | None = None
        self.written = False
        """Whether the code writes settings that have no guard."""

    def changed(self) -> bool:
        if self.environment is not None and self.environment != os.environ._data:
            return True
        return any(cls.__dict__.get(name) is not value for (cls, name), value in self.values.items())

    def add(self, codes: list[types.CodeType], model: nn.Module) -> None:
        if any({"environ", "getenv"} & {*code.co_names, *code.co_freevars} for code in codes):
            self.environment = dict(os.environ._data)
        names = {code.co_name for code in codes}
        held = [value for module in model.modules() for value in (module, *vars(module).values())]
        classes = {cls for value in held for cls in type(value).__mro__ if not is_torchs(cls)}
        if not _GUARDS_CLASSES:
            names |= {name for code in codes for name in code.co_names}
            scopes = [vars(sys.modules[cls.__module__]) for cls in classes if cls.__module__ in sys.modules]
            classes |= {v for scope in scopes for n, v in scope.items() if n in names and isinstance(v, type)}
        # None where it is inherited: the class may get one of its own.
        self.values |= {(cls, n): vars(cls).get(n) for cls in classes for n in names if hasattr(cls, n)}
        if not _GUARDS_CLASSES:
            stored = {i.argval for code in codes for i in dis.get_instructions(code) if i.opname == "STORE_ATTR"}
            self.written |= any(name in stored for _, name in self.values)


class Capture:
    """The callback by which Dynamo captures a function: its own way to do it, under our settings and limits."""

    def __init__(self, state: Accelerated):
        self.state = state
        self.function = ""
        self.captures: Counter = Counter()
        self.failures: Counter = Counter()
        self.varying: defaultdict = defaultdict(pgo.CodeState)
        isolated = "isolate_recompiles" in eval_frame._optimize.__code__.co_varnames
        options = {"isolate_recompiles": True} if isolated else {}
        context = torch._dynamo.optimize(backend=lambda *captured: self._backend(*captured), **options)
        inner = self._torchdynamo_orig_backend = context.callback  # where Dynamo looks for the backend
        # Dynamo's own callback without the last layer, which swallows the reason of what fails.
        self.strict = inner._torchdynamo_orig_backend._inner_convert
        self.inner = convert_frame.catch_errors_wrapper(self.strict, inner.hooks)
        context.callback = self
        self.run = context(_inlined)

    def __call__(self, frame: Any, cache_entry: Any, frame_state: Any) -> ConvertFrameReturn:
        code = source = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)
        if code is _inlined.__code__:
            cls = type(self.state.module)
            name, source = f"{cls.__name__}.forward", getattr(cls.forward, "__code__", code)
        as_original = ConvertFrameReturn(apply_to_code=False)
        # In a backward that forward asks for run autograd's functions, ours too.
        if self.failures[code] >= MOST_FAILURES or _current_graph_task_id() != -1:
            return as_original
        if self.captures[code] >= MOST_GRAPHS:
            self.state.leave(f"{name} asked for more than {MOST_GRAPHS} graphs: from then on it ran as the original")
            return as_original
        with convert_frame.compile_lock:
            self.captures[code] += 1
            self.function = f"{name} ({source.co_filename.rpartition('/')[2]}:{source.co_firstlineno})"
            self.locals = frame.f_locals
            try:
                with (
                    warnings.catch_warnings(),
                    config.patch(**_SETTINGS),
                    self._own_sizes(keep=self.captures[code] > STATIC_GRAPHS),
                    known.substituted(self.state.options),
                    corrected(),
                ):
                    warnings.simplefilter("ignore")  # Dynamo's own: the model's come when it runs
                    # Of nn.Sequential's code Dynamo skips what is not inlined, as of all of torch's own.
                    skipped = code is nn.Sequential.forward.__code__
                    hooks = (self.inner.hooks,) if skipped else ()
                    return (self.strict if skipped else self.inner)(frame, cache_entry, *hooks, frame_state)
            except Exception as error:
                self.failures[code] += MOST_FAILURES if isinstance(error, (Unsupported, UserError)) else 1
                self.state.leave(f"{name}: {report.reason(error)}")
                return as_original
            finally:
                self.locals = {}

    @contextmanager
    def _own_sizes(self, keep: bool) -> Iterator[None]:
        """Inside, Dynamo learns from this model's captures alone what varies: floats, and sizes if `keep`."""
        before = pgo._CODE_STATE
        for state in () if keep else self.varying.values():
            for name, entry in list(state.automatic_dynamic.items()):
                if not isinstance(entry.scalar, float) and entry.scalar is not pgo.auto_dynamic:
                    del state.automatic_dynamic[name]
        pgo._CODE_STATE = self.varying
        try:
            yield
        finally:
            pgo._CODE_STATE = before

    def _backend(self, captured: fx.GraphModule, example_inputs: list[Any]) -> Any:
        """The captured graph, rewritten, as a function that counts its calls."""
        graph, state, run = Graph(self.function), self.state, captured.forward
        state.watched.add(torch._dynamo.utils.get_traced_code() or [], state.module)
        ends = getattr(captured, "compile_subgraph_reason", None)
        if ends is not None and ends.graph_break:
            graph.ends = report.located(ends.reason, ends.user_stack)
        try:
            rewritten = fx.GraphModule(captured, copy.deepcopy(captured.graph))
            guards = torch._guards.TracingContext.get().guards_context.dynamo_guards
            rewriter = Rewriter(rewritten.graph, state.options, len(guards))
            if rewriter.run():
                rewritten.graph.lint()
                rewritten.recompile()
                run = rewritten.forward
            graph.rows = self._rows(rewriter)
        except Exception as error:
            run = captured.forward
            graph.rows = [Row("", "", "left", f"rewriting failed: {report.reason(error)}")]
        state.graphs.append(graph)
        fuses = bool(graph.replaced)

        def counted(*args: Any) -> Any:
            graph.runs += 1
            state.fused_runs += fuses
            return run(*args)

        return counted

    def _rows(self, rewriter: Rewriter) -> list[Row]:
        rows = [Row(*self._place(meta), "replaced", what) for meta, what in rewriter.replaced]
        for node in rewriter.graph.nodes:
            name = op.name if (op := meaning(node)) is not None else ""
            reason = rewriter.reasons.get(node, "nothing about it is fused")
            if name in ("conv", "up", "down", "batch_norm", "lrelu", "relu") or node in rewriter.reasons:
                rows.append(Row(*self._place(node.meta), "left", f"{name or node.name}: {reason}"))
        return rows

    def _place(self, meta: dict) -> tuple[str, str]:
        """(path of the module whose code a node comes from, its class)."""
        stack = list((meta.get("nn_module_stack") or {}).values())
        path, kind = stack[-1] if stack else ("L['self']", "")
        kind = kind.__name__ if isinstance(kind, type) else str(kind).rpartition(".")[2]
        found = re.match(r"L\['(\w+)'\]\.?(.*)", path)
        if found is None:
            return path, kind
        names = {id(module): name for name, module in self.state.module.named_modules()}
        below = re.sub(r"\._modules\['(\w+)'\]|\[(\d+)\]", lambda m: f".{m[1] or m[2]}", found[2])
        return f"{names.get(id(self.locals.get(found[1])), '')}.{below}".strip("."), kind
