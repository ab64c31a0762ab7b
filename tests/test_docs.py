"""Every file and every `python -m module` that README and docs name exists, and the README links every page."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
ROOMS = "bench|csrc|docs|examples|experiments|kernels|pggan_fast|tests"
# Written by a command, so not there on a fresh clone.
MADE = ("bench/results/",)


def paths_in(text: str) -> set[str]:
    """Return the files and folders of this repository in backquotes."""
    found = re.findall(rf"`((?:{ROOMS})/[\w./-]*)", text)
    return {path for path in found if not path.startswith(MADE)}


def modules_in(text: str) -> set[str]:
    return set(re.findall(r"python -m ((?:bench|experiments|tests|pggan_fast)(?:\.\w+)*)", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    assert sorted(path for path in paths_in(text) if not (ROOT / path).exists()) == []
    assert sorted(name for name in modules_in(text) if importlib.util.find_spec(name) is None) == []
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("start", ["README.md", "docs/README.md"])
def test_every_page_is_linked(start):
    text = (ROOT / start).read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert sorted(name for name in pages if f"{name})" not in text) == []


def test_what_is_missing_is_found():
    text = "`pggan_fast/no_such_file.py` and `python -m bench.no_such_module`"
    assert [path for path in paths_in(text) if not (ROOT / path).exists()] == ["pggan_fast/no_such_file.py"]
    assert modules_in(text) == {"bench.no_such_module"}


def test_the_code_of_the_readme_runs():
    """Its blocks of Python in their order, as one program; what is somebody else's code is given, or left out."""
    given = {"model": torch.nn.Conv2d(3, 4, 3), "loader": [torch.rand(2, 3, 8, 8)]}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    own = [block for block in blocks if "torch_utils" not in block]
    exec("import pggan_fast\n" + "\n".join(own), given)
    assert given["y"].shape == (4, 128, 128, 128) and given["samples"].shape[1:] == (3, 64, 64)
