"""A generator as one HTML file that runs it in the browser: seeds, latent sliders, interpolation, a grid."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from pggan_fast.generation.directions import principal_directions
from pggan_fast.generation.onnxruntime_web import runtime_files
from pggan_fast.interop.export import export_program, onnx_bytes
from pggan_fast.networks.base import BaseGenerator

DIRECTIONS = 10  # sliders


def webpage(G: BaseGenerator, metadata: dict[str, Any], *, title: str, source: str, runtime: Path | None = None) -> str:
    """Return the page of `G` at the stage that `metadata` (of `load_generator`) names.

    The model is ONNX, run by onnxruntime-web, which `runtime_files` finds; both are part of the page, which loads
    nothing. `source` is the option that names the generator on the command line, shown with the seed.
    """
    scripts = runtime_files(runtime)
    program = export_program(G, resolution=metadata["resolution"], alpha=metadata["alpha"])
    settings = {
        "latent": G.latent_dim,
        "labels": G.label_dim,
        "classes": metadata["classes"] or [str(label) for label in range(G.label_dim)],
        "directions": principal_directions(G, DIRECTIONS).tolist(),
        "source": source,
    }
    shown = f"{metadata['resolution']} px, {sum(p.numel() for p in G.parameters()):,} parameters"
    if metadata["images"]:
        shown += f", {metadata['images'] / 1000:,g} thousand images of training"
    values = {
        "title": escape(title),
        "summary": escape(shown),
        "css": _asset("explore.css"),
        "script": _asset("latents.js") + _asset("explore.js"),
        "page": json.dumps(settings).replace("<", "\\u003c"),  # no name of a class ends the element
        "runtime": _packed(scripts["runtime"]),
        "wasm": _packed(scripts["wasm"]),
        "model": _packed(onnx_bytes(program)),
    }
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], _asset("explore.html"))


def _asset(name: str) -> str:
    return (files("pggan_fast.generation") / "web-page" / name).read_text(encoding="utf-8")


def _packed(contents: bytes) -> str:
    """Return `contents` as the page's script unpacks them: gzip, then base64."""
    return base64.b64encode(gzip.compress(contents, mtime=0)).decode()
