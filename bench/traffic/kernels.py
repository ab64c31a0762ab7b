"""The bytes that our kernels move, for `bench.traffic.count`: how often each of their tensors passes, times its bytes.

Read off the kernels themselves at small sizes: tests/cuda_on_cpu/test_traffic.py counts what csrc/cuda loads and
stores in the harness, tests/kernels/test_traffic.py the addresses that Triton's interpreter sees. A tensor that is
not named below passes once. What several programs read again (biases, rows of sums) is left out: a few hundredths at
most. A convolution's tensors count once, as cuDNN's do, though each tap issues loads of its own: caches hold the rows.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton.runtime import JITFunction

from bench.traffic.count import Traffic, distinct_bytes, largest_shape
from pggan_fast.kernels import (
    bias_act,
    conv,
    conv_tiles,
    conv_weight_gradient,
    fade,
    filtered_lrelu,
    fold,
    resample,
    stddev,
    upfirdn2d,
)
from pggan_fast.ops import conv as ops_conv
from pggan_fast.ops import conv_gradients, conv_halo_gradients, dispatch, sign_bits
from pggan_fast.ops import linear as ops_linear

MAPS_ALONE = 0.0
"""Only the maps that minibatch_stddev appended pass, a thousandth of the tensor."""

FOLDING = ("fold_weight", "unfold_weight")

TRITON = {
    "write_maps_kernel": {"y_ptr": MAPS_ALONE},
    "sum_maps_kernel": {"dy_ptr": MAPS_ALONE},
}
"""{kernel: {argument: passes}}"""

NATIVE = {
    "bias_act": (1, {}),
    "bias_act_": (1, {"x": 2.0}),
    "bias_act_double_backward": (1, {}),
    "bias_act_backward": (1, {}),
    "bias_act_with_sign_bits_": (1, {"x": 2.0}),
    "bias_act_backward_by_sign_bits": (1, {}),
    "upsample2x": (1, {}),
    "downsample2x": (1, {}),
    "fade_in": (1, {}),
    "fade_in_backward": (1, {}),
    "blend_backward": (1, {}),
    "fade_reals": (1, {}),
    "minibatch_stddev": (2, {}),
    "minibatch_stddev_backward": (2, {}),
    "minibatch_stddev_double_backward": (3, {"dy": MAPS_ALONE}),
    "upfirdn2d": (1, {}),
    "filtered_lrelu": (1, {}),
    "filtered_lrelu_masked": (1, {}),
    "fold_weight": (1, {}),
    "unfold_weight": (1, {}),
    "conv_halo": (1, {}),
    "conv_halo_weight_gradient": (2, {}),
    "conv_rgb_expand": (1, {}),
    "conv_rgb_reduce": (1, {}),
    "conv_rgb_weight_gradient": (2, {}),
}
"""{op: (launches, {argument: passes})} of csrc/cuda. `bias_act_backward` launches once more for a bias."""

COMPOSITES = {
    "equalized_conv2d": ops_conv._forward_kernel,
    "equalized_conv2d_with_sign_bits": ops_conv._sign_bits_kernel,
    "equalized_linear": ops_linear._forward_kernel,
}
"""Ops that are several launches, torch's among them."""

HOSTS = {
    "bias_act": bias_act.forward,
    "bias_act_": bias_act.forward_in_place,
    "bias_act_backward": bias_act.backward,
    "bias_act_double_backward": bias_act.double_backward,
    "upsample2x": resample.upsample,
    "downsample2x": resample.downsample,
    "fade_in": fade.fade_in,
    "fade_in_backward": fade.fade_in_backward,
    "blend_backward": fade.blend_backward,
    "fade_reals": fade.fade_reals,
    "minibatch_stddev": stddev.forward,
    "minibatch_stddev_backward": stddev.backward,
    "minibatch_stddev_double_backward": stddev.double_backward,
    "upfirdn2d": upfirdn2d.upfirdn2d,
    "filtered_lrelu": filtered_lrelu.forward,
    "filtered_lrelu_masked": filtered_lrelu.masked,
    "fold_weight": fold.fold,
    "unfold_weight": fold.unfold,
}
"""{op: the function of pggan_fast.kernels that launches for it}"""

MODULES = (bias_act, conv, conv_weight_gradient, fade, filtered_lrelu, fold, resample, stddev, upfirdn2d)


class TritonLaunch(NamedTuple):
    """A launch as Triton was asked for it."""

    kernel: JITFunction
    grid: tuple[int, ...]
    args: tuple
    options: dict

    @property
    def named(self) -> dict[str, object]:
        """Arguments by name, constants and compilation options included."""
        return dict(zip(self.kernel.arg_names, self.args, strict=False)) | self.options


class HaloLaunch(NamedTuple):
    """A convolution by halo tiles, or its weight gradient."""

    fused: str
    """What the op is told to do with its input or result, or "weight gradient", "masked weight gradient"."""
    kind: str
    """"plain", "strided" or "transposed"."""
    c_in: int
    c_out: int
    pixels: int
    """Of the output; of the weight gradient, of the tensor that no stride reads."""
    dtype: torch.dtype

    @property
    def operations(self) -> float:
        taps = {"plain": 9, "strided": 16, "transposed": 4}[self.kind]
        return 2.0 * self.pixels * taps * self.c_in * self.c_out

    @classmethod
    def of(cls, name: str, given: dict) -> "HaloLaunch":
        """Return the launch of an op's call with these arguments by name."""
        if name == "conv_halo_weight_gradient":
            a, b = given["a"], given["b"]
            fused = "weight gradient" if given["mask"] is None else "masked weight gradient"
            kind = "plain" if given["stride"] == 1 else "strided"
            return cls(fused, kind, a.shape[1], b.shape[1], a[:, 0].numel(), a.dtype)
        x, transposed = given["x"], given["transposed"]
        kind = "plain" if given["stride"] == 1 else "transposed" if transposed else "strided"
        c_out, pixels = given["weight"].shape[1 if transposed else 0], len(x) * given["out_h"] * given["out_w"]
        return cls(given["fused"], kind, x.shape[1], c_out, pixels, x.dtype)


def native_launches(op: str, given: dict) -> int:
    return NATIVE[op][0] + bool(given.get("needs_bias_grad"))


def native_bytes(op: str, given: dict, outputs: object) -> float:
    """The traffic of one call; `given` are its arguments by name."""
    passes = dict(NATIVE[op][1])
    if op in ("bias_act_backward", "bias_act_double_backward") and not given["pixel_norm"]:
        # The sign of an affine map's gradient needs no y, and a second derivative no dy.
        passes |= {"y": 0.0} if given["act"] == "linear" else {}
        passes |= {"dy": 0.0} if op == "bias_act_double_backward" else {}
    read = sum(passes.get(name, 1.0) * distinct_bytes(value) for name, value in given.items())
    return read + distinct_bytes(*(outputs if isinstance(outputs, (tuple, list)) else [outputs]))


def triton_bytes(kernel, tensors: dict[str, object]) -> float:
    """The traffic of one launch; `tensors` are the kernel's arguments by name."""
    passes = TRITON.get(kernel.__name__, {})
    if "d_y_ptr" in kernel.arg_names and "d_y_ptr" not in tensors:
        passes = {"dy_ptr": 0.0}  # bias_act's second derivative without pixel norm
    return sum(passes.get(name, 1.0) * distinct_bytes(value) for name, value in tensors.items())


def arguments(op: torch._ops.OpOverload, args: tuple, kwargs: dict) -> dict:
    """By name, defaults included."""
    named = {a.name: a.default_value if a.has_default_value() else None for a in op._schema.arguments}
    return named | dict(zip((a.name for a in op._schema.arguments), args, strict=False)) | kwargs


def _native(op: torch._ops.OpOverload):
    name = op._schema.name.partition("::")[2]

    def rule(traffic: Traffic, *args, **kwargs):
        given, outputs = arguments(op, args, kwargs), op(*args, **kwargs)
        halo = HaloLaunch.of(name, given) if name.startswith("conv_halo") else None
        operations = 0.0 if halo is None else halo.operations
        of = largest_shape((args, kwargs, outputs))
        traffic.add(name, native_bytes(name, given, outputs), native_launches(name, given), operations, halo, of)
        return outputs

    return rule


def _inside(op: torch._ops.OpOverload, run: Callable):
    """Count what the Python function behind an op does."""

    def rule(traffic: Traffic, *args, **kwargs):
        with traffic:
            return run(*arguments(op, args, kwargs).values())

    return rule


def _takes_own_kernel_on_a_gpu(direction, x, weight, geometry, impl: str, pixel_norm: bool = False) -> bool:
    return conv_gradients.fused().is_faster(direction, x, weight, geometry, pixel_norm)


def _as_on_an_h100(stack: ExitStack) -> None:
    """Native convolutions take our kernels where `auto` takes those for faster, tf32 being allowed."""
    for module in (ops_conv, conv_gradients):
        stack.enter_context(mock.patch.object(module, "takes_own_kernel", _takes_own_kernel_on_a_gpu))
    stack.enter_context(mock.patch.object(conv_halo_gradients, "_has_kernels", lambda x, more_memory: True))
    precision = lambda dtype: "tf32" if dtype == torch.float32 else "ieee"  # noqa: E731
    stack.enter_context(mock.patch.object(conv_tiles, "dot_precision", precision))
    stack.enter_context(mock.patch.object(conv_halo_gradients, "_may_multiply", lambda dtype: True))


@contextmanager
def counted(impl: str) -> Iterator[Traffic]:
    """Inside, our ops on meta tensors take `impl`, and are counted launch by launch.

    impl: "native", "triton", or "auto", which is native with convolutions fused as on an H100.
    """
    native, triton = torch.ops.pggan_fast, torch.ops.pggan_fast_triton
    rules = {getattr(native, name).default: _native(getattr(native, name).default) for name in NATIVE}
    if impl == "triton":
        # One op counts for either implementation of these: Triton's where nothing was compiled.
        rules |= {
            getattr(native, name).default: _inside(getattr(native, name).default, HOSTS[name]) for name in FOLDING
        }
    for namespace, own in ((native, "native"), (triton, "triton")):
        for name, run in COMPOSITES.items():
            op = getattr(namespace, name).default
            rules[op] = _inside(op, partial(run, own))
    for name, run in HOSTS.items():
        op = getattr(triton, name).default
        rules[op] = _inside(op, run)
    # Meta tensors share no memory that it could compare, and it launches nothing.
    rules[torch.ops.aten.is_set_to.default] = lambda _, a, b: a.shape == b.shape and a.stride() == b.stride()
    traffic = Traffic(rules)

    def launch(kernel, grid, *args, **options) -> None:
        tensors = {n: a for n, a in zip(kernel.arg_names, args, strict=False) if isinstance(a, Tensor)}
        moved, kept = triton_bytes(kernel, tensors), TritonLaunch(kernel, grid, args, options)
        traffic.add(kernel.__name__, moved, launch=kept, of=largest_shape(tensors))

    with ExitStack() as stack:
        # Meta tensors have no kernels of their own, so no implementation offers itself for them.
        stack.enter_context(mock.patch.object(dispatch, "unavailable_reason", lambda impl, device: None))
        for module in MODULES:
            stack.enter_context(mock.patch.object(module, "launch", launch))
        if impl != "triton":
            stack.enter_context(mock.patch.object(sign_bits, "has_gpu_kernels", lambda t: True))
        if impl == "auto":
            _as_on_an_h100(stack)
        stack.enter_context(dispatch.use_impl("native" if impl == "auto" else impl))
        yield stack.enter_context(traffic)
