"""Image files in a folder or a zip archive; folder names are classes."""

from __future__ import annotations

import hashlib
import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from pggan_fast.data.preprocessing import Picture, measure, read
from pggan_fast.data.sources.source import Item
from pggan_fast.utils.errors import UserError


class FileSource(ABC):
    """Every file by its path below the root, "a/b/c.png"; hidden ones are left out.

    The class is the first folder of the path that not all files share; without such folders there are
    no classes. Files beside the folders have the class ".".
    """

    classes = None

    def __init__(self, place: Path, names: list[str]) -> None:
        hidden = (".", "__MACOSX")
        self.names = sorted(name for name in names if not any(part.startswith(hidden) for part in name.split("/")))
        if not self.names:
            raise UserError(f"--images {place}: there are no files in it")
        self.count = len(self.names)
        listing = hashlib.sha256("\n".join(self.names).encode()).hexdigest()
        self.facts: dict[str, Any] = {"files in": str(place.absolute()), "names": listing}
        folders = [PurePosixPath(name).parts[:-1] for name in self.names]
        self._shared = 0
        while all(
            len(folder) > self._shared and folder[: self._shared + 1] == folders[0][: self._shared + 1]
            for folder in folders
        ):
            self._shared += 1
        self._has_classes = any(len(folder) > self._shared for folder in folders)

    def items(self, start: int = 0) -> Iterator[Item]:
        for name in self.names[start:]:
            yield Item(name, self._class(name), partial(self._read, name), partial(self._measure, name))

    def _class(self, name: str) -> str | None:
        folder = PurePosixPath(name).parts[self._shared : -1]
        return (folder[0] if folder else ".") if self._has_classes else None

    def _read(self, name: str) -> Picture:
        return read(name, self._open(name))

    def _measure(self, name: str) -> tuple[int, int]:
        return measure(name, self._open(name))

    @abstractmethod
    def _open(self, name: str) -> Path | BinaryIO: ...


class Folder(FileSource):
    """A folder, with everything below it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(path, [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()])

    def _open(self, name: str) -> Path:
        return self.path / name


class Zip(FileSource):
    """A zip archive; it is read in place."""

    def __init__(self, path: Path) -> None:
        try:
            self._archive = zipfile.ZipFile(path)  # threads may read from it at the same time
        except zipfile.BadZipFile as error:
            raise UserError(f"--images {path}: is no zip archive or a damaged one ({error})") from error
        super().__init__(path, [entry.filename for entry in self._archive.infolist() if not entry.is_dir()])

    def _open(self, name: str) -> BinaryIO:
        return io.BytesIO(self._archive.read(name))
