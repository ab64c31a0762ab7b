"""The ops as a repository for Hugging Face's `kernels`, loaded by its own loader beside the installed package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pggan_fast
from pggan_fast.interop.kernels_repository import read_sources, rewrite, write_repository
from pggan_fast.utils.errors import UserError

# Loads two versions and the installed package into one process, which must agree to second order.
PROGRAM = """
import sys
from pathlib import Path
import torch
from kernels import get_local_kernel
first, second = (get_local_kernel(Path(path), backend=sys.argv[3]) for path in sys.argv[1:3])
assert not any(name.partition(".")[0] == "pggan_fast" for name in sys.modules), "the installed package was imported"
import pggan_fast
assert first is not second and first.__file__ != second.__file__
assert sorted(first.__all__) == sorted([*pggan_fast.ops.__all__, "ops", "reference"])
impl = sys.argv[4]

def derivatives(ops, impl):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    weight, bias = torch.randn(3, 4, 3, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    y = ops.equalized_conv2d(x, weight, bias, up=2, act="lrelu", pixel_norm=True, impl=impl)
    y = ops.minibatch_stddev(ops.fade_in(ops.bias_act(x[:, :3], bias, impl=impl), y, 0.3, impl=impl), impl=impl)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return [y, dx, *torch.autograd.grad(dx.square().sum(), [weight, bias])]

expected = derivatives(pggan_fast, impl)
for ops in (first, second):
    for a, b in zip(derivatives(ops, impl), expected):
        # The package folds weights by its CPU kernels: an ulp of fp32, which cancelling sums make 1e-4 of the largest.
        assert (a - b).abs().max() <= 1e-4 * b.abs().max(), (a - b).abs().max() / b.abs().max()
namespaces = {module._native.__name__.partition(".")[0] for module in (first, second)}
assert len(namespaces) == 2, namespaces
print("ok", first.ops.implementations("cpu")["bias_act"]["native"])
"""


def run(program, *arguments, cwd, **env):
    """Run a program in a process of its own: here `kernels` is the folder of Triton's kernels in the checkout."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1", **env}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return write_repository(tmp_path_factory.mktemp("hub") / "pggan-fast-ops")


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    """The repository of a later version: one line of one file differs."""
    with pytest.MonkeyPatch.context() as patch:
        files = read_sources()
        files["reference.py"] += "\nLATER = True\n"
        patch.setattr("pggan_fast.interop.kernels_repository.read_sources", lambda: files)
        return write_repository(tmp_path_factory.mktemp("later") / "pggan-fast-ops")


@pytest.mark.parametrize(("backend", "impl", "interpreted"), [("cpu", "reference", "0"), ("cuda", "triton", "1")])
def test_two_versions_beside_the_package(repository, another, tmp_path, backend, impl, interpreted):
    printed = run(PROGRAM, repository, another, backend, impl, cwd=tmp_path, TRITON_INTERPRET=interpreted)
    assert printed.endswith("this repository holds no compiled kernels, pip install pggan-fast has them\n")


LAYOUT = """
import sys
from pathlib import Path
from kernels._rust import Build, Metadata
general = Build.open(sys.argv[1]).general
metadata = Metadata.read_from_file(Path(sys.argv[1], "build/torch-universal/metadata.json"))
print(*(str(backend).lower() for backend in general.backends), metadata.name.python_name, metadata.version)
"""


def test_the_layout(repository, tmp_path):
    assert run(LAYOUT, repository, cwd=tmp_path) == "cuda rocm xpu cpu pggan_fast_ops 1\n"
    sources = {p.relative_to(repository / "torch-ext/pggan_fast_ops") for p in repository.glob("torch-ext/**/*.py")}
    built = {p.relative_to(repository / "build/torch-universal") for p in repository.glob("build/**/*.py")}
    assert sources == built and Path("ops/conv.py") in built and Path("kernels/conv.py") in built
    card = (repository / "README.md").read_text()
    assert card.startswith("---\n") and all(f"`{name}`" in card for name in pggan_fast.ops.__all__)


@pytest.mark.parametrize("line", ["import pggan_fast", "import pggan_fast.ops as o", "x = pggan_fast.ops"])
def test_a_name_of_the_package_is_not_left(line):
    with pytest.raises(ValueError, match="line 2: "):
        rewrite(f'"""pggan_fast may stand in a docstring."""\n{line}\n', depth=1, namespace="other")


def test_a_folder_in_use_is_refused(repository):
    with pytest.raises(UserError, match="is not empty"):
        write_repository(repository)
