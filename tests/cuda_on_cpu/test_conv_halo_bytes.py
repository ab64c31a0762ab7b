"""Bytes that the halo-tile convolutions fetch from L2 and write, in every variant that a layer launches.

The least is each tensor once. What comes on top are the borders of tiles, the filters of each block and, of the weight
gradient, the blocks' partial sums. A word that several lanes of a warp read at once is fetched once, and the harness,
which counts for each thread, counts it for each of them: `fetched` takes the repetitions off.
"""

import pytest
import torch

from bench.roofline.counted import HALO_BORDER
from pggan_fast.ops.conv_halo import exists, has_weight_gradient
from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.few import KINDS
from tests.cuda_on_cpu.test_conv_halo import images, words

BF16, SIDE = torch.bfloat16, 128
# A block then takes as many tiles as on an H200 with 4 images of 1024 px, a few dozen: filters and sums are few bytes.
BLOCKS = 1

# Of `equalized_conv2d`: forward with activation or pixel norm, input gradient, second order.
LAUNCHED = {
    "plain": ("epilogue", "pixel_norm", "in_mask", "out_mask"),
    "flipped": ("epilogue", "in_mask"),
    "strided": ("epilogue", "pixel_norm", "out_mask"),
    "transposed": ("epilogue", "pixel_norm", "in_mask"),
}
CASES = [
    (kind, fused, c_in, c_out)
    for kind, variants in LAUNCHED.items()
    for fused in variants
    for c_in, c_out in ((16, 16), (16, 32), (32, 16), (32, 32))
    if exists(BF16, c_in, c_out, *KINDS[kind])
]
GRADIENTS = [
    (stride, masked, c_a, c_b)
    for stride in (1, 2)
    for masked in (False, True)
    for c_a, c_b in ((16, 16), (16, 32), (32, 16), (32, 32))
    if has_weight_gradient(BF16, c_a, c_b, stride)
]


@pytest.fixture
def harness():
    controls = build.load()
    controls.set_resident_blocks(BLOCKS)
    yield controls
    controls.set_resident_blocks(4)


def size_of(*tensors: torch.Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@pytest.mark.parametrize(("kind", "fused", "c_in", "c_out"), CASES)
def test_convolution(harness, kind, fused, c_in, c_out):
    (transposed, stride), k = KINDS[kind], 3 if KINDS[kind][1] == 1 else 4
    # The smaller of the two images has SIDE rows.
    side, out = (SIDE * s for s in ((stride, 1) if kind == "strided" else (1, stride)))
    x, mask = images(1, c_in, side, side, BF16), None
    if fused == "in_mask":
        mask = words(1, side, side, 1)
    elif fused == "out_mask":
        mask = words(1, out, out, 1)
    bias = torch.randn(c_out) if mask is None else None
    weight = torch.randn((c_in, c_out, k, k) if transposed else (c_out, c_in, k, k)).to(BF16)
    harness.take_launches()
    results = torch.ops.pggan_fast_cuda_on_cpu.conv_halo(
        *(x, weight, bias, mask, transposed, stride, out, out, fused, 0.1, 1.3, 0.26, 1e-8, True)
    )
    (launch,) = harness.take_launches()
    own = size_of(x, weight, bias, mask, *results)
    assert own <= fetched(launch, fused, weight, mask, c_in) + launch.stored <= HALO_BORDER * own


def fetched(launch, fused: str, weight: torch.Tensor, mask: torch.Tensor | None, c_in: int) -> float:
    """Return the bytes that a launch loads, without what lanes of a warp read together."""
    if fused == "out_mask":
        # The four lanes that have a pixel's channels.
        return launch.loaded - 3 * size_of(mask)
    if fused == "in_mask":
        # A lane for every 16 bytes of a pixel, which reads 4 bytes of mask with them.
        masks = (launch.loaded - BLOCKS * size_of(weight)) / 5
        return launch.loaded - masks + masks / (c_in * BF16.itemsize // 16)
    return launch.loaded


@pytest.mark.parametrize(("stride", "masked", "c_a", "c_b"), GRADIENTS)
def test_weight_gradient(harness, stride, masked, c_a, c_b):
    a, b = images(1, c_a, SIDE, SIDE, BF16), images(1, c_b, stride * SIDE, stride * SIDE, BF16)
    mask = words(1, SIDE, SIDE, 1) if masked else None
    harness.take_launches()
    sums = torch.ops.pggan_fast_cuda_on_cpu.conv_halo_weight_gradient(a, b, mask, stride, 0.1, 1.3, 0.26)
    launches = harness.take_launches()
    assert [launch.name for launch in launches] == ["conv_halo_weight_gradient"] * 2
    own = size_of(a, b, mask, sums)
    # Tiles of a have no border: its mask is read by as many lanes as a pixel has times 16 bytes.
    repeated = 0 if mask is None else (c_a * BF16.itemsize // 16 - 1) * size_of(mask)
    assert own <= sum(launch.loaded + launch.stored for launch in launches) - repeated <= HALO_BORDER * own
