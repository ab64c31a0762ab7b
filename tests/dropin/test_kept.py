"""Code around a model may write over its tensors before backward, where it may with the original: what autograd keeps.

An optimizer's step, a new batch in the old one's memory or a moving average, between a forward and its backward.
"""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pggan_fast import accelerate, explain
from pggan_fast.dropin import blur, identify
from pggan_fast.ops import small
from tests.dropin import nvidia_like, rosinality_like
from tests.dropin.helpers import EXACT, always_fuse


@pytest.fixture(autouse=True)
def no_thresholds(monkeypatch):
    always_fuse(monkeypatch)
    monkeypatch.setattr(blur, "CPU_FROM", 0)
    monkeypatch.setattr(small, "RESCALED", 0)
    monkeypatch.setattr(identify, "MODULATED_FROM", 0)


N, C, SIZE = 4, 4, 6


class Layer(nn.Module):
    """A function of images, styles [N, C] and this module's tensors, each in an order of magnitude of 1."""

    def __init__(self, function: Callable, returns_input: bool):
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def random(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        self.function, self.returns_input = function, returns_input
        self.weight, self.point = nn.Parameter(random(C, C, 3, 3)), nn.Parameter(random(C, C, 1, 1))
        self.bias, self.gain = nn.Parameter(random(C)), nn.Parameter(random(C).square() + 0.5)
        self.mean, self.var = nn.Buffer(random(C)), nn.Buffer(random(C).square() + 0.5)
        self.filter = nn.Buffer(random(4, 4))

    def forward(self, x: Tensor, styles: Tensor) -> Tensor | tuple[Tensor, ...]:
        if not self.returns_input:
            return self.function(self, x, styles)
        x, styles = x * 1.5, styles * 1.5  # what the model made itself may leave it, too
        return self.function(self, x, styles), x.flatten(1), styles


def conv(m: Layer, x: Tensor, scale: float = 1.0, bias: bool = True) -> Tensor:
    return F.conv2d(x, m.weight if scale == 1 else m.weight * scale, m.bias if bias else None, padding=1)


def up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def batch_norm(m: Layer, y: Tensor, affine: bool = True) -> Tensor:
    return F.batch_norm(y, m.mean, m.var, *((m.gain, m.bias) if affine else ()))


def centred_deviation(x: Tensor) -> Tensor:
    y = x - x.mean(0)
    return deviation(x, y.square().mean(0))


def deviation(x: Tensor, variance: Tensor) -> Tensor:
    y = (variance + 1e-8).sqrt().mean().reshape(1, 1, 1, 1)
    return torch.cat([x, y.expand(x.shape[0], 1, *x.shape[2:])], 1)


def modulated(m: Layer, x: Tensor, s: Tensor, scale: float = 1.0, transposed: bool = False) -> Tensor:
    (n, c), k = x.shape[:2], m.weight.shape[-1]
    weight = m.weight if scale == 1 else scale * m.weight
    weight = weight[None] * s.view(n, 1, c, 1, 1)
    weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
    weight = weight.transpose(1, 2) if transposed else weight
    function = F.conv_transpose2d if transposed else F.conv2d
    y = function(x.reshape(1, n * c, *x.shape[2:]), weight.reshape(n * c, c, k, k), padding=1, groups=n)
    return y.view(n, c, *y.shape[2:])


def blurred(m: Layer, x: Tensor) -> Tensor:
    return F.conv2d(x, m.filter.expand(C, 1, 4, 4), padding=2, groups=C)


LAYERS: dict[str, tuple[Callable, str]] = {
    "equalized": (lambda m, x, s: norm(conv(m, x, 0.5)), "equalized conv + pixel norm"),
    "equalized up": (lambda m, x, s: conv(m, up(x), 0.5), "nearest upsampling + equalized conv"),
    "scaled image": (lambda m, x, s: norm(conv(m, x * 0.5)), "equalized conv + pixel norm"),
    "scaled image up": (lambda m, x, s: conv(m, up(x * 0.5)), "nearest upsampling + equalized conv"),
    "scaled output": (lambda m, x, s: norm(conv(m, x, bias=False) * 0.5), "conv + gain + pixel norm"),
    "up": (lambda m, x, s: conv(m, up(x)), "nearest upsampling + conv"),
    "up, read twice": (
        lambda m, x, s: torch.cat([conv(m, y := up(x)), F.conv2d(y, m.point)], 1),
        "nearest upsampling + conv",
    ),
    "up, activated": (lambda m, x, s: F.leaky_relu(conv(m, up(x)), 0.2), "nearest upsampling + conv + lrelu"),
    "up, point": (lambda m, x, s: F.conv2d(up(x), m.point * 0.5), "nearest upsampling + equalized conv"),
    "down": (lambda m, x, s: F.avg_pool2d(conv(m, x, 0.5), 2), "equalized conv + 2x2 mean"),
    "down, relu": (lambda m, x, s: F.relu(F.avg_pool2d(conv(m, x), 2)), "conv + 2x2 mean + relu"),
    "normalized": (lambda m, x, s: norm(F.leaky_relu(conv(m, x), 0.2)), "conv + lrelu + pixel norm"),
    "gain": (lambda m, x, s: norm(F.relu(conv(m, x, bias=False) * 2)), "conv + gain + relu + pixel norm"),
    "lrelu": (lambda m, x, s: F.leaky_relu(conv(m, x, 0.5), 0.2) * 1, ""),
    "relu": (lambda m, x, s: F.relu(conv(m, x)), "relu in place"),
    "added bias": (
        lambda m, x, s: F.leaky_relu(conv(m, x, bias=False) + m.bias.view(1, -1, 1, 1), 0.2),
        "conv + bias + lrelu",
    ),
    "bias": (lambda m, x, s: F.leaky_relu(x + m.bias.view(1, -1, 1, 1), 0.2), "bias + lrelu"),
    "bias, gain": (lambda m, x, s: F.relu(x + m.bias.view(1, -1, 1, 1)) * 2, "bias + relu + gain"),
    "norm": (lambda m, x, s: norm(x), "pixel norm"),
    "divided norm": (lambda m, x, s: x / (x.pow(2).mean(1, keepdim=True) + 1e-8).sqrt(), "pixel norm"),
    "batch norm": (lambda m, x, s: batch_norm(m, conv(m, x)), "batch norm into conv"),
    "batch norm alone": (lambda m, x, s: batch_norm(m, conv(m, x), False), "batch norm into conv"),
    "equalized batch norm": (lambda m, x, s: batch_norm(m, conv(m, x, 0.5)), "batch norm into conv"),
    "batch norm after up": (lambda m, x, s: batch_norm(m, conv(m, up(x))), "nearest upsampling + conv"),
    "instance norm": (lambda m, x, s: F.instance_norm(x), "instance norm"),
    "instance norm with weights": (lambda m, x, s: up(F.instance_norm(x, weight=m.gain, bias=m.bias)), ""),
    "centred deviation": (lambda m, x, s: centred_deviation(x), "minibatch stddev"),
    "deviation": (lambda m, x, s: deviation(x, x.var(0, unbiased=False)), "minibatch stddev"),
    "modulated": (modulated, "modulated conv"),
    "scaled and modulated": (lambda m, x, s: modulated(m, x, s, 0.5), "modulated conv"),
    "transposed and modulated": (lambda m, x, s: modulated(m, x, s, 0.5, True), "modulated conv"),
    "blur": (lambda m, x, s: blurred(m, x), "blur"),
    "blur after up": (
        lambda m, x, s: F.conv2d(up(x), m.filter[:3, :3].expand(C, 1, 3, 3), padding=1, groups=C),
        "nearest upsampling + blur",
    ),
    "rescaled": (lambda m, x, s: F.avg_pool2d(up(up(x)) * s[:, :, None, None], 2), "nearest upsampling"),
    "NVIDIA's upfirdn2d": (lambda m, x, s: nvidia_like.upfirdn2d(x, m.filter, up=2), "upfirdn2d"),
    "NVIDIA's filter2d": (lambda m, x, s: nvidia_like.filter2d(x, m.filter, gain=2), "filter2d"),
    "NVIDIA's bias_act": (lambda m, x, s: nvidia_like.bias_act(x, m.bias, act="lrelu"), "bias_act"),
    "NVIDIA's bias_act, swish": (lambda m, x, s: nvidia_like.bias_act(x, m.bias, act="swish"), "bias_act"),
    "NVIDIA's bias_act, clamped": (lambda m, x, s: nvidia_like.bias_act(x, act="lrelu", clamp=0.3), "bias_act"),
    "NVIDIA's modulation": (
        lambda m, x, s: nvidia_like.modulated_conv2d(x, m.weight, s, None, 2, 1, 1, m.filter),
        "modulated_conv2d",
    ),
    "NVIDIA's bias_act, written over": (
        lambda m, x, s: nvidia_like.bias_act(x, m.bias, act="lrelu").mul_(2),
        "bias_act",
    ),
    "rosinality's activation": (lambda m, x, s: rosinality_like.fused_leaky_relu(x, m.bias), "fused_leaky_relu"),
    "rosinality's upfirdn2d": (lambda m, x, s: rosinality_like.upfirdn2d(x, m.filter, 2, 1, (2, 1)), "upfirdn2d"),
}


def step(t: Tensor) -> None:
    before, t.grad = t.grad, torch.ones_like(t)
    torch.optim.SGD([t], lr=0.1).step()
    t.grad = before


WAYS = {
    "in place": lambda t: t.mul_(1.5),
    "copied": lambda t: t.copy_(t + 1),
    "data": lambda t: t.data.mul_(1.5),
    "an optimizer": step,
}


class Net:
    """A model, its inputs, and the gradients of its output, with something written over before they are computed."""

    def __init__(self, model: nn.Module):
        generator = torch.Generator().manual_seed(2)
        self.model = model
        self.inputs = [
            torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((N, C, SIZE, SIZE), (N, C))
        ]
        self.tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        self.tensors |= {"x": self.inputs[0], "styles": self.inputs[1]}

    def train(self, *names: str) -> None:
        for name, tensor in self.tensors.items():
            tensor.requires_grad_(name in names)

    def gradients(self, target: str, way: str, twice: bool) -> list[Tensor | None] | None:
        """The gradients, or None where torch refuses to compute them."""
        before = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        outputs = self.model(*self.inputs)
        outputs = {f"output {i}": y for i, y in enumerate(outputs if isinstance(outputs, tuple) else (outputs,))}
        leaves = [tensor for tensor in self.tensors.values() if tensor.requires_grad]
        generator = torch.Generator().manual_seed(3)
        direction = torch.randn(outputs["output 0"].shape, generator=generator, dtype=torch.float64)
        loss, found = (outputs["output 0"] * direction).sum(), []
        if twice:
            found = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
            loss = sum(gradient.square().sum() for gradient in found if gradient is not None)
        try:
            with torch.no_grad():
                if target in (written := self.tensors | outputs):
                    WAYS[way](written[target])
            if not getattr(loss, "requires_grad", False):
                return [*found, *(None for _ in leaves)]
            return [*found, *torch.autograd.grad(loss, leaves, allow_unused=True)]
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
            return None
        finally:
            for name, tensor in self.tensors.items():
                tensor.data.copy_(before[name])


def same(actual: list | None, expected: list | None) -> bool:
    if actual is None or expected is None:
        return actual is expected
    return all(
        a is b is None or (a is not None and b is not None and bool((a - b).abs().max() <= EXACT * b.abs().max()))
        for a, b in zip(actual, expected, strict=True)
    )


def trained(used: list[str]) -> Iterator[list[str]]:
    """All, all but the image, and each alone."""
    yield used
    if len(used) > 1:
        yield [name for name in used if name != "x"]
        yield from ([name] for name in used)


@pytest.mark.parametrize("returns_input", [False, True], ids=["", "returns what it reads"])
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_written_over_before_backward(name, returns_input):
    """The same gradients as the original's wherever it allows the writing; where it does not, those or a refusal.

    `data` hides a write from torch: what the original would refuse otherwise makes its gradients wrong, so that they
    are no standard.
    """
    function, what = LAYERS[name]
    model = Layer(function, returns_input).eval()
    fast, plain = Net(accelerate(copy.deepcopy(model), inplace=True)), Net(model)
    plain.train(*plain.tensors.keys() - {"mean", "var", "filter"})
    y = model(*plain.inputs)
    y = y[0] if returns_input else y
    leaves = {n: t for n, t in plain.tensors.items() if t.requires_grad}
    gradients = torch.autograd.grad(y.sum(), list(leaves.values()), allow_unused=True)
    used = [n for n, g in zip(leaves, gradients, strict=True) if g is not None]
    targets = [*(n for n in plain.tensors if n in used or n in ("mean", "var", "filter")), "output 0"]
    targets += ["output 1", "output 2"] * returns_input
    wrong = []
    for names in trained(used):
        for net in (fast, plain):
            net.train(*names)
        for twice in (False, True):
            clean = plain.gradients("", "", twice)
            if not same(fast.gradients("", "", twice), clean):
                wrong.append((names, twice, "unwritten"))
            for target in targets:
                refused = plain.gradients(target, "in place", twice) is None
                for way in list(WAYS)[: 4 if target in leaves else 3]:
                    actual = fast.gradients(target, way, twice)
                    if not (same(actual, clean) or refused and (actual is None or way == "data")):
                        wrong.append((names, twice, target, way, "other gradients" if actual else "refused"))
    assert not wrong, "\n".join(map(str, wrong))
    assert returns_input or what in " ".join(row.what for row in explain(fast.model).replaced)
