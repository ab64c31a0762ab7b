"""Classes from the folders that files are in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from pggan_fast.data.names import has_image_suffix, printable

OUTSIDE = "."  # class of images beside the folders that are classes


def class_names(names: Iterable[str]) -> dict[str, str | None]:
    """Return the class of every path: the first folder that not all images share, None where there is none.

    A folder that holds all other folders is no class: train/cat, train/dog are cat and dog, with or without a file
    beside train/. Images outside of the classes' folders have the class ".". Files that are not named as images have
    no say in what the classes are.
    """
    folders = {name: PurePosixPath(name).parts[:-1] for name in names}
    deciding = {folder for name, folder in folders.items() if has_image_suffix(name)} or set(folders.values())
    shared: tuple[str, ...] = ()
    while True:
        below = {folder[len(shared)] for folder in deciding if _is_below(folder, shared)}
        if len(below) != 1:
            break
        only = (*shared, *below)
        loose = any(folder[: len(only)] != only for folder in deciding)
        if loose and not any(_is_below(folder, only) for folder in deciding):
            break  # one folder of images with images beside it: those are two classes
        shared = only
    if not any(_is_below(folder, shared) for folder in deciding):
        return dict.fromkeys(folders)
    return {name: printable(_class_of(folder, shared)) for name, folder in folders.items()}


def _class_of(folder: tuple[str, ...], shared: tuple[str, ...]) -> str:
    return folder[len(shared)] if _is_below(folder, shared) else OUTSIDE


def _is_below(folder: tuple[str, ...], above: tuple[str, ...]) -> bool:
    return len(folder) > len(above) and folder[: len(above)] == above
