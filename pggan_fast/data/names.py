"""Names of files: which are no images whatever is in them, and how any name is printed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import PurePosixPath

# Left out by `prepare` and `evaluate` alike, and named in one line.
IGNORED_FOLDERS = (
    *("__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "$recycle.bin"),
    *("system volume information", "lost+found"),
)
IGNORED_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
IGNORED_STEMS = ("readme", "license", "licence", "changelog", "copying", "notice", "makefile", "dockerfile")
IGNORED_SUFFIXES = frozenset(
    {
        *(
            ".txt",
            ".md",
            ".rst",
            ".json",
            ".jsonl",
            ".ndjson",
            ".csv",
            ".tsv",
            ".xml",
            ".html",
            ".htm",
            ".yaml",
            ".yml",
        ),
        *(".toml", ".ini", ".cfg", ".log", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".py", ".ipynb", ".sh", ".bat"),
        *(".m", ".mat", ".pkl", ".pickle", ".db", ".sqlite", ".lmdb", ".labels", ".md5", ".sha1", ".sha256", ".url"),
        *(".lnk", ".torrent", ".part", ".tmp", ".crdownload"),
    }
)
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".j2k", ".jpx", ".avif", ".pcx", ".sgi", ".rgb", ".bw"),
        *(".qoi", ".ico", ".npy"),
    }
)


def is_ignored(name: str) -> bool:
    """Return whether the file `name`, "a/b/c.png", is metadata, hidden, or what a system puts beside files."""
    *folders, file = (part.lower() for part in name.split("/"))
    if any(part.startswith(".") for part in (*folders, file)) or any(part in IGNORED_FOLDERS for part in folders):
        return True
    path = PurePosixPath(file)
    if path.suffix in IMAGE_SUFFIXES:
        return False
    return file in IGNORED_FILES or path.suffix in IGNORED_SUFFIXES or path.stem in IGNORED_STEMS


def has_image_suffix(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def printable(name: str) -> str:
    """Return `name` in one line of valid Unicode: bytes that are not UTF-8 and control characters become escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") if _has_bytes(name) else name
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def one_line(error: BaseException, most: int = 200) -> str:
    """Return what `error` says, or its kind if it says nothing, in one line."""
    text = printable(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."


def some_of(names: Iterable[str], most: int = 3) -> str:
    """Return "a, b, c and 4 more"."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _has_bytes(name: str) -> bool:
    """Return whether the system's name had bytes that are no UTF-8, which Python keeps as lone surrogates."""
    return any("\udc80" <= character <= "\udcff" for character in name)


def to_bytes(name: str) -> bytes:
    """Return the bytes of a name that the system gave, or of any other."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass")
