"""The memory-bound kernels compiled for GPUs that are not here: what the cubins say of spills and of their accesses."""

import os

import pytest
import torch

pytest.importorskip("triton")
from bench.roofline import sass  # noqa: E402
from bench.roofline.aot import CAPABILITIES, SHARED_MEMORY  # noqa: E402
from tests.kernels.memory_bound import CASES, LAYOUTS, Case, share_of_128_bits  # noqa: E402

# Every GPU, shape and width of value takes long: in `make test-kernels`.
EVERY = "PGGAN_FAST_TEST_KERNELS" in os.environ
CHECKED = CAPABILITIES if EVERY else (90,)
# Kernels that work on what is small beside the tensors: sums, and maps of one value.
SMALL = ("sum_rows_kernel", "sum_maps_kernel", "write_maps_kernel")


def dtypes(case: Case, capability: int) -> tuple[torch.dtype, ...]:
    half = torch.bfloat16 if capability >= 80 else torch.float16
    return (half, torch.float32) if EVERY and case.is_typical else (half,)


def least_share(case: Case, kernel: str, layout: str) -> float:
    """Return the part of the bytes moved that must go by 128 bits a thread."""
    if kernel in SMALL:
        return 0
    if kernel == "downsample_rows_kernel":
        return 0.2  # four values of a block, one by one, then vectors of their sums
    if kernel not in SMALL and kernel.endswith("_rows_kernel"):
        return 0.5  # rows of 3 channels: vectors, and one by one what lies under or beside them
    if kernel.startswith("flat_"):
        return 0.5  # each place's bias before the loop over tiles
    if case.label.startswith("filtered_lrelu"):
        return 0  # planes alone, and a tile begins at any pixel
    if case.label.startswith("upfirdn2d"):
        # Contiguous taps begin at any pixel, so that no width but one element's fits their loads. Elsewhere each pixel
        # loads its taps' coefficients, the same few for all.
        return 0 if layout == "contiguous" else 0.6
    if case.label.startswith("minibatch_stddev") and layout == "channels_last":
        return 0  # with a map appended, rows have 513 values: no width but one element's fits
    if case.label == "fade_reals, bytes":
        return 0.6  # 16 bytes of results are made from 8 bytes
    return 0.8  # the rest are biases, factors per pixel, sums


@pytest.mark.parametrize("capability", CHECKED)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [c for c in CASES if EVERY or c.is_typical], ids=str)
def test_no_spills_and_wide_accesses(case, layout, capability):
    for dtype in dtypes(case, capability):
        compiled = case.compile(dtype, layout, capability)
        assert compiled
        for found in compiled:
            share = share_of_128_bits(found)
            assert found.local_bytes == 0, (dtype, found[:-1])
            assert found.shared_bytes <= SHARED_MEMORY[capability]
            assert share >= least_share(case, found.kernel, layout), (dtype, found[:-1], share)


# Of a thread in bf16 on capability 9.0, for one value: the whole code, or the loop over tiles.
@pytest.mark.parametrize(
    ("label", "channels", "layout", "most"),
    [
        ("bias_act", 64, "contiguous", 9.5),
        ("bias_act", 64, "channels_last", 8.5),
        ("bias_act, norm", 64, "contiguous", 16.5),
        ("bias_act, norm", 64, "channels_last", 13.0),
        ("bias_act backward", 64, "contiguous", 11.5),
        ("bias_act backward", 64, "channels_last", 10.0),
        ("bias_act backward, norm", 64, "contiguous", 20.0),
        ("bias_act backward, norm", 64, "channels_last", 15.5),
        ("bias_act", 3, "channels_last", 7.5),
        ("bias_act backward", 3, "channels_last", 9.5),
        ("bias_act double backward", 3, "channels_last", 8.5),
    ],
)
def test_instructions_of_bias_act_for_a_value(label, channels, layout, most):
    case = next(c for c in CASES if c.label == label and c.shape[:3] == (8, channels, 256))
    found = case.compile(torch.bfloat16, layout, 90)[0]
    code = sass.instructions(found.sass)
    first, last = max(sass.loops(code), key=lambda loop: loop[1] - loop[0], default=(0, code[-1].address))
    # 32 values in forward and 16 in backward; of 3 channels 1024 for a program.
    values = 1024 // 128 if channels == 3 else 32 if label in ("bias_act", "bias_act, norm") else 16
    assert 0.8 * most * values <= sum(first <= address <= last for address, _ in code) <= most * values
