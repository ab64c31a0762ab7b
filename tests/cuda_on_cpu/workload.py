"""Run every kernel of csrc/cuda on small tensors, in every variant that a launch chooses between.

python -m tests.cuda_on_cpu.workload VARIANT   in the harness of this variant; prints the number of launches
"""

import sys
from itertools import product

import torch
from torch import Tensor

from pggan_fast.ops.conv_halo import FUSED, exists, has_weight_gradient
from tests.cuda_on_cpu import build
from tests.ops.op_calls import CALLS, Make
from tests.ops.samples import DTYPES

LAYOUTS = ("contiguous", "channels_last")
FITS = (4, 64, 4, 16)  # vectors of 16 bytes fit in every dtype and layout, at half the resolution, too
ODD = (6, 5, 6, 10)
FEW = (2, 32, 3, 4)  # 16 vectors to a pixel in fp64: several pixels to a thread, with pixel norm too
# With one channel more than a block holds in registers, pixel norm reads its inputs twice.
WIDE = (1, 4104, 2, 4)
SMALL, HALVES = (4, 20), (torch.bfloat16, torch.float16)
EPILOGUE = (0.7, "lrelu", 0.2, 1.3)


def dense(shape: tuple[int, ...], dtype: torch.dtype, layout: str, offset: int = 0) -> Tensor:
    """Random values in a layout, from `offset` elements after an aligned address on."""
    n, c, h, w = shape
    flat = torch.randn(n * c * h * w + offset, generator=torch.Generator().manual_seed(3)).to(dtype)[offset:]
    return flat.view(shape) if layout == "contiguous" else flat.view(n, h, w, c).permute(0, 3, 1, 2)


def epilogues(shape: tuple[int, ...], dtype: torch.dtype, layout: str, offset: int) -> None:
    ops = torch.ops.pggan_fast_cuda_on_cpu
    x, bias = dense(shape, dtype, layout, offset), torch.randn(shape[1])
    for pixel_norm in (False, True):
        options = (*EPILOGUE, pixel_norm)
        y, r = ops.bias_act(x, bias, *options)
        ops.bias_act_(x.clone(memory_format=torch.preserve_format), bias, 0.7, "relu", 0.0, 1.3, pixel_norm)
        r = r if pixel_norm else None
        for needs_bias_grad in (False, True):
            ops.bias_act_backward(x, r, y, r, *options, needs_bias_grad)
        ops.bias_act_double_backward(x, bias, x, r, y, r, *options)


def resamplings(shape: tuple[int, ...], dtype: torch.dtype, layout: str, offset: int) -> None:
    ops = torch.ops.pggan_fast_cuda_on_cpu
    n, c, h, w = shape
    high, low = dense(shape, dtype, layout, offset), dense((n, c, h // 2, w // 2), dtype, layout, offset)
    ops.upsample2x(low)
    ops.downsample2x(high)
    for alpha in (torch.tensor(0.3), None):
        ops.fade_in(low, high, alpha, 0.3)
        ops.fade_in_backward(high, alpha, 0.3)
        ops.blend_backward(high, alpha, 0.3)
        ops.fade_reals(high, alpha, 0.3, dtype)
        ops.fade_reals(high.to(torch.uint8), alpha, 0.3, dtype)


def filterings(shape: tuple[int, ...], dtype: torch.dtype, layout: str, offset: int) -> None:
    op = torch.ops.pggan_fast_cuda_on_cpu.upfirdn2d
    _, c, h, w = shape
    # A block takes one plane, or vectors of channels where these come last: more show nothing new.
    x = dense((2, 3 if layout == "contiguous" else c, h, w), dtype, layout, offset)
    for f in (torch.randn(4, 4), torch.randn(4), torch.randn(3), torch.randn(3, 5), torch.randn(10)):
        op(x, f, 1, 1, 1, 1, 4, 5, 4, 5)
        op(x, f, 2, 2, 1, 1, 5, 4, 5, 4)
        op(x, f, 1, 1, 2, 2, 4, 4, 4, 4, True)
        op(x, f, 3, 2, 1, 2, 9, 9, 9, 9)
    # Rows of results that are whole vectors, if those of x are.
    op(x, torch.randn(4, 4), 1, 1, 1, 1, 2, 1, 2, 1)
    op(x, torch.randn(4, 4), 2, 2, 1, 1, 2, 1, 2, 1)
    op(x, torch.randn(4, 4), 1, 1, 2, 2, 1, 1, 1, 1)
    op(x, torch.randn(3, 3), 1, 1, 1, 1, 1, 1, 1, 1)
    op(x, torch.randn(3, 3), 2, 2, 1, 1, 2, 0, 1, 1)
    op(x, torch.randn(3, 3), 1, 1, 2, 2, 1, 0, 0, 1)
    op(x, torch.randn(3, 5), 1, 1, 1, 1, 2, 2, 1, 1)
    # Neither the filter nor its patch fits in shared memory.
    op(x, torch.randn(70, 90), 1, 1, 1, 1, 45, 45, 35, 35)


def activations(shape: tuple[int, ...], dtype: torch.dtype, layout: str, offset: int) -> None:
    ops = torch.ops.pggan_fast_cuda_on_cpu
    shape = (2, 3, *shape[2:])  # a block takes one plane, in every layout
    x, bias = dense(shape, dtype, layout, offset), torch.randn(shape[1])
    for (up, down), clamp in product(((2, 2), (4, 2), (1, 3)), (0.5, None)):
        fu, fd = torch.randn(6 * up), torch.randn(6 * down)
        sides = (10, 9, 10, 9)
        y, mask = ops.filtered_lrelu(x, bias, fu, fd, up, down, *sides, False, 1.3, 0.2, clamp)
        ops.filtered_lrelu(x, None, fu, fd, up, down, *sides, True, 1.3, 0.0, clamp, False)
        grid = [(size - 1) * down + 6 * down for size in y.shape[2:]]
        before, behind = 6 * down - 1, 6 * up - 1 - 10
        back = (fd, fu, down, up, before, before, behind, behind, *grid, *shape[2:])
        ops.filtered_lrelu_masked(y, mask, *back, True, 1.3, 0.2)


def deviations(shape: tuple[int, ...], dtype: torch.dtype, layout: str, offset: int) -> None:
    ops = torch.ops.pggan_fast_cuda_on_cpu
    n, c, h, w = shape
    maps = 8 if c % 8 == 0 else 1
    x, dy = dense(shape, dtype, layout, offset), dense((n, c + maps, h, w), dtype, layout, offset)
    # Pairs, and a group that may be larger than what a thread holds.
    for group, strided in ((2, True), (n, False)):
        options = (group, maps, 1e-8, strided, 0)
        ops.minibatch_stddev(x, *options)
        ops.minibatch_stddev_backward(dy, x, *options)
        ops.minibatch_stddev_double_backward(x, dy, x, *options)


def foldings(dtype: torch.dtype, to: torch.dtype) -> None:
    ops = torch.ops.pggan_fast_cuda_on_cpu
    for k, transposed, channels_last in product((3, 5), (True, False), (True, False)):
        weight = torch.randn(4, 3, k, k).to(dtype)
        folded = ops.fold_weight(weight, 1.0, transposed, to, channels_last)
        ops.unfold_weight(folded, 1.0, transposed, dtype, channels_last)


def halo_tiles(dtypes: tuple[torch.dtype, ...], channels: tuple[int, ...] = (16, 32)) -> None:
    ops = torch.ops.pggan_fast_cuda_on_cpu
    for dtype, c_in, c_out, transposed, stride in product(dtypes, channels, channels, (False, True), (1, 2)):
        h, w = SMALL
        x, mask = dense((1, c_in, h, w), dtype, "channels_last"), torch.ones(1, h, w, 1, dtype=torch.int32)
        if has_weight_gradient(dtype, c_in, c_out, stride) and not transposed:
            b = dense((1, c_out, stride * h, stride * w), dtype, "channels_last")
            for signs in (None, mask):
                ops.conv_halo_weight_gradient(x, b, signs, stride, 0.7, 1.3, 0.26)
        if not exists(dtype, c_in, c_out, transposed, stride):
            continue
        k, out = (3, (h, w)) if stride == 1 else (4, (2 * h, 2 * w) if transposed else (h // 2, w // 2))
        weight = torch.randn(c_in if transposed else c_out, c_out if transposed else c_in, k, k).to(dtype)
        for fused in FUSED:
            signs = {"in_mask": mask, "out_mask": torch.ones(1, *out, 1, dtype=torch.int32)}.get(fused)
            bias = torch.randn(c_out) if signs is None else None
            ops.conv_halo(x, weight, bias, signs, transposed, stride, *out, fused, 0.7, 1.3, 0.26, 1e-8, True)


def images_and_sign_bits(dtype: torch.dtype) -> None:
    """A word of sign bits is filled by half with 16 channels; a block's last tile is not full."""
    ops, slopes = torch.ops.pggan_fast_cuda_on_cpu, (0.7, 1.3, 0.26)
    for c, image in ((16, 3), (64, 1)):
        x, small = (dense((1, channels, 12, 8), dtype, "channels_last") for channels in (c, image))
        weight, bias = torch.randn(c, image, 1, 1), torch.randn(c)
        bits = ops.bias_act_with_sign_bits_(x.clone(memory_format=torch.preserve_format), bias, 0.7, 0.2, 1.3)
        ops.bias_act_with_sign_bits_(x.clone(memory_format=torch.preserve_format), None, 0.7, 0.2, 1.3)
        for mask, needs_bias_grad in ((bits, True), (None, False)):
            ops.bias_act_backward_by_sign_bits(x, bits, 0.7, 0.2, 1.3, needs_bias_grad)
            ops.conv_rgb_expand(small, weight, bias, mask, *slopes, True)
            ops.conv_rgb_expand(small, weight, None, mask, *slopes, False)
            ops.conv_rgb_reduce(x, weight.transpose(0, 1), bias[:image] if mask is None else None, mask, *slopes)
            ops.conv_rgb_weight_gradient(x, small, mask, *slopes)
            ops.conv_rgb_weight_gradient(x, small, mask, *slopes, True)


def run(dtypes: tuple[torch.dtype, ...], offsets: tuple[int, ...]) -> None:
    """offsets: 1 is an address at which no vector may be read."""
    for dtype, layout in product(dtypes, LAYOUTS):
        for call in CALLS:
            if call.has_gpu_kernel:
                getattr(torch.ops.pggan_fast_cuda_on_cpu, call.op)(*call.arguments(Make(dtype, layout)))
        for family, shape, offset in product(
            (epilogues, resamplings, filterings, activations, deviations), (FITS, ODD), offsets
        ):
            family(shape, dtype, layout, offset)
        epilogues(WIDE, dtype, layout, 0)
        epilogues(FEW, dtype, layout, 0)
    for dtype, to in product(dtypes, repeat=2):
        foldings(dtype, to)
    for dtype in dtypes:
        if dtype != torch.float64:  # which is refused
            images_and_sign_bits(dtype)
    # Of halo tiles, whose products take long here, one instance where others show nothing new.
    quick = len(dtypes) == 1
    halo_tiles((torch.bfloat16,) if quick else (torch.float32, *HALVES), (16,) if quick else (16, 32))


if __name__ == "__main__":
    controls = build.load(sys.argv[1])
    # ThreadSanitizer takes some 30 ms for each block, and finds the same races in every dtype.
    quick = sys.argv[1] == "thread"
    run((torch.float32,) if quick else DTYPES, (0,) if quick else (0, 1))
    print(len(controls.take_launches()), "launches")
