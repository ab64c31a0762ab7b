"""Build of pggan-fast: the packages and, where a compiler is found, the native modules.

A native module that cannot be built never stops an installation: the package is installed without
it, and the reason is left in `pggan_fast/<module>.txt`, where `pggan-fast doctor` reads it.
PGGAN_FAST_CUDA=0 leaves the CUDA module out, auto, the default, builds it for the GPU that the build sees,
and 1 builds it for every GPU and makes its absence an error. TORCH_CUDA_ARCH_LIST names other GPUs to build for.
The modules use torch's stable ABI and nothing of Python's, so one binary serves every Python and
every torch >= 2.10. Metadata and dependencies are in pyproject.toml.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

IS_X86_64 = platform.machine() in ("x86_64", "AMD64")
# csrc/*/NAME_<level>.cpp is compiled for that level only; which level runs is chosen at run time.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
X86_LEVELS = {"": [], "avx2": AVX2, "avx512": AVX2 + AVX512}

CUDA = os.environ.get("PGGAN_FAST_CUDA", "auto")
if CUDA not in ("auto", "0", "1"):
    raise SystemExit(f"PGGAN_FAST_CUDA={CUDA!r}: allowed are auto, 0 and 1")


class NotBuilt(Exception):
    """Why a native module is left out, in one line."""


def x86_level(source: Path) -> str:
    """The instruction set a source is for, by its name; "" is the architecture's baseline."""
    level = source.stem.rpartition("_")[2]
    return level if level in X86_LEVELS else ""


def find_sources(folder: str) -> list[Path]:
    """The sources of csrc/<folder> in the order of linking: the smallest instruction set first.

    The linker keeps the first of several definitions of one inline function, and what the sources
    share, such as a std::vector's methods, must run on machines of the baseline.
    """
    found = [p for p in Path("csrc", folder).glob("*") if p.suffix in (".cpp", ".cu")]
    found = [p for p in found if IS_X86_64 or not x86_level(p)]
    return sorted(found, key=lambda p: (x86_level(p), p.name))


def compile_command(source: Path, compiler: str, torch_dir: Path, gpus: list[str]) -> list[str]:
    """The command that compiles one source, without its output: the only place with flags."""
    command = [compiler, "-std=c++17", "-O3", "-isystem", str(torch_dir / "include")]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]  # 2.10, the oldest torch supported
    if source.suffix == ".cu":
        # The toolkit's own headers come first; those it lacks are in the packages that torch needs.
        for folder in sorted(torch_dir.parent.glob("nvidia/*/include")):
            command += ["-isystem", str(folder)]
        command += [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in gpus]
        command += [f"-gencode=arch=compute_{gpus[-1]},code=compute_{gpus[-1]}"]  # for GPUs that come later
        command += ["-DUSE_CUDA", "-Xcompiler=-fPIC,-fvisibility=hidden"]
        return [*command, "-c", str(source)]
    # These let sqrt and comparisons vectorise; no result changes, only errno and trap flags.
    command += ["-fno-math-errno", "-fno-trapping-math"]
    command += ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    command += X86_LEVELS[x86_level(source)] if IS_X86_64 else ["-DPGGAN_FAST_NO_X86"]
    return [*command, *shlex.split(os.environ.get("CXXFLAGS", "")), "-c", str(source)]


def link_command(compiler: str, objects: list[str], torch_dir: Path, libraries: list[str]) -> list[str]:
    """The command that links objects; torch's libraries are in the process before the module.

    A CUDA module has a CUDA runtime of its own inside, so that it loads beside any torch's, whose libcudart has a
    version in its name. `OnDeviceOf` in csrc/cuda/launch.cuh sets the device in that runtime, too.
    """
    folders = [torch_dir / "lib"]
    if torch_dir.parent in Path(compiler).parents:  # nvcc of a pip package, which has no libcudart where it looks
        folders += sorted(torch_dir.parent.glob("nvidia/*/lib"))
    runtime = ["-cudart=static"] if Path(compiler).name == "nvcc" else []
    return [
        compiler,
        "-shared",
        *runtime,
        *objects,
        *(f"-L{folder}" for folder in folders),
        *(f"-l{n}" for n in libraries),
    ]


def find_cxx() -> str:
    if os.name == "nt":
        raise NotBuilt("there are no native kernels for Windows")
    requested = os.environ.get("CXX")
    names = [requested] if requested else ["c++", "g++", "clang++"]
    for name in names:
        if found := shutil.which(name):
            return found
    raise NotBuilt(f"no C++ compiler ({'CXX=' if requested else ''}{', '.join(names)} not found)")


def find_nvcc(torch_dir: Path, cuda: str) -> str:
    """Of CUDA_HOME, of the path, or of the package nvidia-cuda-nvcc beside torch, which is for this version of CUDA."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    name = str(Path(home, "bin", "nvcc")) if home else "nvcc"
    beside_torch = sorted(torch_dir.parent.glob("nvidia/*/bin/nvcc"))
    for candidate in [name] if home else [name, *map(str, beside_torch)]:
        if found := shutil.which(candidate):
            return found
    packages = " ".join(f"nvidia-{part}=={cuda}.*" for part in ("cuda-nvcc", "nvvm", "cuda-crt", "cuda-cccl"))
    raise NotBuilt(f"no CUDA compiler ({name} not found{'' if home else f'; pip install {packages} has one'})")


def find_gpus(nvcc: str, torch) -> list[str]:
    """The compute capabilities to compile for, such as 90, ascending."""
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        names = re.split(r"[;, ]+", listed.strip())
        if not all(re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name) for name in names):
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST={listed!r}: must be numbers such as 8.0;9.0")
        found = {name.removesuffix("+PTX").replace(".", "") for name in names}
    elif CUDA == "1":
        codes = re.findall(r"sm_(\d+)$", output_of([nvcc, "--list-gpu-code"]), re.MULTILINE)
        # Code for a major version runs on its minor ones; the oldest is the first that this nvcc has.
        found = {code for code in codes if code.endswith("0")} | {min(codes, key=int)}
    elif torch.cuda.is_available():
        count = torch.cuda.device_count()
        found = {"{}{}".format(*torch.cuda.get_device_capability(i)) for i in range(count)}
    else:
        # Compiling for every GPU takes minutes, which an installation that cannot use it should not.
        raise NotBuilt("no GPU is visible (PGGAN_FAST_CUDA=1 builds for every GPU, without one)")
    return sorted(found, key=lambda gpu: int(gpu.rstrip("af")))


def output_of(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def import_torch():
    try:
        import torch
    except Exception as error:
        raise NotBuilt(f"torch is not importable where the build runs ({error})") from error
    if torch.__version__ < "2.10":
        raise NotBuilt(f"torch {torch.__version__} is older than 2.10")
    return torch


def run(command: list[str], what: str) -> None:
    print(shlex.join(command), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        lines = done.stdout.splitlines()
        line = next((line for line in lines if "error" in line), lines[-1] if lines else "")
        raise NotBuilt(f"{Path(command[0]).name} failed on {what}: {line.strip()}")


def read_dependencies(rule: str) -> list[str]:
    """The files that a compiler's rule for make names; it writes a space in a name as backslash and space."""
    names = rule.replace("\\\n", " ").partition(": ")[2]
    return [name.replace("\\ ", " ").replace("$$", "$") for name in re.findall(r"(?:\\ |\S)+", names)]


def compile_source(source: Path, command: list[str], folder: Path, torch_version: str) -> Path:
    """Compile one source into `folder` unless its object is newer than all that it was made of."""
    target = folder / f"{source.name}.o"
    files, recipe = target.with_suffix(".d"), target.with_suffix(".txt")
    text = f"torch {torch_version}: {shlex.join(command)}"
    if target.exists() and files.exists() and recipe.exists() and recipe.read_text("utf-8", "surrogateescape") == text:
        made_of = read_dependencies(files.read_text("utf-8", "surrogateescape"))
        made_at = target.stat().st_mtime
        if all(os.path.exists(f) and os.path.getmtime(f) < made_at for f in made_of):
            return target
    run([*command, "-MD", "-MF", str(files), "-o", str(target)], str(source))
    recipe.write_text(text, "utf-8", "surrogateescape")
    return target


class BuildNative(build_ext):
    """Build each native module, or leave it out and write down why."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".abi3.so"))

    def build_extension(self, ext: Extension) -> None:
        module = ext.name.rpartition(".")[2]
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        folders = [library.parent, *([Path("pggan_fast")] if self.editable_mode else [])]
        reports = [folder / f"{module}.txt" for folder in folders]
        for report in reports:
            report.unlink(missing_ok=True)
            report.with_suffix(".json").unlink(missing_ok=True)
        try:
            metadata = self.build_module(module, [Path(s) for s in ext.sources], library)
            for report in reports if metadata else []:
                report.with_suffix(".json").write_text(json.dumps(metadata), encoding="utf-8")
        except NotBuilt as reason:
            if module == "_C_cuda" and CUDA == "1":
                raise SystemExit(f"PGGAN_FAST_CUDA=1, but {reason}") from None
            print(f"pggan-fast: {module} is not built: {reason}", flush=True)
            for report in reports:
                report.write_text(f"{reason}\n", encoding="utf-8")
                # An older build would no longer match the Python side.
                report.with_name(library.name).unlink(missing_ok=True)

    def build_module(self, module: str, sources: list[Path], library: Path) -> dict[str, object]:
        """Builds `library`; returns what `pggan-fast doctor` says of a CUDA module, {} for another."""
        is_cuda = module == "_C_cuda"
        if is_cuda and CUDA == "0":
            raise NotBuilt("PGGAN_FAST_CUDA=0")
        if not sources:
            raise NotBuilt(f"there are no sources in csrc/{'cuda' if is_cuda else 'cpu'}")
        compilers = {".cpp": find_cxx()}
        torch = import_torch()
        torch_dir = Path(torch.__file__).parent
        gpus, metadata = [], {}
        if is_cuda:
            if torch.version.cuda is None:
                raise NotBuilt(f"torch {torch.__version__} is a build without CUDA")
            nvcc = compilers[".cu"] = find_nvcc(torch_dir, torch.version.cuda)
            gpus = find_gpus(nvcc, torch)
            cuda = re.search(r"release (\d+\.\d+)", output_of([nvcc, "--version"])).group(1)
            metadata = {"cuda": cuda, "architectures": [f"sm_{gpu}" for gpu in gpus]}
        # Not build_temp: editable installs put that into a temporary folder and compile all again.
        folder = Path("build", f"native-{platform.machine()}", module)
        folder.mkdir(parents=True, exist_ok=True)

        def compile_one(source: Path) -> Path:
            command = compile_command(source, compilers[source.suffix], torch_dir, gpus)
            return compile_source(source, command, folder, torch.__version__)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [str(target) for target in pool.map(compile_one, sources)]
        linker = compilers[".cu" if is_cuda else ".cpp"]
        libraries = ["torch_cuda", "torch_cpu"] if is_cuda else ["torch_cpu"]
        link = link_command(linker, objects, torch_dir, libraries)
        run([*link, "-o", str(library)], module)
        return metadata


class Wheel(bdist_wheel):
    """A wheel for every Python, since the native modules do not use its ABI; for every platform if none was built."""

    def get_tag(self) -> tuple[str, str, str]:
        built = any(Path(self.bdist_dir).glob("pggan_fast/_C*.so"))
        return "py3", "none", super().get_tag()[2] if built else "any"


def native_module(name: str, folder: str) -> Extension:
    headers = [str(p) for p in sorted(Path("csrc").glob("*/*")) if p.suffix in (".h", ".cuh")]
    files = [str(p) for p in find_sources(folder)]
    # optional: setuptools then does not ask for a file that was not built.
    return Extension(f"pggan_fast.{name}", files, depends=headers, optional=True)


setup(
    packages=[*find_packages(include=["pggan_fast", "pggan_fast.*"]), "pggan_fast.kernels"],
    package_dir={"pggan_fast.kernels": "kernels"},
    package_data={"pggan_fast.generation": ["web-page/*"]},
    # CUDA's first: what it refuses should not take the minutes that the CPU's sources take.
    ext_modules=[native_module("_C_cuda", "cuda"), native_module("_C", "cpu")],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
