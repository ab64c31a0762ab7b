"""Image files in a folder or a zip archive; folder names, or the labels in a dataset.json, are classes."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from pggan_fast.data.manifest import MANIFEST
from pggan_fast.data.names import is_ignored, one_line, printable, some_of
from pggan_fast.data.preprocessing import AnyImage, measure, read
from pggan_fast.data.sources.listing import check_unchanged, file_fingerprint, fingerprint, list_files
from pggan_fast.data.sources.source import Item, SourceError
from pggan_fast.data.sources.stylegan import LABELS_FILE, are_shards, read_labels
from pggan_fast.data.sources.tree import class_names
from pggan_fast.utils.errors import UserError

MOST_BYTES = 1 << 29  # of one file in an archive, which says of itself how much it unpacks to


class FileSource(ABC):
    """Every file by its path below the root, "a/b/c.png"; pggan_fast.data.names says which are left out.

    An item's class is its folder, see `class_names`. With a dataset.json of StyleGAN's tools its labels are the
    classes, and folders are none.
    """

    classes = None

    def __init__(self, place: Path, files: dict[str, str], *, option: str) -> None:
        """`files`: each path with what stands for its content."""
        self.place, self.option = place, option
        self.left_out: dict[str, str] = {}
        self.names = sorted(files)
        if not self.names:
            reason = f" but {some_of(self.ignored)}, which are no images" if self.ignored else ""
            raise UserError(f"{option} {printable(str(place))}: holds no images, there are no files in it{reason}")
        self.count = len(self.names)
        self._labels = self._find_labels()
        self.metadata: dict[str, Any] = {
            "files in": printable(str(place.absolute())),
            "files": fingerprint((name, files[name]) for name in self.names),
            "labels": fingerprint((name, str(label)) for name, label in sorted(self._labels.items())),
        }

    ignored: list[str]

    def items(self, start: int = 0) -> Iterator[Item]:
        for name in self.names[start:]:
            yield self.item(name)

    def item(self, name: str) -> Item:
        label = self._labels.get(name)
        if name not in self._labels:
            return Item(printable(name), None, partial(_refuse, f"has no label in {LABELS_FILE}"))
        return Item(printable(name), label, partial(self._read, name), partial(self._measure, name))

    def _find_labels(self) -> dict[str, str | None]:
        """Return the class of every file; a file that is not in it is left out."""
        text, root = self._labels_text()
        if text is not None:
            labels, note = read_labels(text, self.names, root, f"{self.option} {printable(str(self.place))}")
            if note:
                print(note)
            if labels is not None:
                return labels
        if are_shards(self.names):
            return dict.fromkeys(self.names)
        return class_names(self.names)

    def _labels_text(self) -> tuple[bytes | None, str]:
        """Return the dataset.json at the root, or in the one folder that everything is in, and that folder."""
        tops = {PurePosixPath(name).parts[0] for name in self.names if "/" in name}
        roots = ["", f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in self.names) else ""]
        for root in dict.fromkeys(roots):
            text = self._bytes_of(root + MANIFEST)
            if text is not None:
                return text, root
        return None, ""

    def _read(self, name: str) -> AnyImage:
        with self._telling(name):
            return read(name, self._open(name))

    def _measure(self, name: str) -> tuple[int, int]:
        with self._telling(name):
            return measure(name, self._open(name))

    def _telling(self, name: str) -> _Telling:
        return _Telling(self, name)

    @abstractmethod
    def _open(self, name: str) -> Path | BinaryIO: ...

    @abstractmethod
    def _bytes_of(self, name: str) -> bytes | None:
        """Return a file that is no image, None if there is none."""

    def is_gone(self, name: str, error: OSError) -> bool:
        """Return whether `error` says that more than the file `name` cannot be read."""
        return False


class _Telling:
    """Turn the system's errors about the file that is read into SourceError where they are about the source."""

    def __init__(self, source: FileSource, name: str) -> None:
        self.source, self.name = source, name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        is_gone = isinstance(error, OSError) and error.errno is not None and self.source.is_gone(self.name, error)
        if is_gone and not isinstance(error, SourceError):
            source = self.source
            raise SourceError(
                f"{source.option} {printable(str(source.place))}: cannot be read any more,"
                f" {printable(self.name)}: {error.strerror or one_line(error)}"
            ) from error


def _refuse(reason: str) -> AnyImage:
    raise ValueError(reason)


class Folder(FileSource):
    """A folder, with everything below it, links to folders included."""

    def __init__(self, path: Path, *, option: str = "--images") -> None:
        self.path = path
        listing = list_files(path, option)
        self.ignored = listing.ignored
        super().__init__(path, listing.files, option=option)
        self.left_out = listing.left_out

    def _open(self, name: str) -> Path:
        return self.path / name

    def _bytes_of(self, name: str) -> bytes | None:
        file = self.path / name
        return file.read_bytes() if file.is_file() else None

    def is_gone(self, name: str, error: OSError) -> bool:
        # A file that was listed and is not there any more: somebody changes the folder. One that may not be read is
        # only itself, unless its folder may not be read either.
        if error.errno in (errno.EACCES, errno.EPERM):
            return not os.access((self.path / name).parent, os.R_OK | os.X_OK)
        return True


class Zip(FileSource):
    """A zip archive; it is read in place. Names are those that the system that wrote it meant."""

    def __init__(self, path: Path, *, option: str = "--images") -> None:
        try:
            self._fingerprint = file_fingerprint(path)
            self._archive = zipfile.ZipFile(path)  # threads may read from it at the same time
            entries = {}
            for entry in self._archive.infolist():
                name = entry_name(entry)
                if name and not entry.is_dir() and not entry.filename.endswith("\\"):
                    entries[_unused(name, entries)] = entry
        except OSError as error:
            raise UserError(f"{option} {path}: cannot be read ({error.strerror or one_line(error)})") from error
        except Exception as error:  # the library raises many kinds for a damaged directory
            raise UserError(f"{option} {path}: is no zip archive or a damaged one ({one_line(error)})") from error
        self._entries = entries
        self.ignored = [printable(name) for name in entries if is_ignored(name)]
        files = {name: f"{e.file_size} {e.CRC}" for name, e in entries.items() if not is_ignored(name)}
        super().__init__(path, files, option=option)
        self.metadata["archive"] = self._fingerprint

    def _open(self, name: str) -> BinaryIO:
        entry = self._entries[name]
        if entry.flag_bits & 1:
            raise ValueError("is encrypted, a password is required")
        if entry.file_size > MOST_BYTES:
            raise ValueError(f"unpacks to {entry.file_size:,} bytes, more than {MOST_BYTES:,}")
        try:
            return io.BytesIO(self._archive.read(entry))
        except Exception:  # the library raises many kinds, also where the archive has been cut or written anew
            check_unchanged(self.place, self._fingerprint, self.option)
            raise

    def items(self, start: int = 0) -> Iterator[Item]:
        yield from super().items(start)
        check_unchanged(self.place, self._fingerprint, self.option)

    def _bytes_of(self, name: str) -> bytes | None:
        if name not in self._entries:
            return None
        try:
            return self._open(name).read()
        except Exception as error:
            raise UserError(f"{self.option} {self.place}: {name} cannot be read ({one_line(error)})") from error

    def is_gone(self, name: str, error: OSError) -> bool:
        return True


def entry_name(entry: zipfile.ZipInfo) -> str:
    """Return an entry's path with "/", without "." and "..", in the encoding that it was written in."""
    name = entry.orig_filename.split("\0")[0]
    if not entry.flag_bits & 0x800:  # not marked as UTF-8, as which many write it all the same
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    parts = name.replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def _unused(name: str, entries: dict[str, zipfile.ZipInfo]) -> str:
    """Return `name`, numbered if there is such an entry already: archives may hold one name twice."""
    path, number = PurePosixPath(name), 2
    while name in entries:
        name, number = str(path.with_name(f"{path.stem} ({number}){path.suffix}")), number + 1
    return name
