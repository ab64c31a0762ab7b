"""Exported generators, run by torch.export and by onnxruntime, against the generator itself."""

import io

import numpy as np
import pytest
import torch

from pggan_fast import Generator
from pggan_fast.interop.export import export_program, onnx_bytes, program_bytes

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}  # float32 images of order 1, other kernels


@pytest.mark.parametrize(
    ("options", "stage"),
    [({}, {}), ({"label_dim": 3, "input_bias": "pixel"}, {"resolution": 8, "alpha": 0.4})],
    ids=["plain", "classes, fading"],
)
def test_programs_compute_what_the_generator_does(options, stage):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    torch.manual_seed(0)
    G = Generator(16, fmap_base=64, latent_dim=8, **options)
    program = export_program(G, **stage)
    assert not [node for node in program.graph.nodes if "pggan_fast" in str(node.target)]
    loaded = torch.export.load(io.BytesIO(program_bytes(program))).module()
    session = onnxruntime.InferenceSession(onnx_bytes(program), providers=["CPUExecutionProvider"])
    for n in (1, 5):  # neither is the size that it was exported with
        inputs = {"z": torch.randn(n, 8)}
        if G.label_dim:
            inputs["labels"] = torch.eye(3)[torch.arange(n) % 3]
        expected = G(*inputs.values(), **stage).detach()
        torch.testing.assert_close(loaded(*inputs.values()).detach(), expected, **TOLERANCE)
        (images,) = session.run(["images"], {name: value.numpy() for name, value in inputs.items()})
        np.testing.assert_allclose(images, expected.numpy(), **TOLERANCE)
