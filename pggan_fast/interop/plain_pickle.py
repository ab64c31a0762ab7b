"""Pickles of plain data, interpreted here: nothing that a file names is imported, called or built by Python.

Strings, numbers, tuples, lists and dicts become themselves. A class or function that a file names must be in a table of
the caller's; only the caller's handler for it sees the arguments. Memory stays within a small multiple of the file's
size: lengths are checked against the bytes that are there, and positions in the memo are keys of a dict.
"""

from __future__ import annotations

import os
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

MOST_OPERATIONS = 1_000_000  # a file of three networks has some ten thousand
LONGEST_LINE = 1 << 24  # bytes: text in the oldest protocol
LARGEST_KEY = 1 << 60  # of whole numbers that are keys: larger ones can be chosen so that all have the same hash
SHOWN = 80  # characters of a name in a message
_MARK = object()

CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
VALUES = NUMBERS | TEXTS | BYTES
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Malformed(ValueError):
    """A pickle that is damaged, or that holds more than plain data."""


class Global:
    """A class or function that the file names, with the handler that stands for it.

    `call` takes the arguments of a call; `make` makes an empty object, whose `set_state` takes its state.
    """

    def __init__(self, *, call: Callable[..., Any] | None = None, make: Callable[[], Any] | None = None) -> None:
        self.call, self.make = call, make


class HasState:
    """An object that a file may give a state, once."""

    filled = False

    def set_state(self, state: Any) -> None:
        """Take `state` after checking it. Raises Malformed."""
        raise NotImplementedError


def load(path: str | Path, globals_: Mapping[tuple[str, str], Global]) -> Any:
    """Return the object that the pickle `path` holds.

    `globals_` are the classes and functions that it may name, by module and name.

    Raises:
        Malformed: not a pickle, a damaged one, or one that needs anything else.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        try:
            return _Machine(globals_).run(_Input(file))
        except Malformed:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise Malformed(f"damaged: {error}") from error


class _Input:
    """A file that reads no further than its end, whatever length it is asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def read(self, count: int) -> bytes:
        return self._file.read(max(0, min(count, self._size - self._file.tell())))

    def readline(self) -> bytes:
        return self._file.readline(LONGEST_LINE)

    def tell(self) -> int:
        return self._file.tell()


class _Machine:
    def __init__(self, globals_: Mapping[tuple[str, str], Global]) -> None:
        self._globals = globals_
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, source: _Input) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(source)):
            if count == MOST_OPERATIONS:
                raise Malformed(f"has more than {MOST_OPERATIONS:,} operations")
            if opcode.name == "STOP":
                return self._pop()
            self._apply(opcode.name, argument)
        raise Malformed("ends too early")

    def _apply(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name]())
        elif name in TUPLES:
            size = TUPLES[name]
            stack.append(tuple(reversed([self._pop() for _ in range(size)])))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if not 0 <= argument < LARGEST_KEY:
                raise Malformed("damaged: a position in the memo that none has")
            self._memo[argument] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            if name not in OPERATIONS:
                raise Malformed(f"has the operation {name}, which plain data does not need")
            OPERATIONS[name](self, *(() if argument is None else (argument,)))

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise Malformed("damaged: a mark in the place of a value")
        return value

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise Malformed("damaged: a mark in the place of a value")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _mark(self) -> None:
        self._stack.append(_MARK)

    def _pop_mark(self) -> None:
        self._since_mark()

    def _dup(self) -> None:
        self._stack.append(self._top())

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._top()

    def _tuple(self) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _list(self) -> None:
        self._stack.append(self._since_mark())

    def _dict(self) -> None:
        values = self._since_mark()
        self._stack.append({})
        self._set(values)

    def _append(self) -> None:
        self._extend([self._pop()])

    def _appends(self) -> None:
        self._extend(self._since_mark())

    def _setitem(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _setitems(self) -> None:
        self._set(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        if type(self._top()) is not list:
            raise Malformed("damaged: appends to what is no list")
        self._top().extend(values)

    def _set(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict or len(values) % 2:
            raise Malformed("damaged: sets items of what is no dict, or a key without its value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int):  # hashing a deeply nested tuple overflows the stack of C
                raise Malformed(f"has a dict with a key of type {type(key).__name__}")
            if isinstance(key, int) and abs(key) >= LARGEST_KEY:
                raise Malformed("has a dict with a key that is too large a number")
            target[key] = value

    def _global(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self._push_global(module, name)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._push_global(module, name)

    def _push_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("damaged: names a class by what is no text")
        if (module, name) not in self._globals:
            shown = f"{module}.{name}".encode("unicode_escape").decode()[:SHOWN]
            raise Malformed(f"names {shown}, which is none of the few classes that are read")
        self._stack.append(self._globals[module, name])

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Global) or function.call is None or type(arguments) is not tuple:
            raise Malformed("calls what is no function")
        self._stack.append(function.call(*arguments))

    def _newobj(self) -> None:
        arguments, kind = self._pop(), self._pop()
        if not isinstance(kind, Global) or kind.make is None or arguments != ():
            raise Malformed("builds an object of what is no class")
        self._stack.append(kind.make())

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if not isinstance(target, HasState) or target.filled:
            raise Malformed("gives a state to an object that has none, or has it already")
        target.filled = True
        target.set_state(state)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "MARK": _Machine._mark,
    "POP": _Machine._pop,
    "POP_MARK": _Machine._pop_mark,
    "DUP": _Machine._dup,
    "MEMOIZE": _Machine._memoize,
    "TUPLE": _Machine._tuple,
    "LIST": _Machine._list,
    "DICT": _Machine._dict,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._setitem,
    "SETITEMS": _Machine._setitems,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._newobj,
    "BUILD": _Machine._build,
}
