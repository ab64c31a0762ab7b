"""The speed-ups that are asked for, and whether they reach it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.harness import table

BF16, FP32 = "bf16", "fp32"
FROM_32_PX = ("8x512x32x32", "4x256x64x64", "4x128x128x128", "2x64x256x256", "1x32x512x512", "1x16x1024x1024")


@dataclass(frozen=True)
class Target:
    """`ours` must be at least `speedup` times as fast as `other` in every case that `where` selects.

    "within 1.2 times a copy" is a speedup of 1 / 1.2 over it. For memory, times as few bytes.
    """

    text: str
    other: str
    speedup: float
    where: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ours: str = "ours"

    def reached(self, records: list[dict]) -> Iterator[tuple[dict, float]]:
        """(record, median speedup) of every record that this target is about."""
        for record in records:
            if all(record[label] in allowed for label, allowed in self.where.items()):
                yield record, record["speedups"][self.ours][self.other]["median"]


def bias_act(text: str, other: str, speedup: float, passes: str, *layouts: str) -> Target:
    where = {"suite": ("bias_act_pixel_norm",), "dtype": (FP32,), "pass": (passes,)}
    where |= {"layout": layouts} if layouts else {}
    return Target(f"bias_act with pixel norm, fp32 {passes}{text}", other, speedup, where)


def convolution(text: str, speedup: float, dtype: str, **where: tuple[str, ...]) -> Target:
    where |= {
        "suite": ("conv2d_up", "conv2d_down"),
        "dtype": (dtype,),
        "pass": ("forward+backward",),
    }
    return Target(f"equalized_conv2d up=2 and down=2, forward+backward, {text}", "eager", speedup, where)


def step(text: str, ours: str, other: str, speedup: float) -> Target:
    where = {"suite": ("step",), "shape": ("16x3x32x32", "8x3x64x64")}
    return Target(f"training step, {text}", other, speedup, where, ours)


def traffic(text: str, suite: str, ours: str, other: str, times_fewer: float) -> Target:
    where = {"suite": (suite,), "shape": ("16x3x32x32", "8x3x256x256", "4x3x1024x1024")}
    return Target(f"training step at 32, 256 and 1024 px, {ours}: {text}", other, times_fewer, where, ours)


FADES = ("fade_in", "fade_reals", "fade_reals_uint8")
THIRD_PARTY = ("third-party step", "third-party generation")
SMALL = tuple(f"small {op.name}" for op in table.SMALL)

TARGETS = (
    bias_act(", channels_last: within 1.2 x.clone()", "copy", 1 / 1.2, "forward", "channels_last"),
    bias_act(", channels_last: 3.5 times eager", "eager", 3.5, "forward", "channels_last"),
    bias_act(", NCHW: within 1.5 x.clone()", "copy", 1 / 1.5, "forward", "nchw"),
    bias_act(", NCHW: 2.5 times eager", "eager", 2.5, "forward", "nchw"),
    bias_act(": faster than torch.compile", "compile", 1.0, "forward"),
    bias_act(": 3 times eager", "eager", 3.0, "forward+backward"),
    Target("fade_in, fade_reals: within 1.4 copies of the bytes", "copy", 1 / 1.4, {"suite": FADES}),
    Target("fade_in, fade_reals: 2 times eager", "eager", 2.0, {"suite": FADES}),
    Target("minibatch_stddev: 2 times eager", "eager", 2.0, {"suite": ("minibatch_stddev",)}),
    convolution("fp32 from 32 px: 1.5 times eager", 1.5, FP32, shape=FROM_32_PX),
    convolution("bf16: never slower", 1.0, BF16),
    Target("small work, forward+backward: not slower than eager", "eager", 1.0, {"suite": SMALL}),
    step("fp32: 1.6 times eager NCHW", "ours_fp32", "eager_nchw_fp32", 1.6),
    step("fp32: 1.35 times eager channels_last", "ours_fp32", "eager_channels_last_fp32", 1.35),
    step("fp32: 1.5 times eager channels_last under torch.compile", "ours_fp32", "eager_compiled_fp32", 1.5),
    step("bf16: 1.4 times eager channels_last bf16", "ours_bf16", "eager_channels_last_bf16", 1.4),
    step("bf16: 3.5 times eager NCHW fp32", "ours_bf16", "eager_nchw_fp32", 3.5),
    Target(
        "D step of R3GAN: with R1 and R2 at most 2.2 times one without",
        "ours_without_penalties",
        1 / 2.2,
        {"suite": ("D step of R3GAN",)},
    ),
    Target("fp32: 1.7 times pro-gan-pth, step and generation", "pro_gan_pth", 1.7, {"suite": THIRD_PARTY}, "ours_fp32"),
    Target("bf16: 3.5 times pro-gan-pth, step and generation", "pro_gan_pth", 3.5, {"suite": THIRD_PARTY}, "ours_bf16"),
    Target("sliced Wasserstein distance: 5 times NumPy", "numpy", 5.0, {"suite": ("sliced Wasserstein distance",)}),
    Target("waiting for data: under 5% of a step", "step", 20.0, {"suite": ("loader",)}),
    Target("bytes kept for backward at 128 px: 0.6 of eager's", "eager", 1 / 0.6, {"suite": ("memory G", "memory D")}),
    Target("peak of a step at 256 and 1024 px, batch 1: 0.6 of eager's", "eager", 1 / 0.6, {"suite": ("peak memory",)}),
    *(traffic("0.45 of eager's launches", "traffic launches", i, "eager", 1 / 0.45) for i in ("native", "triton")),
    *(
        traffic("1.6 times the convolutions' bytes", "traffic bytes", i, "convolutions", 1 / 1.6)
        for i in ("native", "triton")
    ),
)
