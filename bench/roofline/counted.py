"""Instructions of the CUDA kernels, counted in their machine code for 9.0 in bf16, and bytes through L2.

nvcc is needed to count instructions, and not to model a step: `tests/cuda_on_cpu/test_instructions.py` counts anew.
"""

FUSED = ("epilogue", "pixel_norm", "in_mask", "out_mask")

HALO_INSTRUCTIONS = {
    ("plain", 16, 16): (119, 117, 160, 128),
    ("plain", 16, 32): (194, 264, 214, 210),
    ("plain", 32, 16): (163, 183, 232, 174),
    ("plain", 32, 32): (290, 334, 364, 312),
    ("strided", 16, 16): (318, 316, 671, 312),
    ("strided", 16, 32): (344, 403, 682, 383),
    ("transposed", 16, 16): (116, 116, 98, 108),
    ("transposed", 32, 16): (146, 143, 133, 126),
}
"""{(kind, channels in, channels out): a warp's instructions for 16 pixels of the output, by `FUSED`}"""

HALO_GRADIENT_INSTRUCTIONS = {
    ("plain", 16, 16): (128, 163),
    ("plain", 16, 32): (258, 297),
    ("plain", 32, 16): (247, 316),
    ("plain", 32, 32): (397, 465),
    ("strided", 16, 16): (333, 367),
    ("strided", 32, 16): (432, 496),
}
"""{(kind, channels of a, of b): those of the weight gradient for 16 pixels of a, without a mask and with one}"""

HALO_BORDER = 1.25
"""Most bytes from and to L2 by those of the tensors, counted: tests/cuda_on_cpu/test_conv_halo_bytes.py."""

# Bytes that a pass moves for 16 of the wide tensor in bf16: both tensors, or it and an image; and the sign bits.
_TWO, _IMAGE = 2 * 16 + 1, 16 + 1 + 0.75
PASS_INSTRUCTIONS = {
    "bias_act_with_sign_bits_": 49 / _TWO,
    "bias_act_backward_by_sign_bits": 50 / _TWO,
    "conv_rgb_expand": 105 / _IMAGE,
    "conv_rgb_reduce": 110 / _IMAGE,
    "conv_rgb_weight_gradient": 102 / _IMAGE,
}
"""A thread's instructions for each byte that it moves, at 64 channels, images having 3, with sign bits."""


HALO_FP32_INSTRUCTIONS = {"epilogue": 212, "pixel_norm": 236, "in_mask": 211, "out_mask": 224, "weight gradient": 447}
"""In fp32 on tensor cores, those of a warp for 16 pixels of 16 to 16 channels; of the weight gradient with a mask.

Wider layers have more products for the same pixels, and instructions grow no faster."""
HALO_PRODUCTS = 9 * 16 * 16
