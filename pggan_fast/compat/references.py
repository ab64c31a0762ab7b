"""References to a function in the places where a module's code may hold it, exchanged for another one's."""

import functools
from collections.abc import Callable
from types import FunctionType, ModuleType

ABSENT = object()
Undo = list[Callable[[], None]]


def exchange(exchanged: dict[int, object], module: ModuleType, key: str, value: object, undo: Undo) -> None:
    """Exchange what `value`, the module's attribute `key`, is or holds: {identity: replacement}; adds what undoes it.

    It may be the function itself, a partial of it, a dict or list of it, a function that has it for a default, or a
    class of the module that has it for an attribute or for a default of a method.
    """
    replacement = _replacement(exchanged, value)
    if replacement is not value:
        undo.append(setter(module, key, value))
        setattr(module, key, replacement)
    elif isinstance(value, dict | list):
        _exchange_items(exchanged, value, undo, inside=2)
    elif isinstance(value, FunctionType) and value.__module__ == module.__name__:
        _exchange_defaults(exchanged, value, undo)
    elif isinstance(value, type) and value.__module__ == module.__name__:
        for name, held in list(vars(value).items()):
            function = held.__func__ if isinstance(held, staticmethod | classmethod) else held
            replacement = _replacement(exchanged, function)
            if replacement is not function:
                undo.append(functools.partial(setattr, value, name, held))
                setattr(value, name, replacement if function is held else type(held)(replacement))
            elif isinstance(function, FunctionType):
                _exchange_defaults(exchanged, function, undo)


def _replacement(exchanged: dict[int, object], value: object) -> object:
    """The object for `value`: itself, if it is not exchanged."""
    if id(value) in exchanged:
        return exchanged[id(value)]
    if type(value) is functools.partial and id(value.func) in exchanged:
        return functools.partial(exchanged[id(value.func)], *value.args, **value.keywords)
    return value


def _exchange_items(exchanged: dict[int, object], container: dict | list, undo: Undo, inside: int) -> None:
    """Exchange items, and those of containers in it; `inside` says how deep, since they may hold themselves."""
    for at, held in list(container.items() if isinstance(container, dict) else enumerate(container)):
        replacement = _replacement(exchanged, held)
        if replacement is not held:
            undo.append(functools.partial(container.__setitem__, at, held))
            container[at] = replacement
        elif inside and type(held) in (dict, list):
            _exchange_items(exchanged, held, undo, inside - 1)


def _exchange_defaults(exchanged: dict[int, object], function: FunctionType, undo: Undo) -> None:
    for name in ("__defaults__", "__kwdefaults__"):
        before = getattr(function, name)
        if not before:
            continue
        if isinstance(before, dict):
            after = {key: _replacement(exchanged, value) for key, value in before.items()}
            changed = any(after[key] is not value for key, value in before.items())
        else:
            after = tuple(_replacement(exchanged, value) for value in before)
            changed = any(a is not b for a, b in zip(after, before, strict=True))
        if changed:
            undo.append(functools.partial(setattr, function, name, before))
            setattr(function, name, after)


def setter(module: ModuleType, key: str, value: object) -> Callable[[], None]:
    """A function that sets an attribute back to what it was, or deletes it if it was absent."""

    def undo() -> None:
        if value is not ABSENT:
            setattr(module, key, value)
        elif key in vars(module):
            delattr(module, key)

    return undo
