"""Installing from source: with a compiler, without one, and with one that fails."""

from __future__ import annotations

import importlib
import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools
import torch

from pggan_fast import _native

ROOT = Path(__file__).parents[1]
SOURCE_FILES = ("setup.py", "pyproject.toml", "Makefile", "README.md", "LICENSE")
SOURCE_FOLDERS = ("csrc", "kernels", "pggan_fast")
IS_X86_64 = platform.machine() in ("x86_64", "AMD64")

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")

# Every source defines this function, and the linker keeps one of them.
SHARED = """
__attribute__((noinline)) inline int compiled_for() {
#if defined(__AVX512F__)
  return 512;
#elif defined(__AVX2__)
  return 2;
#else
  return 0;
#endif
}
"""
# Two operators on the stable ABI.
OPERATORS = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
using torch::stable::Tensor;
Tensor twice(const Tensor& x) {
  Tensor y = torch::stable::empty_like(x);
  const float* in = static_cast<const float*>(x.data_ptr());
  float* out = static_cast<float*>(y.data_ptr());
  torch::stable::parallel_for(0, x.numel(), 1024, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) out[i] = 2 * in[i];
  });
  return y;
}
int64_t shared(const Tensor&) { return compiled_for(); }
STABLE_TORCH_LIBRARY(pggan_fast_build_test, m) {
  m.def("twice(Tensor x) -> Tensor");
  m.def("shared(Tensor x) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(pggan_fast_build_test, CPU, m) {
  m.impl("twice", TORCH_BOX(&twice));
  m.impl("shared", TORCH_BOX(&shared));
}
"""
# The start of a source that refuses to be compiled for another instruction set than this one.
ONLY_IF = "#if !(%s)\n#error wrong instruction set\n#endif\n"
BASELINE = "!defined(__AVX2__)"
AVX2 = "defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(__AVX512F__)"
AVX512 = "defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__FMA__)"

# Weak references that gcc puts into every library.
WEAK_FROM_GCC = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the source tree without anything that was built in it."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in SOURCE_FILES:
        shutil.copy(ROOT / name, copy)
    for name in SOURCE_FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__", "_C*")
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    return copy


def use_sources(checkout: Path, sources: dict[str, str]) -> None:
    """Replace csrc by the given CPU sources, by file name."""
    shutil.rmtree(checkout / "csrc")
    (checkout / "csrc/cpu").mkdir(parents=True)
    for name, text in sources.items():
        (checkout / "csrc/cpu" / name).write_text(text)


def python(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PGGAN_FAST_CUDA": "0", **env},
        capture_output=True,
        text=True,
    )


def install(checkout: Path, **env: str) -> Path:
    """Install a checkout as users do, into a folder beside it, and return that folder."""
    target = checkout.parent / "installed"
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    done = python("-m", "pip", "install", *options, ".", cwd=checkout, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def evaluate(target: Path, setup: str, expression: str) -> object:
    """The value of an expression in a new process that imports the installed package."""
    code = f"import json, torch, pggan_fast\n{setup}\nprint(json.dumps({expression}))"
    done = python("-c", code, cwd=target, PYTHONPATH=str(target))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


REPORT = "[pggan_fast.__file__, _native.cpu_available, _native.cpu_reason]"


def test_without_a_compiler_the_package_is_pure_python(checkout: Path) -> None:
    target = install(checkout, CXX="/nowhere/c++", CC="/nowhere/cc")
    assert not list(target.rglob("*.so"))
    setup = (
        "import pggan_fast.kernels\n"
        "from pggan_fast import _native, ops\n"
        "x = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)\n"
        "same = torch.equal(ops.bias_act(x), torch.nn.functional.leaky_relu(x, 0.2))"
    )
    origin, available, reason, same = evaluate(target, setup, f"[*{REPORT}, same]")
    assert Path(origin).is_relative_to(target)
    assert not available
    assert reason == "not built: no C++ compiler (CXX=/nowhere/c++ not found)"
    assert same


@needs_compiler
def test_a_source_that_does_not_compile_leaves_pure_python(checkout: Path) -> None:
    use_sources(checkout, {"broken.cpp": "#error no such machine\n"})
    target = install(checkout)
    assert not list(target.rglob("*.so"))
    _, available, reason = evaluate(target, "from pggan_fast import _native", REPORT)
    assert not available
    assert reason.startswith("not built: ")
    assert "csrc/cpu/broken.cpp" in reason and "no such machine" in reason
    assert "\n" not in reason


@needs_compiler
def test_a_compiler_gives_a_module_that_loads_and_runs_anywhere(checkout: Path) -> None:
    """A source gets the instruction set of its name; what sources share must run on every machine."""
    sources = {"operators.cpp": ONLY_IF % BASELINE + SHARED + OPERATORS}
    if IS_X86_64:
        sources["a_avx512.cpp"] = ONLY_IF % AVX512 + SHARED + "int a() { return compiled_for(); }\n"
        sources["b_avx2.cpp"] = ONLY_IF % AVX2 + SHARED + "int b() { return compiled_for(); }\n"
    else:
        sources["a_avx2.cpp"] = "#error only for x86-64\n"
        sources["b.cpp"] = ONLY_IF % "defined(PGGAN_FAST_NO_X86)"
    use_sources(checkout, sources)
    target = install(checkout)
    assert [p.name for p in target.rglob("*.so")] == ["_C.abi3.so"]
    setup = "from pggan_fast import _native\nours, x = torch.ops.pggan_fast_build_test, torch.tensor([1.5, -2.0])"
    calls = "ours.twice(x).tolist(), ours.shared(x)"
    origin, available, reason, doubled, shared = evaluate(target, setup, f"[*{REPORT}, {calls}]")
    assert Path(origin).is_relative_to(target)
    assert available and reason == ""
    assert doubled == [3.0, -4.0]
    assert shared == 0


@needs_compiler
def test_this_installation_has_the_kernels() -> None:
    assert _native.cpu_available, _native.cpu_reason


@pytest.mark.skipif(shutil.which("nm") is None, reason="no binutils")
def test_the_module_needs_nothing_but_the_stable_abi() -> None:
    if not _native.cpu_available:
        pytest.skip(_native.cpu_reason)
    library = Path(_native.__file__).with_name("_C.abi3.so")
    listing = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", "--format=posix", str(library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = [line.split()[0] for line in listing.splitlines()]
    # Symbols of libc, libm, libgcc and libstdc++ carry a version; torch's shims are plain C names.
    from_torch = [name for name in names if "@" not in name]
    from_torch = [name for name in from_torch if name not in WEAK_FROM_GCC]
    assert "aoti_torch_library_init_impl" in from_torch
    others = [name for name in from_torch if not name.startswith(("aoti_torch_", "torch_"))]
    assert others == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1", "PGGAN_FAST_CUDA=1, but there are no sources in csrc/cuda"),
        ("yes", "PGGAN_FAST_CUDA='yes': allowed are auto, 0 and 1"),
    ],
)
def test_a_cuda_build_that_cannot_be_had_is_an_error(checkout: Path, value: str, message: str) -> None:
    use_sources(checkout, {})
    done = python("setup.py", "-q", "build_ext", cwd=checkout, PGGAN_FAST_CUDA=value)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()


# An nvcc that writes down what it is asked and leaves an empty file for what it should have made.
NVCC = """#!{python}
import sys
from pathlib import Path
arguments = sys.argv[1:]
if arguments == ["--version"]:
    print("Cuda compilation tools, release 13.0, V13.0.88")
elif arguments == ["--list-gpu-code"]:
    print("\\n".join("sm_" + n for n in ("75", "80", "86", "90", "100")))
else:
    with open("asked.txt", "a") as asked:
        print(*arguments, file=asked)
    Path(arguments[arguments.index("-o") + 1]).touch()
    if "-MF" in arguments:
        Path(arguments[arguments.index("-MF") + 1]).touch()
"""


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is a build without CUDA")
@pytest.mark.parametrize(
    ("env", "gpus"),
    [
        ({"PGGAN_FAST_CUDA": "1"}, ["75", "80", "90", "100"]),
        ({"PGGAN_FAST_CUDA": "auto", "TORCH_CUDA_ARCH_LIST": "9.0a;8.0+PTX"}, ["80", "90a"]),
    ],
)
def test_a_cuda_build_says_which_gpus_it_is_for(checkout: Path, env: dict[str, str], gpus: list[str]) -> None:
    use_sources(checkout, {"operators.cpp": OPERATORS})
    (checkout / "csrc/cuda").mkdir()
    (checkout / "csrc/cuda/kernel.cu").touch()
    nvcc = checkout.parent / "cuda/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(NVCC.format(python=sys.executable))
    nvcc.chmod(0o755)
    target = install(checkout, CUDA_HOME=str(nvcc.parents[1]), **env)
    metadata = json.loads((target / "pggan_fast/_C_cuda.json").read_text())
    assert metadata == {"cuda": "13.0", "architectures": [f"sm_{gpu}" for gpu in gpus]}
    assert (target / "pggan_fast/_C_cuda.abi3.so").exists()
    compiled = (checkout / "asked.txt").read_text().splitlines()[0].split()
    generated = [argument for argument in compiled if argument.startswith("-gencode")]
    newest = f"-gencode=arch=compute_{gpus[-1]},code=compute_{gpus[-1]}"
    assert generated == [*(f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in gpus), newest]


def test_nvcc_of_a_pip_package_is_found_where_there_is_no_toolkit(tmp_path: Path, monkeypatch) -> None:
    """It lies beside torch, and so do the libraries that it links; without it the message names the packages."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.chdir(ROOT)
    build = runpy.run_path("setup.py")
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    package = tmp_path / "nvidia/cu13"
    with pytest.raises(build["NotBuilt"], match=r"pip install nvidia-cuda-nvcc==13\.0\.\* "):
        build["find_nvcc"](tmp_path / "torch", "13.0")
    for folder in ("bin", "lib"):
        (package / folder).mkdir(parents=True)
    nvcc = package / "bin/nvcc"
    nvcc.touch(0o755)
    assert build["find_nvcc"](tmp_path / "torch", "13.0") == str(nvcc)
    assert f"-L{package / 'lib'}" in build["link_command"](str(nvcc), [], tmp_path / "torch", [])
    assert f"-L{package / 'lib'}" not in build["link_command"]("/toolkit/bin/nvcc", [], tmp_path / "torch", [])


def test_a_cuda_module_has_a_runtime_of_its_own(tmp_path: Path, monkeypatch) -> None:
    """Torch's libcudart of another version would not be found; the kernels' launches then set the device themselves."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.chdir(ROOT)
    link = runpy.run_path("setup.py")["link_command"]
    assert "-cudart=static" in link("/toolkit/bin/nvcc", [], tmp_path, ["torch_cuda"])
    assert "-cudart=static" not in link("/usr/bin/c++", [], tmp_path, ["torch_cpu"])
    assert "cudaSetDevice(device_index())" in (ROOT / "csrc/cuda/launch.cuh").read_text(encoding="utf-8")


@pytest.mark.needs_nvcc
@pytest.mark.skipif(torch.version.cuda is None, reason="torch is a build without CUDA")
def test_a_gpu_that_is_none_is_an_error(checkout: Path) -> None:
    done = python("setup.py", "-q", "build_ext", cwd=checkout, PGGAN_FAST_CUDA="1", TORCH_CUDA_ARCH_LIST="hopper")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "TORCH_CUDA_ARCH_LIST='hopper': must be numbers such as 8.0;9.0"


def test_triton_kernels_are_a_subpackage() -> None:
    assert Path(importlib.import_module("pggan_fast.kernels").__file__).name == "__init__.py"


def test_make_installs_once_and_again_after_a_change(checkout: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")

    def commands() -> str:
        return subprocess.run(
            ["make", "--dry-run", "test"], cwd=checkout, capture_output=True, text=True, check=True
        ).stdout

    assert "-m venv .venv" in commands() and "pip install" in commands()
    stamp = checkout / ".venv/.installed"
    stamp.parent.mkdir()
    stamp.touch()
    (checkout / ".venv/.installed-for-tests").touch()
    assert "pip install" not in commands() and "pytest" in commands()
    source = checkout / "csrc/cpu/new.cpp"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.touch()
    os.utime(source, ns=(stamp.stat().st_mtime_ns + 10**9,) * 2)
    assert "pip install" in commands()


OTHER_TORCH = os.environ.get("PGGAN_FAST_OTHER_TORCH", "torch==2.13.0")

OTHER_TORCH_CODE = """
import json, torch, pggan_fast
from pggan_fast import _native, ops
x = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
same = torch.equal(ops.bias_act(x, impl="native"), torch.nn.functional.leaky_relu(x, 0.2))
print(json.dumps([torch.__version__, torch.version.cuda, _native.cuda_available, _native.cuda_reason, same]))
"""


@needs_compiler
@pytest.mark.skipif("PGGAN_FAST_TEST_KERNELS" not in os.environ, reason="slow: run by make test-kernels")
def test_one_wheel_serves_another_torch(checkout: Path) -> None:
    with_cuda = torch.version.cuda is not None and shutil.which("nvcc") is not None
    cuda = {"PGGAN_FAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"} if with_cuda else {}
    built = python("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", "dist", ".", cwd=checkout, **cuda)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    names = zipfile.ZipFile(wheel).namelist()
    assert "pggan_fast/_C.abi3.so" in names
    assert ("pggan_fast/_C_cuda.abi3.so" in names) == with_cuda

    folder = checkout.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, OTHER_TORCH, str(wheel)], check=True)
    done = subprocess.run(
        [str(folder / "bin/python"), "-c", OTHER_TORCH_CODE], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    version, has_cuda, available, reason, same = json.loads(done.stdout)
    assert version.partition("+")[0] != torch.__version__.partition("+")[0]
    assert same
    if has_cuda is None:
        assert not available and reason == f"torch {version} is a build without CUDA"
