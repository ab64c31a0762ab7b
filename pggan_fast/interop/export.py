"""Generators as programs that run without this package: torch.export and ONNX, made of plain PyTorch operators."""

import copy
import io

import torch
from torch import Tensor, nn

from pggan_fast import ops
from pggan_fast.networks import Generator


class _AtOneStage(nn.Module):
    """A generator with its stage of growth fixed, so that latents (and labels) are the only inputs."""

    def __init__(self, G: Generator, resolution: int, alpha: float):
        super().__init__()
        self.G, self.resolution, self.alpha = G, resolution, alpha

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.G(z, labels, resolution=self.resolution, alpha=self.alpha)


def export_program(G: Generator, *, resolution: int | None = None, alpha: float = 1.0) -> torch.export.ExportedProgram:
    """Return `G` as a torch.export program for any batch size, with the reference of each op inside.

    Its inputs are `z` [N, latent_dim] and, for networks with classes, `labels` one-hot [N, label_dim], both float32 on
    the CPU; its output is the images [N, C, r, r] of `resolution` (default: the largest) in -1..1, not clamped.
    """
    G = copy.deepcopy(G).cpu().float().eval()
    inputs = {"z": torch.zeros(2, G.latent_dim)}
    if G.label_dim:
        inputs["labels"] = torch.eye(G.label_dim).repeat(2, 1)[:2]
    batch = torch.export.Dim("N", min=1)
    with torch.no_grad(), ops.use_impl("reference"):
        return torch.export.export(
            _AtOneStage(G, resolution or G.resolution, alpha),
            tuple(inputs.values()),
            dynamic_shapes={name: {0: batch} for name in inputs},
        )


def program_bytes(program: torch.export.ExportedProgram) -> bytes:
    """Return the contents of the file (.pt2) that `torch.export.load` reads."""
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def onnx_bytes(program: torch.export.ExportedProgram) -> bytes:
    """Return the program as an ONNX model with inputs `z` and, if it takes them, `labels`, and the output `images`.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is not installed.
    """
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.arg.name in ("z", "labels")]
    model = torch.onnx.export(
        program, dynamo=True, input_names=names, output_names=["images"], verbose=False
    ).model_proto
    return model.SerializeToString()
