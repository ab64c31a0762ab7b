"""Sample inputs for every op, the layouts they come in, and the dtypes. The matrix tests of this folder share them.

A sample names the shapes of the tensor arguments in order, by the argument's name, and the other arguments.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Sample:
    op: str
    label: str
    shapes: dict[str, tuple[int, ...]]
    options: dict = field(default_factory=dict)
    pinned: dict[str, torch.dtype] = field(default_factory=dict)  # dtypes of tensors that do not follow the test's
    shift: float = 0.0  # added to x
    condition: float = 1.0  # by how much more than rounding an input moves the results

    def __str__(self) -> str:
        return f"{self.op}-{self.label}"

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def is_large(self) -> bool:
        """Whether it has more elements than there are in one block of most kernels."""
        return sum(math.prod(shape) for shape in self.shapes.values()) > 3000

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensor arguments: normally distributed, the same in every dtype but for rounding; alpha is 0.3.

        In half precision, rounding in a convolution would flip the slope of an output near the activation's kink,
        and its gradient with it, for any implementation: there the biases hold the outputs off it.
        """
        random = torch.Generator().manual_seed(sum(map(ord, str(self))))
        made = {}
        for name, shape in self.shapes.items():
            kind = self.pinned.get(name, dtype)
            if kind == torch.uint8:
                made[name] = torch.randint(256, shape, dtype=kind, generator=random)
            elif name == "alpha":
                made[name] = torch.tensor(0.3)
            else:
                values = torch.randn(shape, dtype=torch.float64, generator=random)
                if name == "x":
                    values += self.shift
                elif name == "bias" and "weight" in self.shapes and dtype in (torch.bfloat16, torch.float16):
                    values += torch.tensor([8.0, -8.0]).repeat(len(values))[: len(values)]
                made[name] = values.to(kind)
        return made


def _permuted(x: Tensor) -> Tensor:
    """Dense, with the dimensions stored in reverse order."""
    order = tuple(reversed(range(x.ndim)))
    return x.permute(order).contiguous().permute(order)


def _channels_last(x: Tensor) -> Tensor:
    """Channels innermost. torch names this memory format for 4 and 5 dimensions alone."""
    if x.ndim == 2:
        return x.contiguous()
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _sliced(x: Tensor) -> Tensor:
    """Out of a bigger buffer: every dimension starts at 1 and ends before the end."""
    return F.pad(x, (1, 2) * x.ndim)[tuple(slice(1, 1 + n) for n in x.shape)]


def _sliced_channels_last(x: Tensor) -> Tensor:
    """Some channels and columns of a bigger channels_last buffer."""
    bigger = _channels_last(F.pad(x, (1, 2) * (x.ndim - 1)))
    return bigger[(slice(None), *(slice(1, 1 + n) for n in x.shape[1:]))]


def _strided(x: Tensor) -> Tensor:
    """Every second element of the last dimension, so that not even neighbours are contiguous."""
    return torch.stack([x, torch.zeros_like(x)], dim=-1).flatten(-2)[..., ::2]


# Each is differentiable, so that gradients of a leaf can be taken through it.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": _channels_last,
    "sliced": _sliced,
    "sliced_channels_last": _sliced_channels_last,
    "permuted": _permuted,
    "strided": _strided,
}


def laid_out(x: Tensor, layout: str) -> Tensor:
    """x in a layout; vectors and scalars stay as they are, but for a bias cut out of a bigger one."""
    if x.ndim == 1 and layout in ("sliced", "strided"):
        return LAYOUTS["strided"](x)
    return LAYOUTS[layout](x) if x.ndim > 1 else x


def _epilogues() -> list[Sample]:
    """bias_act: every activation, with and without bias and pixel norm, in 2 to 5 dimensions."""
    x, bias = (3, 5, 4, 7), (5,)
    odd = dict(scale=0.37, gain=1.6, slope=0.1)
    wide = {"bias": torch.float32}
    return [
        Sample("bias_act", "defaults", {"x": x}),
        Sample("bias_act", "bias", {"x": x, "bias": bias}),
        Sample("bias_act", "norm", {"x": x, "bias": bias}, {"pixel_norm": True}),
        Sample("bias_act", "scaled", {"x": x, "bias": bias}, odd),
        Sample("bias_act", "scaled_norm", {"x": x, "bias": bias}, odd | {"pixel_norm": True}),
        Sample("bias_act", "linear", {"x": x, "bias": bias}, {"act": "linear", "scale": -1.5}),
        Sample("bias_act", "linear_norm", {"x": x, "bias": bias}, {"act": "linear", "pixel_norm": True, "scale": -1.5}),
        Sample("bias_act", "relu", {"x": x, "bias": bias}, {"act": "relu", "gain": 2**0.5}),
        Sample("bias_act", "relu_norm", {"x": x, "bias": bias}, {"act": "relu", "pixel_norm": True}),
        Sample("bias_act", "steep", {"x": x, "bias": bias}, {"slope": 3.0, "pixel_norm": True}),
        Sample("bias_act", "flat", {"x": x, "bias": bias}, {"slope": 0.0}),
        Sample("bias_act", "no_gain", {"x": x, "bias": bias}, {"gain": 0.0}),
        Sample("bias_act", "large_eps", {"x": x, "bias": bias}, {"pixel_norm": True, "eps": 0.5}),
        Sample("bias_act", "fp32_bias", {"x": x, "bias": bias}, {"pixel_norm": True}, wide),
        Sample("bias_act", "dense", {"x": (6, 9), "bias": (9,)}, {"pixel_norm": True}),
        Sample("bias_act", "one_sample", {"x": (1, 33), "bias": (33,)}),
        Sample("bias_act", "sequence", {"x": (2, 17, 5), "bias": (17,)}, {"pixel_norm": True}),
        Sample("bias_act", "volume", {"x": (2, 3, 2, 5, 3), "bias": (3,)}, {"pixel_norm": True}),
        # A channel alone is all of the norm: with a small eps its gradient would be nothing but rounding.
        Sample("bias_act", "one_channel", {"x": (2, 1, 5, 3), "bias": (1,)}, {"pixel_norm": True, "eps": 0.5}),
        Sample("bias_act", "one_pixel", {"x": (2, 19, 1, 1), "bias": (19,)}, {"pixel_norm": True}),
        Sample("bias_act", "empty_batch", {"x": (0, 5, 4, 4), "bias": bias}, {"pixel_norm": True}),
        Sample("bias_act", "no_pixels", {"x": (2, 5, 0, 4), "bias": bias}),
        # Larger than one block and one thread's share, and no multiple of either.
        Sample("bias_act", "many_pixels", {"x": (2, 7, 97, 61), "bias": (7,)}, {"pixel_norm": True}),
        Sample("bias_act", "many_pixels_plain", {"x": (2, 7, 97, 61), "bias": (7,)}, pinned=wide),
        Sample("bias_act", "many_channels", {"x": (2, 1037, 9, 5), "bias": (1037,)}, {"pixel_norm": True}),
        Sample("pixel_norm", "image", {"x": x}),
        Sample("pixel_norm", "dense", {"x": (4, 37)}, {"eps": 1e-4}),
        Sample("pixel_norm", "empty_batch", {"x": (0, 8, 2, 2)}),
    ]


def _convolutions() -> list[Sample]:
    def conv(label: str, k: int = 3, channels: tuple = (5, 7), size: tuple = (2, 6, 5), bias=True, pin=None, **options):
        n, h, w = size
        shapes = {"x": (n, channels[0], h, w), "weight": (channels[1], channels[0], k, k)}
        return Sample("equalized_conv2d", label, shapes | ({"bias": channels[1:]} if bias else {}), options, pin or {})

    def linear(label: str, features: tuple = (9, 6), batch: int = 5, bias=True, pin=None, **options):
        shapes = {"x": (batch, features[0]), "weight": features[::-1]}
        return Sample("equalized_linear", label, shapes | ({"bias": features[1:]} if bias else {}), options, pin or {})

    fp32 = {"weight": torch.float32, "bias": torch.float32}
    generator = dict(act="lrelu", pixel_norm=True)
    return [
        conv("plain"),
        conv("no_bias", bias=False, gain=1.3),
        conv("generator", weight_scale=0.2, gain=1.3, **generator),
        conv("k1", k=1, weight_scale=1.0),
        conv("k4", k=4, padding=1, act="relu"),
        conv("k5", k=5, act="lrelu"),
        conv("unpadded", padding=0, act="lrelu"),
        conv("overpadded", padding=3),
        conv("channels_17_33", channels=(17, 33), **generator),
        conv("up", up=2, **generator),
        conv("up_k1", k=1, up=2, act="lrelu"),
        conv("up_k5", k=5, up=2, bias=False),
        conv("up_k4", k=4, up=2, padding=2),
        conv("up_unpadded", up=2, padding=0, size=(1, 3, 4)),
        conv("up_one_pixel", up=2, size=(2, 1, 1), **generator),
        conv("down", down=2, act="lrelu"),
        conv("down_odd", down=2, size=(2, 7, 5), act="lrelu"),
        conv("down_k1", k=1, down=2, size=(2, 5, 6)),
        conv("down_k5", k=5, down=2, size=(1, 9, 8), bias=False),
        conv("down_k4", k=4, down=2, padding=2, size=(1, 6, 7)),
        conv("down_norm", down=2, **generator),
        conv("fp32_weight", pin=fp32, **generator),
        conv("fp32_weight_up", pin=fp32, up=2, **generator),
        conv("fp32_weight_down", pin=fp32, down=2, act="lrelu"),
        conv("empty_batch", size=(0, 4, 4), act="lrelu"),
        conv("empty_batch_up", size=(0, 4, 4), up=2, **generator),
        conv("empty_batch_down", size=(0, 4, 4), down=2, act="lrelu"),
        linear("plain"),
        linear("no_bias", bias=False, gain=1.2),
        linear("norm", weight_scale=0.1, **generator),
        linear("fp32_weight", pin=fp32, act="lrelu"),
        linear("one_feature", features=(1, 1), batch=1),
        linear("empty_batch", batch=0, act="lrelu"),
    ]


def _resamplings() -> list[Sample]:
    def fade(label: str, n: int = 2, c: int = 3, h: int = 3, w: int = 5, **options):
        tensors = {} if "alpha" in options else {"alpha": ()}
        shapes = {"low": (n, c, h, w), "high": (n, c, 2 * h, 2 * w)}
        return Sample("fade_in", label, shapes | tensors, options, {"alpha": torch.float32})

    def reals(label: str, shape: tuple = (2, 3, 4, 6), integers=False, **options):
        tensors = {} if "alpha" in options else {"alpha": ()}
        pinned = {"alpha": torch.float32} | ({"images": torch.uint8} if integers else {})
        return Sample("fade_reals", label, {"images": shape} | tensors, options, pinned)

    images = {"even": (2, 3, 4, 6), "odd": (2, 5, 7, 3), "one_pixel": (2, 3, 1, 1), "row": (1, 2, 1, 9)}
    images |= {"channels_33": (1, 33, 5, 34), "empty_batch": (0, 3, 4, 4), "large": (2, 18, 65, 71)}
    return [
        *(Sample(op, label, {"x": shape}) for op in ("upsample2x", "downsample2x") for label, shape in images.items()),
        fade("tensor"),
        fade("number", alpha=0.3),
        fade("old", alpha=0.0),
        fade("new", alpha=1.0),
        fade("rgb", c=3, h=16, w=33),
        fade("channels_33", c=33, h=2, w=9),
        fade("one_pixel", h=1, w=1),
        fade("large", c=18, h=33, w=35),
        fade("empty_batch", n=0),
        reals("tensor"),
        reals("number", alpha=0.3),
        reals("rgb", shape=(3, 3, 18, 34)),
        reals("channels_33", shape=(1, 33, 2, 18)),
        reals("large", shape=(2, 3, 130, 142)),
        reals("empty_batch", shape=(0, 3, 4, 4)),
        reals("uint8", integers=True),
        reals("uint8_number", integers=True, alpha=0.75),
        reals("uint8_rgb", shape=(3, 3, 18, 34), integers=True, alpha=0.1),
        reals("uint8_large", shape=(2, 3, 130, 142), integers=True),
        reals("uint8_bf16", integers=True, dtype=torch.bfloat16),
        reals("uint8_fp16", integers=True, dtype=torch.float16),
        reals("uint8_fp64", integers=True, dtype=torch.float64),
        reals("narrowed", dtype=torch.bfloat16),
        reals("widened", dtype=torch.float64),
    ]


def _deviations() -> list[Sample]:
    def stddev(label: str, n: int, shape: tuple = (6, 3, 5), shift: float = 0.0, **options):
        return Sample("minibatch_stddev", label, {"x": (n, *shape)}, options, shift=shift, condition=1 + shift)

    consecutive = dict(grouping="consecutive")
    return [
        stddev("n0", 0),
        stddev("n0_consecutive", 0, **consecutive),
        stddev("n1", 1),
        stddev("n1_unbiased", 1, correction=1),
        stddev("n4", 4),
        stddev("n5", 5),
        stddev("n6", 6),
        stddev("n6_consecutive", 6, **consecutive),
        stddev("n8", 8),
        stddev("n8_unbiased", 8, correction=1),
        stddev("n8_consecutive", 8, **consecutive),
        stddev("n8_unbiased_consecutive", 8, correction=1, **consecutive),
        # The deviation of two is their distance, whose second derivative is nothing but eps.
        stddev("n8_pairs", 8, group_size=2, eps=0.1),
        stddev("n8_whole", 8, group_size=64, eps=1e-4),
        stddev("n8_alone", 8, group_size=1),
        stddev("maps_2", 8, num_channels=2),
        stddev("maps_4", 4, shape=(8, 3, 3), num_channels=4),
        stddev("maps_2_consecutive", 6, num_channels=2, **consecutive),
        stddev("channels_33", 4, shape=(33, 2, 3)),
        stddev("one_pixel", 4, shape=(6, 1, 1)),
        stddev("large", 8, shape=(18, 37, 29), num_channels=2),
        stddev("far_from_zero", 8, shift=100.0),
    ]


def _filterings() -> list[Sample]:
    """upfirdn2d with everybody's 4 taps, longer and lopsided filters, and padding of either sign."""

    def filtering(label: str, f: tuple | Tensor, shape: tuple = (2, 3, 5, 6), **options):
        drawn = isinstance(f, tuple)
        taps = torch.randn(f, generator=torch.Generator().manual_seed(sum(f))) if drawn else f
        return Sample("upfirdn2d", label, {"x": shape}, {"f": taps} | options)

    up, down = dict(up=2, padding=(2, 1, 2, 1), gain=4.0), dict(down=2, padding=1)
    return [
        filtering("blur", (4, 4), padding=(2, 1, 2, 1)),
        filtering("binomial", torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64, **up),
        filtering("blur_1d", (4,), padding=(2, 1, 2, 1)),
        filtering("up", (4, 4), **up),
        filtering("down", (4, 4), **down),
        filtering("up_1d", (4,), (2, 5, 7, 3), **up),
        filtering("down_1d", (4,), (2, 5, 7, 9), **down),
        filtering("up_channels_33", (4,), (1, 33, 5, 9), **up),
        filtering("down_channels_33", (4,), (1, 33, 6, 10), **down),
        filtering("blur_wide", (4, 4), (1, 2, 3, 67), padding=(2, 1, 2, 1)),
        filtering("up_12", (12,), (1, 2, 9, 21), up=2, padding=(6, 5, 6, 5), gain=4.0),
        filtering("down_12", (12,), (1, 2, 12, 34), down=2, padding=5),
        filtering("lopsided", (3, 5), padding=(4, -1, -2, 6), flip_filter=True),
        filtering("up_3_down_2", (5, 2), up=3, down=2, padding=2),
        filtering("up_2_down_3", (7,), (1, 2, 9, 8), up=2, down=3, padding=4, gain=-0.5),
        filtering("axes_apart", (2, 3), up=(1, 4), down=(3, 1), padding=(1, 2, 0, 3)),
        filtering("fewer_taps_than_phases", (1,), up=3, padding=(1, -1)),
        filtering("down_5", (6, 6), (1, 2, 11, 23), down=5, padding=4),
        filtering("cropped", (4, 4), (1, 2, 9, 9), padding=-2),
        filtering("far_padding", (2, 2), (1, 1, 2, 3), padding=(9, 8, 7, 10)),
        filtering("one_pixel", (4, 4), (2, 3, 1, 1), **up),
        filtering("empty_batch", (4, 4), (0, 3, 4, 4), **up),
        # Larger than one block of any kernel, and no multiple of it.
        filtering("large_up", (4, 4), (2, 3, 37, 41), **up),
        filtering("large_down", (4,), (2, 3, 71, 75), **down),
        filtering("many_channels", (4,), (1, 68, 8, 8), padding=(2, 1, 2, 1)),
    ]


def _filtered_activations() -> list[Sample]:
    """filtered_lrelu with StyleGAN3's factors and taps, and with others of every kind; its bias is a constant here."""

    def activation(label: str, taps: tuple, shape: tuple = (2, 2, 5, 6), **options):
        random = torch.Generator().manual_seed(len(label))
        fu, fd, bias = (torch.randn(t, generator=random) for t in (*taps, shape[1]))
        return Sample("filtered_lrelu", label, {"x": shape}, {"fu": fu, "fd": fd, "bias": bias, "padding": 9} | options)

    return [
        activation("same_size", (12, 12), up=2, down=2, padding=11, clamp=2.0),
        activation("smaller", (12, 24), up=2, down=4, padding=19),
        activation("larger", (24, 12), up=4, down=2, padding=(17, 16, 15, 18), clamp=1.0),
        activation("no_bias", (6, 4), bias=None, slope=0.0),
        activation("neither", (1, 1), up=1, down=1, padding=0, gain=1.0),
        activation("coprime", (5, 7), up=3, down=2, flip_filter=True),
        activation("cropped", (6, 3), (1, 2, 9, 12), up=2, padding=(-3, 5, 2, -4)),
        activation("sparse", (2, 1), up=3, down=4),
        activation("one_pixel", (12, 12), (2, 3, 1, 1), up=2, down=2, padding=11),
        activation("empty_batch", (12, 12), (0, 3, 4, 4), up=2, down=2, padding=11),
        activation("large", (12, 12), (2, 3, 37, 41), up=2, down=2, padding=11, clamp=2.0),
        activation("large_up", (24, 12), (1, 2, 33, 40), up=4, down=2, padding=17),
    ]


SAMPLES = [
    *_epilogues(),
    *_convolutions(),
    *_resamplings(),
    *_deviations(),
    *_filterings(),
    *_filtered_activations(),
]
