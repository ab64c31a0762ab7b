"""The convolution's kernels compiled for GPUs that are not here: what the cubins say of spills, tensor cores, stores.

    python -m tests.kernels.test_conv_compiled

prints the table of docs/kernels.md.
"""

import itertools
import os
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")
from bench.roofline import sass  # noqa: E402
from bench.roofline.aot import CAPABILITIES, SHARED_MEMORY, Compiled, compiling  # noqa: E402
from pggan_fast.kernels import (
    conv,  # noqa: E402
    conv_choice,  # noqa: E402
    conv_tiles,  # noqa: E402
    conv_weight_gradient,  # noqa: E402
)
from pggan_fast.kernels.activation import sign_bits_shape  # noqa: E402
from pggan_fast.kernels.gpu_limits import H200  # noqa: E402
from tests.kernels.memory_bound import occupancy  # noqa: E402

EVERY_GPU = "PGGAN_FAST_TEST_KERNELS" in os.environ
CHECKED = CAPABILITIES if EVERY_GPU else (90,)
# Triton compiles no tensor core instructions for 7.5: there `auto` leaves the convolution to cuDNN.
TENSOR_CORES = {80: "HMMA", 86: "HMMA", 90: "HGMMA", 100: "UTC[A-Z]*MMA", 120: "HMMA"}
HALF = (torch.float16, torch.bfloat16)


def images(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)


def sign_bits_of(y: torch.Tensor) -> torch.Tensor:
    return torch.empty(sign_bits_shape(y), dtype=torch.int32, device="meta")


def forward(channels: int, dtype: torch.dtype, capability: int, **options) -> Compiled:
    """A generator's convolution of so many channels."""
    x, weight = images(32, channels, 64, 64, dtype=dtype), images(channels, channels, 3, 3, dtype=dtype)
    bias, options = torch.empty(channels, device="meta"), options or dict(pixel_norm=True)
    with compiling(conv, capability) as found:
        conv.convolve(x, weight, bias, size=(64, 64), padding=1, negative_slope=0.2, **options)
    return found[0]


def forward_with_signs(channels: int, dtype: torch.dtype, capability: int) -> Compiled:
    """A discriminator's."""
    return forward(channels, dtype, capability, keep_sign_bits=True)


def up(channels: int, dtype: torch.dtype, capability: int) -> Compiled:
    x, weight = images(32, 2 * channels, 32, 32, dtype=dtype), images(2 * channels, channels, 4, 4, dtype=dtype)
    with compiling(conv, capability) as found:
        conv.convolve(
            x,
            weight,
            size=(64, 64),
            transposed=True,
            stride=2,
            padding=1,
            negative_slope=0.2,
            pixel_norm=True,
            scale=0.1,
        )
    return found[0]


def gradient(channels: int, dtype: torch.dtype, capability: int) -> Compiled:
    """Compile an input gradient."""
    dy, weight = images(32, channels, 64, 64, dtype=dtype), images(channels, channels, 3, 3, dtype=dtype)
    with compiling(conv, capability) as found:
        conv.convolve(dy, weight, size=(64, 64), transposed=True, padding=1)
    return found[0]


def second_order(channels: int, dtype: torch.dtype, capability: int) -> Compiled:
    """Compile the gradient of dy: a convolution through the activation's backward."""
    g, weight = images(32, channels, 64, 64, dtype=dtype), images(channels, channels, 3, 3, dtype=dtype)
    with compiling(conv, capability) as found:
        conv.convolve(g, weight, size=(64, 64), padding=1, activation_mask=sign_bits_of(g), negative_slope=0.2)
    return found[0]


def weight_gradient(channels: int, dtype: torch.dtype, capability: int) -> Compiled:
    dy, weight = images(32, channels, 64, 64, dtype=dtype), images(channels, channels, 3, 3, dtype=torch.float32)
    with compiling(conv_weight_gradient, capability) as found:
        conv_weight_gradient.weight_gradient(dy, dy, weight, padding=1)
    return found[0]


def folded_weight_gradient(channels: int, dtype: torch.dtype, capability: int) -> Compiled:
    """Compile the gradient of a convolution with down=2."""
    dy, x = images(32, channels, 32, 32, dtype=dtype), images(4, channels, 64, 64, dtype=dtype)
    weight = images(channels, channels, 3, 3, dtype=torch.float32)
    with compiling(conv_weight_gradient, capability) as found:
        conv_weight_gradient.weight_gradient(dy, x, weight, stride=2, padding=1, fold=0.25)
    return found[0]


LAUNCHES = {
    "forward": forward,
    "up": up,
    "forward with signs": forward_with_signs,
    "gradient": gradient,
    "second order": second_order,
    "weight gradient": weight_gradient,
    "folded weight gradient": folded_weight_gradient,
}
CASES = [(launch, channels) for launch in LAUNCHES for channels in (16, 64, 512)]
if not EVERY_GPU:
    CASES = [("forward", 16), ("forward", 512), *((launch, 64) for launch in list(LAUNCHES)[1:])]


@pytest.mark.parametrize("capability", CHECKED)
@pytest.mark.parametrize(("launch", "channels"), CASES)
def test_half_precision_keeps_to_registers_and_uses_tensor_cores(launch, channels, capability):
    dtypes = {75: HALF[:1], 90: HALF if EVERY_GPU else HALF[1:]}.get(capability, HALF[1:])
    for dtype in dtypes:
        found = LAUNCHES[launch](channels, dtype, capability)
        assert found.local_bytes == 0, found[:-1]
        assert found.shared_bytes <= SHARED_MEMORY[capability]
        if capability in TENSOR_CORES:
            assert found.count(TENSOR_CORES[capability])
            # A tap of 8 x 16 channels is a value to a thread.
            assert found.count(r"STG\.E\.128") or (launch, channels) == ("folded weight gradient", 16)


def test_fp32_without_tf32_takes_no_tensor_cores(monkeypatch):
    """The products are FFMA, which docs/ops.md says of impl="triton"; nothing is spilled there either."""
    for precision in ("ieee", "tf32"):
        monkeypatch.setattr(conv_tiles, "dot_precision", lambda dtype, precision=precision: precision)
        monkeypatch.setattr(conv, "dot_precision", lambda dtype, precision=precision: precision)
        found = forward(16, torch.float32, 90)
        assert (found.count("HGMMA") > 0) == (precision == "tf32") and found.local_bytes == 0
    assert H200.flops(torch.float32, tf32=False) < H200.flops(torch.float32) / 6


def loop_of(found: Compiled) -> list[str]:
    """Return the instructions of the longest loop, without predicates; none where all steps are unrolled."""
    code = sass.instructions(found.sass)
    first, last = max(sass.loops(code), key=lambda loop: loop[1] - loop[0], default=(0, -1))
    return [text.split(maxsplit=1)[-1] if text[0] == "@" else text for at, text in code if first <= at <= last]


def products(code: list[str]) -> float:
    """Return multiplications of a warp on tensor cores."""
    return sum(sass.work(f"/*0000*/ {text} ;").multiplications for text in code)


WEIGHT_GRADIENTS = [(kind, channels) for kind in ("weight gradient", "folded weight gradient") for channels in (16, 32)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("launch", "channels"), [*WEIGHT_GRADIENTS, ("weight gradient", 64)])
def test_a_step_of_the_weight_gradients_loop(monkeypatch, launch, channels, dtype):
    """Its instructions, which the choice of a backend counts with, and no division or conversion among them."""
    monkeypatch.setattr(conv_tiles, "dot_precision", lambda dtype: "tf32" if dtype == torch.float32 else "ieee")
    monkeypatch.setattr(conv_weight_gradient, "dot_precision", conv_tiles.dot_precision)
    loop = loop_of(LAUNCHES[launch](channels, dtype, 90))
    assert [text for text in loop if text.startswith(("I2F", "F2I", "MUFU", "F2F"))] == []
    # One step to a trip: 32 pixels (16 of fp32) and 128 rows for four warps, for eight where few channels are folded.
    warps = 8 if launch.startswith("folded") and channels == 16 else 4
    assert products(loop) == (64 // dtype.itemsize) * channels * 128 / warps
    # Other versions of the compiler schedule a little differently; the choice needs no more than a tenth.
    if (launch, channels, dtype) == ("weight gradient", 16, torch.bfloat16):
        assert len(loop) == pytest.approx(conv_choice.WEIGHT_INSTRUCTIONS, rel=0.05)
    assert channels >= conv_choice.CUDNN_CHANNELS or len(loop) <= 1.1 * conv_choice.WEIGHT_INSTRUCTIONS


def test_a_step_of_the_input_gradients_loop():
    """64 channels in bf16: 213 instructions for a tap of 256 pixels by 64 channels, shared by eight warps."""
    loop = loop_of(gradient(64, torch.bfloat16, 90))
    assert products(loop) == 256 * 64 * 64 / 8
    assert 100 < len(loop) <= 220


FP64 = r"F2F(?:\.\w+)*\.F64|\bD(?:ADD|MUL|FMA|SETP|MNMX)\b"


@pytest.mark.parametrize("capability", CHECKED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("launch", LAUNCHES)
def test_narrower_code_has_no_fp64(launch, dtype, capability):
    """Python's numbers arrive in fp32: in fp64 each thread would convert them, and compute with units that are few."""
    assert LAUNCHES[launch](16, dtype, capability).count(FP64) == 0


def test_fp64_is_found_where_it_is():
    assert forward(16, torch.float64, 90).count(FP64)


def rows() -> Iterator[str]:
    """Markdown: each launch in bfloat16, by capability."""
    named = {80: "HMMA", 90: "HGMMA", 100: "tcgen05"}
    yield "| launch | channels | " + " | ".join(f"sm_{c}" for c in named) + " | occupancy, sm_90 |"
    yield "|" + "---|" * (3 + len(named))
    for launch, channels in itertools.product(LAUNCHES, (16, 64, 512)):
        found = {c: LAUNCHES[launch](channels, torch.bfloat16, c) for c in named}
        cells = [
            f"{f.registers} registers, {f.count(TENSOR_CORES[c])} {named[c]}, {f.shared_bytes >> 10} KB"
            for c, f in found.items()
        ]
        yield f"| {launch} | {channels} | {' | '.join(cells)} | {occupancy(found[90]):.0%} |"


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
