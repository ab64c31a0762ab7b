"""The files of the npm package onnxruntime-web that a page needs to run a model, fetched once by npm."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from pggan_fast.utils.atomic_write import atomic_write
from pggan_fast.utils.cache import cache_folder
from pggan_fast.utils.errors import UserError

VERSION = "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""SHA-512 of the package's archive, as the npm registry states it."""
FILES = {"runtime": "dist/ort.wasm.bundle.min.mjs", "wasm": "dist/ort-wasm-simd-threaded.wasm"}
LARGEST = 64 << 20  # bytes of one of them
TIMEOUT = 600  # seconds for 33 MB


def runtime_files(place: Path | None) -> dict[str, bytes]:
    """Return the JavaScript ("runtime") and the WebAssembly ("wasm") of onnxruntime-web.

    `place` is the npm package, unpacked or as its .tgz; for None it is in the cache folder, or npm fetches it there.
    Raises UserError if it is neither.
    """
    if place is not None:
        return _read(place)
    archive = cache_folder() / f"onnxruntime-web-{VERSION}.tgz"
    if not archive.is_file() or not _has_the_hash(archive.read_bytes()):
        print(f"fetching onnxruntime-web {VERSION} from the npm registry (33 MB, kept in {archive.parent})", flush=True)
        contents = _fetch()
        with atomic_write(archive) as aside:
            aside.write_bytes(contents)
    return _read(archive)


def _fetch() -> bytes:
    """Return the package's archive from npm's registry, with the expected hash."""
    problem = f"--format html: needs onnxruntime-web {VERSION}, and {{}}; name the package with --onnxruntime-web PATH"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(problem.format("npm, which fetches it, is not installed"))
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--silent"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(problem.format(f"npm does not fetch it ({error})")) from error
        archive = Path(folder) / f"onnxruntime-web-{VERSION}.tgz"
        if done.returncode or not archive.is_file():
            reason = " ".join(done.stderr.split())[:200] or f"exit code {done.returncode}"
            raise UserError(problem.format(f"npm cannot fetch it ({reason})"))
        contents = archive.read_bytes()
    if not _has_the_hash(contents):
        raise UserError(problem.format("what npm fetched has another hash"))
    return contents


def _has_the_hash(archive: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(archive).digest()).decode() == INTEGRITY


def _read(place: Path) -> dict[str, bytes]:
    """Return the two files of the package in `place`. Raises UserError."""
    found = {}
    try:
        if place.is_dir():
            return {name: (place / path).read_bytes() for name, path in FILES.items()}
        with tarfile.open(place) as archive:
            for name, path in FILES.items():
                member = archive.extractfile(f"package/{path}")
                found[name] = member.read(LARGEST) if member else b""
    except (OSError, KeyError, EOFError, tarfile.TarError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--onnxruntime-web {place}: is not the npm package onnxruntime-web ({reason})") from error
    if not all(found.values()):
        raise UserError(f"--onnxruntime-web {place}: is not the npm package onnxruntime-web")
    return found
