"""Generators in folders and repositories of the Hugging Face Hub, through huggingface_hub's own ModelHubMixin.

    model.safetensors   weights
    config.json         options of the network, classes, resolution, alpha, images shown
    README.md           model card
    grid.png            samples, if the card shows them

Nothing is unpickled: a repository with nothing but pytorch_model.bin is refused.
"""

from __future__ import annotations

import functools
import html
import os
from pathlib import Path
from typing import Any

from pggan_fast.interop.weights import find_problem_of_generator, generator_from_weights, read_tensors, save_weights
from pggan_fast.networks.base import BaseGenerator
from pggan_fast.networks.hub import HubMethods
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.optional import require
from pggan_fast.utils.schema import read_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
PAPER = "https://arxiv.org/abs/1710.10196"
TAGS = ["gan", "progressive-gan", "pggan-fast"]
PIPELINE = "unconditional-image-generation"

USE = """
## Use

```python
import torch
from pggan_fast import Generator

G = Generator.from_pretrained("{name}")
z = torch.randn(16, G.latent_dim)
images = G(z{labels}, resolution={resolution}, alpha={alpha})  # [16, {channels}, H, W] in -1..1
```

`pip install 'pggan-fast[hub]'`. Of the paper [Progressive Growing of GANs]({paper}) (Karras et al., ICLR 2018).
"""


def repository(network: BaseGenerator, metadata: dict[str, Any] | None, card: str | None) -> Any:
    """Return `network` as huggingface_hub saves and uploads it: a ModelHubMixin."""
    defaults = {
        "classes": [str(index) for index in range(network.label_dim)],
        "images": 0,
        "resolution": network.resolution,
        "alpha": 1.0,
    }
    described = {**defaults, **(network.hub_metadata or {}), **(metadata or {}), "options": network.options}
    described = {name: described[name] for name in ("options", *defaults)}
    if problem := find_problem_of_generator(described):
        raise UserError(f"metadata: {problem}")
    return _mixin()(network, described, card)


def load(name: str | Path, **options: Any) -> BaseGenerator:
    """Return the generator in the folder or repository `name`. Raises UserError if its files are damaged."""
    mixin = _mixin()
    if os.path.isdir(name) and not Path(name, CONFIG).is_file():
        raise UserError(f"{name}: holds no generator (no {CONFIG})")
    if os.path.isdir(name):
        _read_config(Path(name, CONFIG), name)  # before huggingface_hub reads it, which expects it whole
    try:
        return mixin.from_pretrained(name, **options).network
    except UserError:
        raise
    except (ValueError, AttributeError, RecursionError) as error:  # a name that is none, a config.json that is none
        raise UserError(f"{name}: cannot be loaded ({' '.join(str(error).split())[:200]})") from error


def _read_config(path: Path, name: str | Path) -> dict[str, Any]:
    metadata = read_json(path, dict)
    if problem := find_problem_of_generator(metadata):
        raise UserError(f"{name}: {CONFIG} is no generator's ({problem})")
    return metadata


@functools.cache
def _mixin() -> Any:
    """Return the class that huggingface_hub's mixin makes of a generator with its metadata; needs the extra `hub`."""
    hub = require("huggingface_hub", extra="hub", what="save_pretrained, from_pretrained and push_to_hub")

    class PretrainedGenerator(
        hub.ModelHubMixin, library_name="pggan-fast", tags=[*TAGS], pipeline_tag=PIPELINE, paper_url=PAPER
    ):
        """A generator, its metadata and the text of its card."""

        def __init__(self, network: BaseGenerator, metadata: dict[str, Any], card: str | None = None) -> None:
            self.network, self.metadata, self.card = network, metadata, card

        def _save_pretrained(self, save_directory: Path) -> None:
            weights = save_directory / WEIGHTS
            save_weights(weights, self.network, self.metadata)
            weights.with_suffix(".json").replace(save_directory / CONFIG)

        @classmethod
        def _from_pretrained(cls, *, model_id: str, **options: Any) -> Any:
            def file(name: str) -> Path:
                if os.path.isdir(model_id):
                    return Path(model_id, name)
                passed = ("revision", "cache_dir", "force_download", "local_files_only", "token")
                return Path(hub.hf_hub_download(model_id, name, **{key: options[key] for key in passed}))

            metadata = _read_config(file(CONFIG), model_id)
            try:
                network = generator_from_weights(metadata["options"], read_tensors(file(WEIGHTS)))
            except FileNotFoundError:
                raise UserError(f"{model_id}: has no {WEIGHTS}; other files of weights are not read") from None
            except ValueError as error:
                raise UserError(f"{model_id}: {WEIGHTS} does not fit {CONFIG} ({error})") from error
            network.hub_metadata = {name: value for name, value in metadata.items() if name != "options"}
            return cls(network.eval(), metadata)

        def generate_model_card(self, name: str = "FOLDER", data: dict[str, Any] | None = None, **_: Any) -> Any:
            told = hub.ModelCardData(
                library_name="pggan-fast", tags=sorted(TAGS), pipeline_tag=PIPELINE, **(data or {})
            )
            text = f"---\n{told.to_yaml()}\n---\n\n{self.card or '# Generator'}\n{usage(self, name)}"
            # A folder's name may be bytes that are not UTF-8.
            return hub.ModelCard(text.encode("utf-8", "backslashreplace").decode())

    return PretrainedGenerator


def usage(saved: Any, name: str) -> str:
    """Return the part of a model card that says how to load the generator and what its classes are."""
    metadata, G = saved.metadata, saved.network
    text = USE.format(
        name=name,
        labels=", torch.arange(16) % G.label_dim" if G.label_dim else "",
        resolution=metadata["resolution"],
        alpha=metadata["alpha"],
        channels=G.image_channels,
        paper=PAPER,
    )
    if classes := metadata["classes"]:
        # Names may be anybody's: in one line, without markup.
        shown = (html.escape(" ".join(name.split())) for name in classes[:50])
        text += f"\nClasses, by index: {', '.join(shown)}{' and more' if len(classes) > 50 else ''}.\n"
    return text


class _Files:
    """`HubFiles` of the generators."""

    repository, load = staticmethod(repository), staticmethod(load)


HubMethods._hub = _Files()
