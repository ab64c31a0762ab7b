"""Launches and bytes of the CUDA kernels by bench.traffic.kernels, against what the harness counts."""

import pytest
import torch

from bench.traffic.kernels import NATIVE, arguments, native_bytes, native_launches
from tests.cuda_on_cpu import build

# Biases, rows of sums and appended maps beside the tensors, which are small here.
ALLOWED = 0.05
# A convolution's tiles overlap by their halos, and a block reads the filters again or leaves its part of a sum.
ALLOWED_BY_TILES = 0.2
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def check(name: str, *args: object) -> object:
    controls, op = build.load(), getattr(torch.ops.pggan_fast_cuda_on_cpu, name).default
    controls.take_launches()
    outputs = op(*args)
    launches = controls.take_launches()
    given = arguments(op, args, {})
    assert len(launches) == native_launches(name, given)
    moved = sum(launch.loaded + launch.stored for launch in launches)
    allowed = ALLOWED_BY_TILES if name.startswith("conv_halo") else ALLOWED
    assert moved == pytest.approx(native_bytes(name, given, outputs), rel=allowed), name
    return outputs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_op(layout):
    build.load()
    low, x, big, alpha = torch.randn(4, 64, 16, 16), torch.randn(4, 64, 32, 32), torch.randn(8, 512, 4, 4), 0.3
    low, x, big = (t.contiguous(memory_format=LAYOUTS[layout]) for t in (low, x, big))
    bias, seen = torch.randn(64), set()

    def call(name: str, *args: object) -> object:
        seen.add(name)
        return check(name, *args)

    for act in ("lrelu", "linear"):
        for pixel_norm in (False, True):
            options = (0.7, act, 0.2, 1.3, pixel_norm)
            y, r = call("bias_act", x, bias, *options)
            call("bias_act_", x.clone(memory_format=torch.preserve_format), bias, *options)
            r = r if pixel_norm else None
            for needs_bias_grad in (False, True):
                call("bias_act_backward", x, None, y, r, *options, needs_bias_grad)
            call("bias_act_double_backward", x, bias, x, None, y, r, *options)
    call("upsample2x", low)
    call("downsample2x", x)
    call("fade_in", low, x, torch.tensor(alpha))
    call("fade_in_backward", x, torch.tensor(alpha))
    call("blend_backward", x, torch.tensor(alpha))
    call("fade_reals", x, torch.tensor(alpha), 0.0, torch.float32)
    # A tile for each plane of 64 channels: nothing on its border is read twice.
    call("upfirdn2d", low, torch.randn(4, 4), 1, 1, 1, 1, 2, 1, 2, 1)
    wide = torch.randn(12)
    _, mask = call("filtered_lrelu", low, bias, wide, wide, 2, 2, 11, 10, 11, 10, False, 1.4, 0.2, 1.0)
    call("filtered_lrelu_masked", low, mask, wide, wide, 2, 2, 0, 0, 11, 11, 42, 42, 16, 16, True, 5.6, 0.2)
    statistics = (4, 1, 1e-8, True, 0)
    y = call("minibatch_stddev", big, *statistics)
    call("minibatch_stddev_backward", y, big, *statistics)
    call("minibatch_stddev_double_backward", big, y, big, *statistics)
    for transposed in (False, True):
        channels_last = layout == "channels_last"
        folded = call("fold_weight", torch.randn(64, 32, 3, 3), 1.0, transposed, torch.float32, channels_last)
        call("unfold_weight", folded, 1.0, transposed, torch.float32, channels_last)
    tiled, filters = (
        torch.randn(1, 16, 128, 128).contiguous(memory_format=torch.channels_last),
        torch.randn(16, 16, 3, 3),
    )
    slopes = (0.1, 1.3, 0.26)
    call(
        "conv_halo",
        tiled.bfloat16(),
        filters.bfloat16(),
        bias[:16],
        None,
        False,
        1,
        128,
        128,
        "epilogue",
        *slopes,
        1e-8,
        True,
    )
    call("conv_halo_weight_gradient", tiled.bfloat16(), tiled.bfloat16(), None, 1, *slopes)
    # Of several images, since every block reads weights of its own.
    tiled, weight = (
        tiled.bfloat16().repeat(4, 1, 1, 1).contiguous(memory_format=torch.channels_last),
        torch.randn(16, 3, 1, 1),
    )
    image = tiled[:, :3]
    signs = call("bias_act_with_sign_bits_", x.contiguous(memory_format=LAYOUTS["channels_last"]), bias, 0.7, 0.2, 1.3)
    call(
        "bias_act_backward_by_sign_bits",
        x.contiguous(memory_format=LAYOUTS["channels_last"]),
        signs,
        0.7,
        0.2,
        1.3,
        True,
    )
    _, signs = call("conv_rgb_expand", image, weight, bias[:16], None, *slopes, True)
    call("conv_rgb_reduce", tiled, weight.transpose(0, 1), None, signs, *slopes)
    call("conv_rgb_weight_gradient", tiled, image, signs, *slopes)
    assert seen == set(NATIVE)
