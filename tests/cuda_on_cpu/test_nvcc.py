"""That nvcc compiles csrc/cuda for every GPU without a warning, and what is in the binaries."""

import re

import pytest

from bench.roofline.counted import FUSED, HALO_FP32_INSTRUCTIONS
from tests.cuda_on_cpu import nvcc, table

pytestmark = pytest.mark.needs_nvcc

GPUS = [gpu for gpus in nvcc.architectures().values() for gpu in gpus] if nvcc.NVCC else []
EVERY = pytest.mark.parametrize("source", [source.stem for source in nvcc.SOURCES])
# Whose vectors are of bytes where they are read.
NARROW = "uint8"


def test_the_gpus_are_those_of_the_table():
    """A new one in nvcc needs its multiprocessor's limits."""
    assert set(GPUS) <= set(nvcc.MULTIPROCESSORS)
    assert {"75", "80", "86", "89", "90", "100", "103", "110", "120", "121"} <= set(GPUS)


@pytest.mark.parametrize("gpu", GPUS)
@EVERY
def test_everything_stays_in_registers(source, gpu):
    """Compiled without a warning: no register is spilled and no kernel has local memory."""
    kernels = nvcc.kernels(source, gpu)
    assert len(kernels) >= 7
    assert [str(k) for k in kernels if k.stack or k.local] == []


@pytest.mark.parametrize("gpu", GPUS)
@EVERY
def test_enough_blocks_run_at_once(source, gpu):
    """Registers and shared memory leave room for as many on a multiprocessor as kBlocks asks for."""
    kernels = nvcc.kernels(source, gpu)
    blocks = dict(zip(kernels, nvcc.blocks(gpu, kernels), strict=True))
    assert {str(k): n for k, n in blocks.items() if n < nvcc.required_blocks(k, gpu)} == {}


@pytest.mark.parametrize("gpu", list(nvcc.architectures()) if nvcc.NVCC else [])
@EVERY
def test_vectors_are_loaded_and_stored_at_once(source, gpu):
    """16 bytes by one instruction, in every kernel that has vectors; and none touches local memory."""
    found = nvcc.instructions(source, gpu)
    vectors = [str(k) for k in nvcc.kernels(source, gpu) if k.vector > 1 and not k.name.startswith("conv_halo")]
    assert bool(vectors) == (source not in ("fold", "conv_halo", "filtered_lrelu"))

    def without(opcode: str, kernels: list[str]) -> list[str]:
        wide = re.compile(rf"{opcode}(\.\w+)*\.128\b")
        return [kernel for kernel in kernels if not any(wide.match(used) for used in found[kernel])]

    # What is read for a few large stores, or stored after many large loads, has vectors on one side alone.
    stores_alone, loads_alone = ("upsample", "conv_rgb_expand"), ("conv_rgb_reduce", "conv_rgb_weight_gradient")
    assert without("LDG", [k for k in vectors if NARROW not in k and not any(n in k for n in stores_alone)]) == []
    assert without("STG", [k for k in vectors if not any(n in k for n in loads_alone)]) == []
    assert [kernel for kernel, used in found.items() if any(u.startswith(("LDL", "STL")) for u in used)] == []


@pytest.mark.parametrize("gpu", [gpu for gpu in GPUS if int(gpu) >= 80])
def test_halo_tiles_go_to_tensor_cores_from_shared_memory(gpu):
    """Copied 16 bytes at once past the registers, read by ldmatrix and multiplied by mma, in every instance."""
    found = nvcc.instructions("conv_halo", gpu)
    halo = {kernel: used for kernel, used in found.items() if kernel.startswith("conv_halo")}
    assert len(halo) > 80
    for opcode in ("LDGSTS", "LDSM", "HMMA"):
        without = [k for k, used in halo.items() if not any(u.startswith(opcode) for u in used)]
        # ldmatrix transposes elements of two bytes alone.
        assert [k for k in without if opcode != "LDSM" or not k.startswith("conv_halo_weight_gradient<fp32")] == []


# Kind 0 is plain; what is fused is numbered as in csrc/cuda/conv_halo_kernels.cuh. An inner loop takes half the rows
# and runs twice.
@pytest.mark.parametrize(("fused", "halves"), [(0, False), (1, True), (2, False), (3, True)])
def test_instructions_for_sixteen_pixels_in_fp32(fused, halves):
    """Count the whole loop over tiles, 16 channels on sm_90: a warp has 4 times 16 pixels of a tile."""
    (name,) = (
        k for k in nvcc.loops("conv_halo", "90") if re.match(rf"conv_halo<fp32.*16, 16, Kind\)0, Fused\){fused}", k)
    )
    sizes = [size for size in nvcc.loops("conv_halo", "90")[name] if size > 150]
    assert len(sizes) == 1 + halves
    # Other releases of nvcc order and fold a few instructions in another way.
    assert sum(sizes) / 4 == pytest.approx(HALO_FP32_INSTRUCTIONS[FUSED[fused]], rel=0.02)


# The instance: channels_last, up, down and taps.
@pytest.mark.parametrize(
    ("dtype", "vector", "instance", "most"),
    [
        ("fp32", 4, "false, 1, 1, 4", 46),
        ("fp32", 4, "false, 2, 1, 4", 46),
        ("fp32", 4, "false, 1, 2, 4", 46),
        ("fp32", 4, "true, 1, 1, 4", 66),
        ("fp32", 4, "true, 2, 1, 4", 42),
        ("fp32", 4, "true, 1, 2, 4", 67),
        ("bf16", 8, "false, 1, 1, 4", 36),
        ("bf16", 8, "false, 2, 1, 4", 40),
        ("bf16", 8, "false, 1, 2, 4", 43),
        ("bf16", 8, "true, 1, 1, 4", 66),
        ("bf16", 8, "true, 2, 1, 4", 30),
        ("bf16", 8, "true, 1, 2, 4", 67),
        ("fp32", 4, "false, 1, 1, 3", 46),
        ("fp32", 4, "false, 2, 1, 3", 52),
        ("fp32", 4, "false, 1, 2, 3", 46),
        ("fp32", 4, "true, 1, 1, 3", 48),
        ("fp32", 4, "true, 2, 1, 3", 49),
        ("fp32", 4, "true, 1, 2, 3", 48),
        ("bf16", 8, "false, 1, 1, 3", 25),
        ("bf16", 8, "false, 2, 1, 3", 50),
        ("bf16", 8, "false, 1, 2, 3", 30),
        ("bf16", 8, "true, 1, 1, 3", 43),
        ("bf16", 8, "true, 2, 1, 3", 35),
        ("bf16", 8, "true, 1, 2, 3", 43),
    ],
)
def test_instructions_for_an_output_of_few_taps(dtype, vector, instance, most):
    """Those of upfirdn2d on sm_90, rounding and storing included: a thread makes a vector in its longest loop."""
    longest, *_ = nvcc.loops("upfirdn2d", "90")[f"upfirdn2d<{dtype}, {vector}, {instance}>"]
    assert 10 * vector < longest <= most * vector


# channels_last of few channels, and with pixel norm; the loop has the code of relu and of the last tile, too. That of
# contiguous tensors has all of it twice forward, with a bias and without.
@pytest.mark.parametrize(
    ("source", "kernel", "most"),
    [
        ("bias_act", "bias_act_forward<bf16, 8, True, False, True>", 330),
        ("bias_act", "bias_act_forward<bf16, 8, True, True, True>", 540),
        ("bias_act", "bias_act_backward<bf16, 8, True, False, True>", 580),
        ("bias_act", "bias_act_backward<bf16, 8, True, True, True>", 860),
        ("bias_act", "bias_act_forward<bf16, 8, False, False, False>", 650),
        ("bias_act", "bias_act_backward<bf16, 8, False, False, False>", 670),
    ],
)
def test_instructions_of_bias_act_for_four_vectors(source, kernel, most):
    longest, *_ = nvcc.loops(source, "90")[kernel]
    assert 200 < longest <= most


def test_the_table_is_what_nvcc_makes():
    assert table.PAGE.read_text() == table.page(), "python -m tests.cuda_on_cpu.table writes it anew"
