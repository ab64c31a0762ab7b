"""The page docs/cuda-kernels.md: what nvcc makes of each kernel for each GPU.

python -m tests.cuda_on_cpu.table   writes it anew
"""

import re
import subprocess
from collections.abc import Mapping, Sequence

from bench.roofline.counted import HALO_BORDER, HALO_FP32_INSTRUCTIONS, HALO_GRADIENT_INSTRUCTIONS, HALO_INSTRUCTIONS
from tests.cuda_on_cpu import build, nvcc

PAGE = build.ROOT / "docs/cuda-kernels.md"
INTRODUCTION = """\
# CUDA kernels

What nvcc {version} makes of `csrc/cuda`. Written by `python -m tests.cuda_on_cpu.table`, which needs nvcc and no
GPU; `make test-kernels` checks that the page is up to date, that no kernel spills registers or has local memory, that
every kernel with vectors loads and stores 16 bytes at once, and that a multiprocessor has room for at least two
blocks of every kernel, but for those in fp64 and `bias_act_double_backward` of half-precision NCHW. Blocks are of
256 threads.

A row is one kernel in one dtype, the columns are GPUs by compute capability. Each cell has the registers of a thread
and the occupancy, the share of a multiprocessor's threads that run at once (by NVIDIA's `cuda_occupancy.h`), of the
neediest instance: layouts, with and without pixel norm, other dtypes read. "16 bytes" is the kernel for tensors whose
addresses and sizes allow vectors, "single" the one for all others. Shared memory is static, the largest of all GPUs.

These are memory-bound kernels, which need bytes in flight rather than many threads: a thread of `bias_act` has up to
64 bytes of each tensor on the way at a time, so a quarter to a half of the threads suffices.

Every tensor is read once and written once, with at most 5% more for biases, factors and partial sums, as
`make test-kernels` counts. The exception: with pixel norm, more channels than a block holds in registers (1024 at
least) are read a second time, which makes 3 of 2 passes over memory in the forward, 5 of 3 in the backward and 8 of 5
in the double backward. Of a group of more than 4 samples in `minibatch_stddev` those beyond the fourth are read three
times, from cache where that holds them.

## Sign bits and images

`bias_act_with_sign_bits_` writes leaky ReLU over a convolution's output and a bit for each value, by which
`bias_act_backward_by_sign_bits` takes a gradient back: 2 1/16 tensors in half precision where y would make 3.
`conv_rgb_expand`, `conv_rgb_reduce` and `conv_rgb_weight_gradient` are 1 x 1 convolutions between images of 1 or 3
channels and such tensors, and their gradients: single passes over the wide tensor, the image's pixels in shared memory.
All are for channels_last tensors whose channels are a power of two, at least 16, so that a thread has the same
channels of every pixel; others go the general way. A thread has 64 bytes on the way at a time.

D's layers from RGB take them with leaky ReLU, G's to RGB with their bias and no activation: there the forward is
`conv_rgb_reduce`, the input gradient `conv_rgb_expand`, and the weight gradient `conv_rgb_weight_gradient` with x as
the wide tensor, which then sums up the image's gradient for the bias. Forward is one launch (two before, at 64 channels
and more), backward three (five before, seven at 16 channels).

Instructions that a thread executes for 16 bytes of bf16, that is 8 values, counted along the path of a full tile with
leaky ReLU in the SASS for sm_90, not timed: with sign bits 49 forward (68 before) and 50 backward (74 before); by
`bias_act` in channels_last of 64 channels 56 forward and 82 backward, with pixel norm 106 and 158. They are few since
gain and scale go before the activation, a pair of bf16 values is taken apart by a shift and a mask, an activated value
stays in its register for pixel norm, relu is a branch of its own, and a thread of few channels has vectors of several
pixels with one bias. `tests/cuda_on_cpu/test_nvcc.py` holds the loops to it.

## Convolutions by halo tiles

`conv_halo` is for 16 and 32 channels, channels_last, where an implicit matrix product reads each value nine times
from the L2 cache. A block copies a tile of the input and its border into shared memory once, by `cp.async`, 16 bytes
at a time and zeros outside the image; all taps are multiplied from there by `ldmatrix` and `mma.sync` (bf16, fp16, and
fp32 as tf32, to which it is rounded in shared memory) with sums in fp32. A warp takes 16 pixels of several rows, so
that one load of a row serves three rows of results. Scale, bias, activation, pixel norm and the packed signs follow in
registers. `up=2` is four phases of 2 x 2 taps, `down=2` one 4 x 4 filter. The input gradient is the same kernel: the
activation's gradient is taken in shared memory, once for each value, or in the epilogue. The weight gradient multiplies
two such tiles, with pixels as the summed dimension; blocks leave partial sums that are added in a fixed order.

Counted, not timed: no GPU has run these kernels. Instructions of a warp on sm_90 in bf16, along the path of a full tile
through the loop over tiles, counted in the SASS, for 16 pixels of what is written, of the weight gradient for 16 of the
tensor that no stride reads (`bench/roofline/counted.py`, which `tests/cuda_on_cpu/test_instructions.py` holds). "In"
and "out" are a launch's: the input gradient of a layer reads the layer's output channels. "By mask" is through an
activation by its sign bits, on what is read or on what is written:

| kind | in | out | leaky ReLU, signs | pixel norm | by mask, read | by mask, written |
|---|---|---|---|---|---|---|
{halo}
| weight gradient | of channels | and of | | by mask, read |
|---|---|---|---|---|
{gradient}
In fp32, at 16 to 16 channels, every instruction of the loop over tiles: {fp32}.

Bytes from and to L2 are at most {border:.2f} times the tensors' own in every launch of a layer in bf16: borders of
tiles, filters and partial sums come on top (`tests/cuda_on_cpu/test_conv_halo_bytes.py`). Blocks have up to 48 KiB of
shared memory and 128 registers a thread: two fit on every multiprocessor. In fp32, filters of 32 to 32 channels and of
resizing need up to 71 KiB; `auto` takes those kernels only where a multiprocessor has room for two blocks (8.0, 8.7,
9.0, 10.0 and 11.0). fp32 is taken only while cuDNN's convolutions may compute it as tf32: without
`torch.backends.cudnn.allow_tf32` results are those of fp32. There are no kernels for `relu`, nor for resizing with 32
channels on both sides. cuDNN or Triton take those.
On 7.5, which lacks the instructions, the kernels are empty and are not launched.

## Filters

`upfirdn2d` makes a tile of outputs from a patch of inputs in shared memory. With 3 or 4 taps, tensors of vectors and
any of blur, up 2 and down 2, it moves the image, the result and the tiles' borders, at most 1.05 of them
(`tests/cuda_on_cpu/test_bytes.py`). Instructions of a thread for one output on sm_90, counted in the SASS, which
`tests/cuda_on_cpu/test_nvcc.py` holds to:

| dtype | layout | blur, 4 and 3 taps | up 2 | down 2 |
|---|---|---|---|---|
| fp32 | contiguous | 45, 45 | 45, 51 | 45, 45 |
| fp32 | channels_last | 64, 47 | 40, 48 | 65, 47 |
| bf16 | contiguous | 35, 23 | 39, 48 | 42, 29 |
| bf16 | channels_last | 65, 42 | 29, 33 | 65, 42 |

Of three taps over zeros an output has two or one, which are told apart as it runs. Other filters take 106 to 220.

`filtered_lrelu` keeps a tile of the upsampled grid there from beginning to end, for filters of up to 24 taps: it moves
image, result and, where a gradient is asked for, 2 bits for each value of the grid. Neighbouring tiles of 24 x 32
outputs compute the 11 rows and columns between them twice (12 taps, up 2, down 2). A channels_last image is copied to
planes and back.

## Registers and occupancy

| kernel | dtype | elements | shared, KiB |{gpus}
|---|---|---|---|{rules}
"""


def page() -> str:
    gpus = [gpu for generation in nvcc.architectures().values() for gpu in generation]
    instances: dict[tuple[str, str, str], dict[str, list[tuple[int, int, int]]]] = {}
    for source in nvcc.SOURCES:
        for gpu in gpus:
            kernels = nvcc.kernels(source.stem, gpu)
            for kernel, count in zip(kernels, nvcc.blocks(gpu, kernels), strict=True):
                row = kernel.name, kernel.types[0], "16 bytes" if kernel.vector > 1 else "single"
                needs = kernel.registers, count, kernel.shared
                instances.setdefault(row, {}).setdefault(gpu, []).append(needs)
    lines = []
    for row in sorted(instances):
        of_gpu = instances[row]
        shared = max(bytes_ for needs in of_gpu.values() for _, _, bytes_ in needs)
        cells = [_cell(gpu, of_gpu[gpu]) for gpu in gpus]
        lines.append(f"| {' | '.join([*row, f'{shared / 1024:g}', *cells])} |\n")
    said = subprocess.run([nvcc.NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    introduction = INTRODUCTION.format(
        halo=_counted(HALO_INSTRUCTIONS),
        gradient=_counted(HALO_GRADIENT_INSTRUCTIONS),
        fp32=", ".join(f"{count} {_SPELLED[fused]}" for fused, count in HALO_FP32_INSTRUCTIONS.items()),
        border=HALO_BORDER,
        version=re.search(r"V([\d.]+)", said)[1],
        gpus="".join(f" {gpu[:-1]}.{gpu[-1]} |" for gpu in gpus),
        rules="---|" * len(gpus),
    )
    return introduction + "".join(lines)


_SPELLED = {
    "epilogue": "with leaky ReLU and signs",
    "pixel_norm": "with pixel norm",
    "in_mask": "by mask where read",
    "out_mask": "by mask where written",
    "weight gradient": "of the weight gradient by mask",
}


def _counted(instructions: Mapping[tuple[str, int, int], Sequence[int]]) -> str:
    return "".join(f"| {' | '.join(map(str, (*instance, *counts)))} |\n" for instance, counts in instructions.items())


def _cell(gpu: str, needs: list[tuple[int, int, int]]) -> str:
    registers, blocks = max(r for r, _, _ in needs), min(b for _, b, _ in needs)
    return f"{registers} {100 * blocks * 256 // nvcc.MULTIPROCESSORS[gpu][0]}%"


if __name__ == "__main__":
    PAGE.write_text(page())
