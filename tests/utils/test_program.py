"""Commands in messages work where they are printed: started by name, by path, as a module, from another folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pggan_fast.utils.program import command, typed

SCRIPT = Path(sys.executable).with_name("pggan-fast")


def started(arguments, cwd, **env):
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=cwd, env={**os.environ, **env})
    assert done.returncode == 2, done.stderr
    return re.search(r"make one with: (.*) --images FOLDER --out DATA", done.stderr).group(1)


MISTAKE = ["train", "--data", "nowhere", "--out", "run"]


@pytest.mark.parametrize("way", ["name", "path", "module"])
def test_the_command_in_a_message_runs(tmp_path, way):
    """Each is started without the environment's folder on the path, but for the first."""
    path = f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}" if way == "name" else os.defpath
    first = {"name": ["pggan-fast"], "path": [SCRIPT], "module": [sys.executable, "-m", "pggan_fast"]}[way]
    printed = started([which(first[0], path), *first[1:], *MISTAKE], tmp_path, PATH=path)
    assert (
        printed
        == {
            "name": "pggan-fast prepare",
            "path": f"{shlex.quote(str(SCRIPT))} prepare",
            "module": f"{shlex.quote(sys.executable)} -m pggan_fast prepare",
        }[way]
    )
    done = subprocess.run(
        [*shlex.split(printed), "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0 and "usage: pggan-fast prepare" in done.stdout


def which(name, path):
    return SCRIPT if name == "pggan-fast" and path != os.defpath else name


def test_a_program_below_the_current_folder_is_a_path_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.defpath)
    assert typed(str(tmp_path / ".venv/bin/pggan-fast")) == ".venv/bin/pggan-fast"
    assert typed(str(tmp_path / "pggan-fast")) == "./pggan-fast"
    assert typed(str(tmp_path / "a b" / "pggan-fast")) == "'a b/pggan-fast'"
    assert typed(str(tmp_path.parent / "pggan-fast")) == str(tmp_path.parent / "pggan-fast")


def test_a_link_to_another_python_is_not_that_python(tmp_path, monkeypatch):
    """The python of an environment links to one on the path that has none of the environment's packages."""
    for folder in ("usr", "venv"):
        (tmp_path / folder).mkdir()
    (tmp_path / "usr/python3").touch(0o755)
    (tmp_path / "venv/python3").symlink_to(tmp_path / "usr/python3")
    monkeypatch.setenv("PATH", str(tmp_path / "usr"))
    assert typed(str(tmp_path / "usr/python3")) == "python3"
    assert typed(str(tmp_path / "venv/python3")) == str(tmp_path / "venv/python3")


def test_arguments_are_quoted(tmp_path):
    assert command("train", "--resume", Path("my run")).endswith("pggan-fast train --resume 'my run'")
