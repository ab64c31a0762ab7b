"""The activation, by the sign of a value or by packed sign bits: all that its backward needs of the output.

Sign bits are int32 [N, H, W, ceil(C / 32)]; channel c is bit c % 32 of word c // 32.
"""

import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.tensors import cdiv


def sign_bits_shape(y: Tensor) -> tuple[int, ...]:
    """Return the shape of the packed signs of y [N, C, H, W]: contiguous [N, H, W, ceil(C / 32)]."""
    n, c, h, w = y.shape
    return n, h, w, cdiv(c, 32)


@triton.jit
def is_positive(sign, negative_slope):
    """Whether the slope of the activation is that above zero; for relu (`negative_slope` is 0) a NaN's is."""
    return tl.where(negative_slope == 0, (sign > 0) | (sign != sign), sign > 0)


@triton.jit
def activate(v, positive, positive_slope, negative_slope):
    """v times the slope of the activation. With a slope of 0 it is 0, where a product would make NaN of infinity."""
    return tl.where(positive, v * positive_slope, tl.where(negative_slope == 0, 0.0, v * negative_slope))


@triton.jit
def activated(v, sign, slope, RELU: tl.constexpr):
    """v, times `slope` where its sign is not above zero; relu: 0 instead, as a product would make NaN of infinity."""
    if RELU:
        return tl.where(sign <= 0, 0.0, v)
    else:
        return tl.where(sign > 0, v, v * slope)


@triton.jit
def load_sign_bits(sign_bits_ptr, pixel, mask, c, first, C, BLOCK: tl.constexpr):
    """Return whether channels first + [0, BLOCK) are positive at pixels, False outside of the mask.

    pixel, mask: [M, 1] and c, those channels: [1, BLOCK], or the other way round; what is returned has both lengths.
    """
    words_of_pixel = (C + 31) // 32
    offs = pixel * words_of_pixel + first // 32
    # A word for each pixel and 32 channels, not one for each value.
    words = tl.load(sign_bits_ptr + offs, mask=mask, other=0)
    for i in tl.static_range(1, BLOCK // 32):
        more = tl.load(sign_bits_ptr + offs + i, mask=mask & (first // 32 + i < words_of_pixel), other=0)
        words = tl.where(c // 32 == first // 32 + i, more, words)
    return ((words >> (c % 32)) & 1) != 0


@triton.jit
def store_sign_bits(sign_bits_ptr, pixel, mask, positive, first, C: tl.constexpr):
    """Pack `positive` [M, BLOCK], of channels first + [0, BLOCK), at pixels [M]: what `load_sign_bits` reads."""
    M: tl.constexpr = positive.shape[0]
    BLOCK: tl.constexpr = positive.shape[1]
    BITS: tl.constexpr = min(BLOCK, 32)
    WORDS: tl.constexpr = (C + 31) // 32
    tl.static_assert(BLOCK >= 32 or C <= BLOCK, "programs would share a word")
    bits = tl.reshape(positive.to(tl.int32), [M, BLOCK // BITS, BITS]) << tl.arange(0, BITS)[None, None, :]
    words = tl.sum(bits, axis=2)  # no two of them share a bit
    word = first // 32 + tl.arange(0, BLOCK // BITS)
    offs = pixel[:, None] * WORDS + word[None, :]
    tl.store(sign_bits_ptr + offs, words, mask=mask[:, None] & (word < WORDS)[None, :])
