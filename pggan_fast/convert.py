"""The commands `import` and `export`: weights from other implementations, and for other programs."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pggan_fast import interop
from pggan_fast.generation.model_card import card_of_run, copy_grid
from pggan_fast.generation.trained import check_run_or_weights, run_option, trained_generator, weights_option
from pggan_fast.generation.webpage import webpage
from pggan_fast.interop.export import export_program, onnx_bytes, program_bytes
from pggan_fast.interop.weights import save_weights
from pggan_fast.networks import BaseGenerator, Discriminator, Generator
from pggan_fast.training import UserError
from pggan_fast.utils.atomic_write import atomic_write
from pggan_fast.utils.errors import reason_of
from pggan_fast.utils.memory import GENERAL_ADVICE, advice_when_out_of_memory
from pggan_fast.utils.optional import require
from pggan_fast.utils.options import check_options, option
from pggan_fast.utils.output_file import check_output_file, check_parent
from pggan_fast.utils.torch_files import load_weights_only

Networks = dict[str, Generator | Discriminator]

SOURCES = ("official", "pro-gan-pth", "gan-zoo")
EXPORTS = ("safetensors", "hub", "torch-export", "onnx", "html", "pro-gan-pth", "gan-zoo")

# Where the two PyTorch implementations keep their networks; the average is what one wants to generate with.
GENERATORS = ("shadow_generator", "avgG", "generator", "netG")
DISCRIMINATORS = ("discriminator", "netD")


@dataclass(frozen=True)
class ImportConfig:
    """Settings of `pggan-fast import`."""

    from_: str = option(help="Implementation that wrote the file.", choices=SOURCES)
    weights: Path = option(help="File to read: an official .pkl, or what torch.save wrote.", metavar="FILE")
    out: Path = option(help="New folder for generator.safetensors and discriminator.safetensors.", metavar="FOLDER")
    label_dim: int = option(
        0,
        min=0,
        max=1 << 16,
        help="Number of a generator's latents, the last ones, that are classes; official files say it themselves.",
    )
    equalized: bool = option(
        True, help="Whether weights are scaled at run time; official and pro-gan-pth files say it themselves."
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.from_ == "official" and (self.label_dim or not self.equalized):
            raise UserError("--from official: the file says --label-dim and --equalized itself; leave them out")


@dataclass(frozen=True)
class ExportConfig:
    """Settings of `pggan-fast export`."""

    format: str = option(help="Format to write the generator in.", choices=EXPORTS)
    out: Path = option(help="File to write; it must not exist.", metavar="FILE")
    run: Path | None = run_option()
    weights: Path | None = weights_option()
    onnxruntime_web: Path | None = option(
        None,
        help="The npm package onnxruntime-web for --format html, a folder or a .tgz (default: npm fetches it once).",
    )

    def __post_init__(self) -> None:
        check_run_or_weights(self.run, self.weights)
        if self.onnxruntime_web is not None and self.format != "html":
            raise UserError("--onnxruntime-web: is for --format html")
        if self.format == "safetensors" and self.out.suffix != ".safetensors":
            raise UserError(f"--out {self.out}: must end in .safetensors")


def import_weights(config: ImportConfig) -> list[Path]:
    """Write the networks of the file as ours and return their paths.

    Raises UserError, in one line, before it would overwrite one, for a damaged file or another kind of file, and if the
    disk is full; nothing is left then.
    """
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise UserError(f"--out {config.out}: exists already and is not empty; choose another folder")
    check_parent(config.out / "generator.safetensors", f"--out {config.out}")
    if not config.weights.is_file():
        problem = "is a folder, must be a file" if config.weights.is_dir() else "no such file"
        raise UserError(f"--weights {config.weights}: {problem}")
    try:
        networks = _official(config) if config.from_ == "official" else _from_torch(config)
    except ValueError as error:
        raise UserError(f"--weights {config.weights}: {error}") from error
    paths: list[Path] = []
    try:
        for name, network in networks.items():
            path = config.out / f"{name}.safetensors"
            save_weights(path, network, _metadata(network))
            paths.append(path)
    except UserError:  # a full disk: all of the networks or none
        for path in paths:
            path.unlink()
            path.with_suffix(".json").unlink()
        raise
    return paths


def export_weights(config: ExportConfig) -> Path:
    """Write the file and return its path. Raises UserError before it would overwrite one, and if memory runs out."""
    with advice_when_out_of_memory(f"--format safetensors, which needs the least; {GENERAL_ADVICE}"):
        return _export_weights(config)


def _export_weights(config: ExportConfig) -> Path:
    for path in (config.out, config.out.with_suffix(".json")) if config.format == "safetensors" else (config.out,):
        if path != config.out and path.exists():
            raise UserError(f"--out {config.out}: {path} exists already; choose another name")
        check_output_file(path)
    if config.format == "hub":
        require("huggingface_hub", extra="hub", what="--format hub")
    if config.format in ("onnx", "html"):
        for module in ("onnx", "onnxscript"):
            require(module, extra="onnx", what=f"--format {config.format}")
    G, metadata = trained_generator(config.run, config.weights)
    if config.format == "safetensors":
        save_weights(config.out, G, metadata)
        return config.out
    if config.format == "hub":
        return _hub_folder(config, G, metadata)
    if config.format in STATE_DICTS:
        try:
            state_dict = STATE_DICTS[config.format](G)
        except ValueError as error:
            raise UserError(f"--format {config.format}: {error}") from error
        # Of a file that it opens by its name, torch does not say that the disk is full.
        with _whole_or_not(config.out) as temporary, open(temporary, "wb") as file:
            torch.save(state_dict, file)
        return config.out
    if config.format == "html":
        option_name, path = ("--run", config.run) if config.run else ("--weights", config.weights)
        name = path.absolute().name  # not the path, which is nobody's business whom the page is given to
        source = f"{option_name} {shlex.quote(name)}"
        page = webpage(
            G, metadata, title=path.stem if config.weights else name, source=source, runtime=config.onnxruntime_web
        )
        with _whole_or_not(config.out) as temporary:
            temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
        return config.out
    program = export_program(G, resolution=metadata["resolution"], alpha=metadata["alpha"])
    with _whole_or_not(config.out) as temporary:
        temporary.write_bytes(onnx_bytes(program) if config.format == "onnx" else program_bytes(program))
    return config.out


def _hub_folder(config: ExportConfig, G: BaseGenerator, metadata: dict[str, Any]) -> Path:
    """Write what the Hugging Face Hub shows of a generator, of a run with its card and samples, or nothing."""
    config.out.mkdir(parents=True)
    try:
        card = card_of_run(config.run, metadata) if config.run else None
        if config.run:
            copy_grid(config.run, config.out)
        G.save_pretrained(config.out, metadata=metadata, card=card)
    except BaseException:
        shutil.rmtree(config.out)
        raise
    return config.out


@contextmanager
def _whole_or_not(path: Path) -> Iterator[Path]:
    """Yield a temporary path for `path`. Raises UserError, naming it, if the disk is full or fails."""
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except (OSError, RuntimeError) as error:  # torch's writer turns the one into the other
        raise UserError(f"--out {path}: cannot be written ({reason_of(error)})") from error


STATE_DICTS: dict[str, Callable[[Generator], dict[str, Tensor]]] = {
    "pro-gan-pth": interop.to_pro_gan_pth,
    "gan-zoo": interop.to_gan_zoo,
}


def _metadata(network: Generator | Discriminator) -> dict[str, Any]:
    if isinstance(network, Discriminator):
        return {"options": network.options}
    return {
        "options": network.options,
        "classes": [str(i) for i in range(network.label_dim)],
        "images": 0,
        "resolution": network.resolution,
        "alpha": 1.0,
    }


def _official(config: ImportConfig) -> Networks:
    loaded = interop.load_official_pickle(config.weights)
    average = loaded.get("Gs", loaded.get("G"))
    networks = {"generator": average, "discriminator": loaded.get("D")}
    found = {name: network for name, network in networks.items() if network is not None}
    if not found:
        raise ValueError(f"has networks named {', '.join(loaded)}, none of them Gs, G or D")
    return found


def _from_torch(config: ImportConfig) -> Networks:
    networks: Networks = {}
    for state_dict, conf in _state_dicts(_load(config.weights)):
        if config.from_ == "pro-gan-pth":
            equalized = bool(conf.get("use_eql", config.equalized))
            network = interop.from_pro_gan_pth(state_dict, use_eql=equalized, label_dim=config.label_dim)
        else:
            network = interop.from_gan_zoo(state_dict, equalized=config.equalized, label_dim=config.label_dim)
        networks["generator" if isinstance(network, Generator) else "discriminator"] = network
    return networks


class _ZooConfig:
    """The settings of pytorch_GAN_zoo, which its checkpoints hold beside the networks, without behaviour."""


def _load(path: Path) -> Any:
    return load_weights_only(path, [(_ZooConfig, "models.utils.config.BaseConfig")])


def _state_dicts(loaded: Any, depth: int = 0) -> list[tuple[Mapping[str, Tensor], Mapping[str, Any]]]:
    """Return (state dict, its network's settings if it has them) of each network that a file holds."""
    if depth > 2:
        raise ValueError("has state dicts within state dicts")
    if not isinstance(loaded, Mapping):
        raise ValueError(f"holds a {type(loaded).__name__}, must hold weights by name")
    if "state_dict" in loaded:
        conf = loaded.get("conf", {})
        return [(loaded["state_dict"], conf if isinstance(conf, Mapping) else {})]
    if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
        return [(loaded, {})]
    found = []
    for names in (GENERATORS, DISCRIMINATORS):
        part = next((loaded[name] for name in names if isinstance(loaded.get(name), Mapping)), None)
        if part is not None:
            found += _state_dicts(part, depth + 1)
    if not found:
        raise ValueError(f"has none of {', '.join(GENERATORS + DISCRIMINATORS)}, and is no state dict")
    return found
