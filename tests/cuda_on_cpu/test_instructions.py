"""Instructions that bench.roofline.counted states, against what nvcc makes of csrc/cuda for 9.0 in bf16.

A tile is one turn of a kernel's longest loop. Which path a full tile takes through it follows from the copies, products
and stores that it executes; a warp that has a row of a partial round to copy is counted, which has most to do.
"""

import pytest

from tests.cuda_on_cpu import nvcc

pytestmark = pytest.mark.needs_nvcc
pytest.importorskip("triton")
from bench.roofline.counted import FUSED, HALO_GRADIENT_INSTRUCTIONS, HALO_INSTRUCTIONS, PASS_INSTRUCTIONS  # noqa: E402
from bench.roofline.sass import fewest_executed, instructions  # noqa: E402

# Other releases of nvcc order and fold a few instructions in another way.
ALLOWED = 0.02
KINDS = {"plain": 0, "strided": 1, "transposed": 2}
# Rows of 16 pixels of the smaller image that a warp of conv_halo takes in a tile: HaloTile::kRowsOfWarp.
ROWS = {
    ("plain", 16, 16): 8,
    ("plain", 16, 32): 4,
    ("plain", 32, 16): 4,
    ("plain", 32, 32): 2,
    ("strided", 16, 16): 1,
    ("strided", 16, 32): 1,
    ("transposed", 16, 16): 2,
    ("transposed", 32, 16): 2,
}


def occurring(code: str, opcode: str) -> int:
    """How often an instruction stands in the code, which is not unrolled where it is copied to shared memory."""
    return sum(opcode in text for _, text in instructions(code))


@pytest.mark.parametrize(("kind", "c_in", "c_out"), HALO_INSTRUCTIONS)
@pytest.mark.parametrize("fused", FUSED)
def test_halo_tiles(kind, c_in, c_out, fused):
    number = FUSED.index(fused)
    code = nvcc.sass("conv_halo", "90")[f"conv_halo<bf16, 8, {c_in}, {c_out}, Kind){KINDS[kind]}, Fused){number}>"]
    rows, taps = ROWS[kind, c_in, c_out], 9 if kind == "plain" else 16
    segments = rows * (4 if kind == "transposed" else 1)  # of 16 pixels of the output
    copies = occurring(code, "LDGSTS")
    executed = {
        "LDGSTS": copies,
        # A product is of 16 channels in and 8 out; a transposed tap is that of one phase in four.
        "HMMA": rows * taps * (c_in // 16) * (c_out // 8),
        # A thread has a quarter of the channels of two pixels.
        rf"STG\.E\.{c_out * 4} ": 2 * segments,
    }
    if fused == "in_mask":
        executed[r"STS\.128"] = copies  # what was copied is masked
    if fused in ("epilogue", "pixel_norm"):
        executed[r"STG\.E "] = (2 if fused == "epilogue" else 1) * segments  # signs of a pixel, factors of two
    counted = fewest_executed(code, executed) / segments
    assert HALO_INSTRUCTIONS[kind, c_in, c_out][number] == pytest.approx(counted, rel=ALLOWED)


@pytest.mark.parametrize(("kind", "c_a", "c_b"), HALO_GRADIENT_INSTRUCTIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_weight_gradient_by_halo_tiles(kind, c_a, c_b, masked):
    strided = kind == "strided"
    name = f"conv_halo_weight_gradient<bf16, 8, {c_a}, {c_b}, {str(strided).lower()}, {str(masked).lower()}>"
    code = nvcc.sass("conv_halo", "90")[name]
    # As in GradientTile: 8 warps share a tile's segments of 16 pixels, and each has 16 x 16 channels of some taps.
    segments = 8 if strided else 16 if c_a + c_b > 32 else 32
    shares = (c_a // 16) * (c_b // 16) * (2 if strided else 1)
    segments_of_warp = segments * shares // 8
    executed = {
        "LDGSTS": occurring(code, "LDGSTS"),
        "HMMA": segments_of_warp * (2 * (8 if strided else 9) + 1),  # the last sums a itself
        r"STS\.128": occurring(code, "STS.128"),
    }
    counted = fewest_executed(code, executed) * 8 / segments
    assert HALO_GRADIENT_INSTRUCTIONS[kind, c_a, c_b][masked] == pytest.approx(counted, rel=ALLOWED)


# A thread's four vectors of a tile, at 64 channels, which are 8 threads of a pixel. Half of the warps copy one of the
# image's values, half of them, which are counted, two; a third is predicated off. Of 7 stores of a byte the four of
# sign bits happen: the others, and one that is branched around, are for words of 16 channels.
PASSES = {
    "bias_act_with_sign_bits_": (
        "bias_act_signs_forward<bf16, 8>",
        {r"LDG\.E\.128": 4, r"STG\.E\.128": 4, r"STG\.E\.U8": 4},
    ),
    "bias_act_backward_by_sign_bits": (
        "bias_act_signs_backward<bf16, 8>",
        {r"LDG\.E\.128": 4, r"LDG\.E\.U8": 4, r"STG\.E\.128": 4},
    ),
    "conv_rgb_expand": (
        "conv_rgb_expand<bf16, 8, 3, false>",
        {r"LDG\.E\.U16": 3, r"STG\.E\.128": 4, r"STG\.E\.U8": 7},
    ),
    # Sums of 12 values over 8 threads, three times by halves; one thread of a pixel stores its three.
    "conv_rgb_reduce": (
        "conv_rgb_reduce<bf16, 8, 3>",
        {r"LDG\.E\.128": 4, r"LDG\.E\.U8": 4, "SHFL": 36, r"STG\.E": 12},
    ),
    "conv_rgb_weight_gradient": (
        "conv_rgb_weight_gradient<bf16, 8, 3, false>",
        {r"LDG\.E\.128": 4, r"LDG\.E\.U8": 4, r"LDG\.E\.U16": 3, "FFMA": 96},
    ),
}


@pytest.mark.parametrize("op", PASS_INSTRUCTIONS)
def test_passes(op):
    kernel, executed = PASSES[op]
    source = "conv_rgb" if op.startswith("conv_rgb") else "bias_act_signs"
    counted = fewest_executed(nvcc.sass(source, "90")[kernel], executed) / 4
    vector_bytes = 17.75 if op.startswith("conv_rgb") else 33
    assert PASS_INSTRUCTIONS[op] * vector_bytes == pytest.approx(counted, rel=ALLOWED)
