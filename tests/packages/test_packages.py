"""The source archive, the wheels made of it, their metadata, and the workflows that make them.

With PGGAN_FAST_TEST_PACKAGES=1 (`make test-packages`) also with isolation, from git, and into fresh environments, one
for each Python of PGGAN_FAST_PYTHONS: executables, separated by spaces, that may have torch already.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "tests/packages/smoke.py"
NO_COMPILER = {"CXX": "/nowhere/c++", "CC": "/nowhere/cc"}
slow = pytest.mark.skipif("PGGAN_FAST_TEST_PACKAGES" not in os.environ, reason="slow: run by make test-packages")
IGNORED = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "__pycache__", "*.egg-info", "_C*", "runs", ".cache"
)


def run(*command: object, cwd: Path, **env: str) -> str:
    """Run a command outside of the checkout's environment variables and return what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PGGAN_FAST_CUDA": "0", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, made in a folder with a space and letters beyond ASCII, beside built products."""
    checkout = tmp_path_factory.mktemp("packages") / "ein Ordner – größer 雪" / "pggan fast"
    shutil.copytree(ROOT, checkout, ignore=IGNORED)
    for name in ("_C.abi3.so", "_C_cuda.txt", "_C_cuda.json"):
        (checkout / "pggan_fast" / name).write_text("left by another build")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", cwd=checkout)
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def source(sdist: Path) -> Path:
    """The archive, unpacked beside itself."""
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    return sdist.parent / sdist.name.removesuffix(".tar.gz")


def wheel_of(source: Path, *options: str, **env: str) -> Path:
    """The wheel that pip makes of a source folder."""
    out = source.parent / "wheels"
    shutil.rmtree(out, ignore_errors=True)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", out, *options, source, cwd=source.parent, **env)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def pure_wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a machine without a compiler."""
    wheel = wheel_of(source, "--no-build-isolation", "--no-index", **NO_COMPILER)
    return Path(shutil.copy(wheel, tmp_path_factory.mktemp("pure")))


def tracked() -> set[str]:
    """Every file that belongs to the repository."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git, or no repository")
    return {name for name in listed.stdout.split("\n") if name and (ROOT / name).exists()}


def test_the_archive_has_every_file_and_nothing_built(source: Path) -> None:
    packed = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    of_the_repository = {name for name in tracked() if not name.startswith(".") and name != "Dockerfile"}
    made = {"PKG-INFO", "setup.cfg"}
    assert sorted(of_the_repository - packed) == []
    assert sorted(name for name in packed - of_the_repository - made if "egg-info" not in name) == []


def test_without_a_compiler_the_wheel_is_for_every_machine(pure_wheel: Path) -> None:
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(pure_wheel).namelist())
    expected = {name for name in tracked() if re.match(r"(pggan_fast|kernels)/.*\.(py|typed)$", name)}
    expected = {re.sub(r"^kernels/", "pggan_fast/kernels/", name) for name in expected}
    assert sorted(expected - names) == []
    assert {name for name in names if name.endswith((".so", ".json"))} == set()
    assert sorted(name.split("/")[0] for name in names if not name.startswith(("pggan_fast/", "pggan_fast-"))) == []


def test_the_metadata(pure_wheel: Path, sdist: Path) -> None:
    checked = run(sys.executable, "-m", "twine", "check", "--strict", pure_wheel, sdist, cwd=sdist.parent)
    assert checked.count("PASSED") == 2
    wheel = zipfile.ZipFile(pure_wheel)
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    told = email.message_from_bytes(wheel.read(name))
    assert (told["Requires-Python"], told["License-Expression"]) == (">=3.10", "Apache-2.0")
    versions = {c.rpartition(" ")[2] for c in told.get_all("Classifier") if "Python :: 3." in c}
    assert versions == {"3.10", "3.11", "3.12", "3.13", "3.14"}
    assert "Typing :: Typed" in told.get_all("Classifier")
    assert "gan" in told["Keywords"].split(",")
    extras = set(told.get_all("Provides-Extra"))
    named = set(
        re.findall(r"pggan-fast\[([\w,-]+)\]", (ROOT / "README.md").read_text() + str(told.get_all("Requires-Dist")))
    )
    assert {extra for names in named for extra in names.split(",")} <= extras


def test_the_workflows_follow_the_schema() -> None:
    """By GitHub's schema; a step that is none of its kinds, or a misspelled key, fails."""
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    assert [path.name for path in workflows] == ["release.yml", "tests.yml", "wheels.yml"]
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    assert "ok" in run(*command, *workflows, cwd=ROOT)


def test_actionlint_finds_nothing_in_the_workflows() -> None:
    """Expressions, outputs, names of runners and actions' inputs, which the schema does not know."""
    actionlint = Path(sys.executable).with_name("actionlint")
    if not actionlint.exists():
        pytest.skip("needs actionlint: make test-packages installs it")
    assert run(actionlint, "-no-color", *sorted((ROOT / ".github/workflows").glob("*.yml")), cwd=ROOT) == ""


def test_what_workflows_and_dockerfile_name_exists() -> None:
    text = "".join(path.read_text() for path in [*(ROOT / ".github/workflows").iterdir(), ROOT / "Dockerfile"])
    paths = re.findall(r"(?:^|[\s/\"'])((?:tests|\.ci|\.github)/[\w./-]+)", text)
    assert "tests/packages/smoke.py" in paths and ".ci/run" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_a_rule_with_spaces_names_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    import setuptools

    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.chdir(ROOT)
    read = runpy.run_path("setup.py")["read_dependencies"]
    assert read("a.o: a.cpp \\\n  /x/a\\ b/größe.h \\\n c.h\n") == ["a.cpp", "/x/a b/größe.h", "c.h"]


def environments() -> list[str]:
    return os.environ.get("PGGAN_FAST_PYTHONS", sys.executable).split()


@slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("python", environments())
def test_fresh_environments(source: Path, sdist: Path, pure_wheel: Path, python: str, tmp_path: Path) -> None:
    """One wheel, the pure one and the archive in every Python: the doctor, an op, a training step."""
    wheel = wheel_of(source, "--no-build-isolation", "--no-index")
    assert "-py3-none-linux_" in wheel.name
    assert "pggan_fast/_C.abi3.so" in zipfile.ZipFile(wheel).namelist()
    wheel = Path(shutil.copy(wheel, tmp_path))
    has_torch = subprocess.run([python, "-c", "import torch, setuptools"], cwd=tmp_path, capture_output=True)
    folder = tmp_path / "ümgebung 1"
    if has_torch.returncode == 0:
        run(python, "-m", "venv", "--system-site-packages", folder, cwd=tmp_path)
        packages = run(
            python, "-c", "import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])", cwd=tmp_path
        )
        (site,) = (folder / "lib").glob("python*/site-packages")
        (site / "base.pth").write_text(packages.strip().splitlines()[-1])
    else:
        run(python, "-m", "venv", folder, cwd=tmp_path)
        run(folder / "bin/python", "-m", "pip", "install", "-q", "setuptools>=77", "torch>=2.10", cwd=tmp_path)
    inside = folder / "bin/python"
    for what, native in ((wheel, True), (pure_wheel, False), (sdist, True)):
        install = ["install", "-q", "--no-build-isolation", "--force-reinstall", "--no-deps"]
        run(inside, "-m", "pip", *install, what, cwd=tmp_path)
        run(inside, "-m", "pip", "install", "-q", "pggan-fast", cwd=tmp_path)  # what it depends on
        said = run(inside, shutil.copy(SMOKE, tmp_path), *(["native"] if native else []), cwd=tmp_path)
        assert "ok: Python" in said and ("no CPU kernels" in said) == (not native), said
        print(what.name, said.strip().splitlines()[-1])


@slow
@pytest.mark.parametrize("compiler", [{}, NO_COMPILER], ids=["compiler", "none"])
def test_the_archive_builds_with_isolation(source: Path, compiler: dict[str, str]) -> None:
    """In an environment of its own, for which pip downloads torch once more."""
    names = zipfile.ZipFile(wheel_of(source, **compiler)).namelist()
    assert ("pggan_fast/_C.abi3.so" in names) == (not compiler and shutil.which("c++") is not None)


@slow
def test_from_git(source: Path, tmp_path: Path) -> None:
    repository = tmp_path / "ein repo ü"
    shutil.copytree(source, repository, ignore=IGNORED)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        run(*git, *command, cwd=repository)
    target = tmp_path / "installed"
    address = f"git+{repository.as_uri()}"
    options = ["--no-deps", "--no-build-isolation", "--target", target]
    run(sys.executable, "-m", "pip", "install", *options, address, cwd=tmp_path)
    assert (target / "pggan_fast/py.typed").exists()
    assert (target / "pggan_fast/_C.abi3.so").exists() == (shutil.which("c++") is not None)
