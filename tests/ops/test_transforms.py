"""torch.func over every op: against the same transform of the reference, alone, nested, and compiled."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import pggan_fast
from pggan_fast import ops
from pggan_fast.ops.dispatch import unavailable_reason

if (reason := unavailable_reason("native", "cpu")) is not None:
    pytest.skip(reason, allow_module_level=True)


def _tensors(*shapes: tuple) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(8)
    return tuple(torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)


FU, FD = torch.tensor([1.0, 3, 2]) / 6, torch.tensor([1.0, 2, 3, 1]) / 7
IMAGE, WEIGHT = (4, 3, 4, 4), (4, 3, 3, 3)
# (the op of its tensors, the tensors' shapes)
CALLS: dict[str, tuple[Callable[..., Tensor], tuple]] = {
    "bias_act": (lambda x, b, **i: ops.bias_act(x, b, scale=0.7, gain=1.3, **i), (IMAGE, (3,))),
    "bias_act_linear": (lambda x, b, **i: ops.bias_act(x, b, act="linear", gain=1.3, **i), (IMAGE, (3,))),
    "bias_act_norm": (lambda x, b, **i: ops.bias_act(x, b, scale=0.7, pixel_norm=True, **i), (IMAGE, (3,))),
    "bias_act_dense": (lambda x, **i: ops.bias_act(x, **i), ((3, 5),)),
    "pixel_norm": (lambda x, **i: ops.pixel_norm(x, **i), (IMAGE,)),
    "conv": (lambda x, w, b, **i: ops.equalized_conv2d(x, w, b, act="lrelu", **i), (IMAGE, WEIGHT, (4,))),
    "conv_up": (
        lambda x, w, b, **i: ops.equalized_conv2d(x, w, b, up=2, act="lrelu", pixel_norm=True, **i),
        (IMAGE, WEIGHT, (4,)),
    ),
    "conv_down": (lambda x, w, b, **i: ops.equalized_conv2d(x, w, b, down=2, **i), (IMAGE, WEIGHT, (4,))),
    "linear": (lambda x, w, b, **i: ops.equalized_linear(x, w, b, act="lrelu", **i), ((4, 5), (3, 5), (3,))),
    "upsample2x": (lambda x, **i: ops.upsample2x(x, **i), (IMAGE,)),
    "downsample2x": (lambda x, **i: ops.downsample2x(x, **i), ((2, 3, 5, 4),)),
    "upfirdn2d": (
        lambda x, **i: ops.upfirdn2d(x, torch.ones(4, 3) / 12, up=2, padding=(2, 1, 2, 1), **i),
        ((2, 3, 3, 4),),
    ),
    "filtered_lrelu": (
        lambda x, b, **i: ops.filtered_lrelu(x, FU, FD, b, up=2, down=2, padding=3, clamp=0.9, **i),
        ((2, 3, 3, 4), (3,)),
    ),
    "fade_in": (lambda low, high, **i: ops.fade_in(low, high, 0.3, **i), ((2, 3, 2, 2), (2, 3, 4, 4))),
    "fade_reals": (lambda x, **i: ops.fade_reals(x, 0.3, **i), (IMAGE,)),
    "stddev": (lambda x, **i: ops.minibatch_stddev(x, eps=0.1, **i), ((4, 4, 2, 2),)),
    "stddev_strided": (lambda x, **i: ops.minibatch_stddev(x, 2, 2, 0.1, **i), ((4, 4, 2, 2),)),
    "stddev_consecutive": (
        lambda x, **i: ops.minibatch_stddev(x, 2, 1, 0.1, grouping="consecutive", correction=1, **i),
        ((4, 4, 2, 2),),
    ),
}


def _loss(function: Callable) -> Callable:
    """A number that depends on every output differently and not linearly."""

    def loss(*tensors):
        y = function(*tensors)
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view(y.shape)
        return (y * weights).square().sum()

    return loss


def _every(tensors: tuple) -> tuple:
    return tuple(range(len(tensors)))


def _stacked(tensors: tuple) -> tuple:
    return tuple(torch.stack([t, 0.5 - t, 2 * t]) for t in tensors)


TRANSFORMS = {
    "grad": lambda f, t: grad(_loss(f), _every(t))(*t),
    "vmap": lambda f, t: vmap(f)(*_stacked(t)),
    "vmap_first": lambda f, t: vmap(f, (0, *[None] * (len(t) - 1)))(_stacked(t)[0], *t[1:]),
    "vmap_inner": lambda f, t: vmap(f, (1, *[None] * (len(t) - 1)), 1)(_stacked(t)[0].transpose(0, 1), *t[1:]),
    "vmap_last": lambda f, t: vmap(f, (*[None] * (len(t) - 1), 0))(*t[:-1], _stacked(t)[-1]),
    "jvp": lambda f, t: jvp(f, t, tuple(x.cos() for x in t)),
    "jvp_first": lambda f, t: jvp(lambda x: f(x, *t[1:]), t[:1], (t[0].cos(),)),
    "jacrev": lambda f, t: jacrev(f)(*t),
    "jacfwd": lambda f, t: jacfwd(f)(*t),
    "hessian": lambda f, t: hessian(_loss(f))(*t),
    "reverse_over_reverse": lambda f, t: jacrev(jacrev(_loss(f)))(*t),
    "reverse_over_forward": lambda f, t: jacrev(jacfwd(_loss(f)))(*t),
    "forward_over_forward": lambda f, t: jacfwd(jacfwd(_loss(f)))(*t),
    "per_sample_grad": lambda f, t: vmap(grad(_loss(f), _every(t)))(*_stacked(t)),
    "per_sample_grad_of_shared": lambda f, t: vmap(grad(_loss(f), len(t) - 1), (0, *[None] * (len(t) - 1)))(
        _stacked(t)[0], *t[1:]
    ),
    "grad_of_vmap": lambda f, t: grad(_loss(vmap(f)))(*_stacked(t)),
    "vmap_of_vmap": lambda f, t: vmap(vmap(f))(*_stacked(_stacked(t))),
    "penalty": lambda f, t: grad(lambda *t: grad(_loss(f))(*t).square().sum(), _every(t))(*t),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("call", CALLS)
def test_transform(call, transform):
    function, shapes = CALLS[call]
    tensors = _tensors(*shapes)
    actual = TRANSFORMS[transform](lambda *t: function(*t, impl="native"), tensors)
    expected = TRANSFORMS[transform](lambda *t: function(*t, impl="reference"), tensors)
    # Both in fp64, by formulas of some dozens of operations.
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "jacrev", "penalty"])
def test_alpha(transform):
    """The 0-d fp32 tensor, differentiated and batched too."""
    low, high = (t.float() for t in _tensors((2, 3, 2, 2), (2, 3, 4, 4)))
    for function, tensors in (
        (lambda a, low, high, **i: ops.fade_in(low, high, a, **i), (low, high)),
        (lambda a, x, **i: ops.fade_reals(x, a, **i), (high,)),
    ):
        actual, expected = (
            TRANSFORMS[transform](lambda *t, i=impl, f=function: f(*t, impl=i), (torch.tensor(0.3), *tensors))
            for impl in ("native", "reference")
        )
        # Sums of some hundred fp32 products.
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("call", CALLS)
def test_forward_mode_without_torch_func(call):
    function, shapes = CALLS[call]
    tensors = _tensors(*shapes)
    results = []
    for impl in ("native", "reference"):
        with torch.autograd.forward_ad.dual_level():
            duals = [torch.autograd.forward_ad.make_dual(t, t.cos()) for t in tensors]
            results.append(torch.autograd.forward_ad.unpack_dual(function(*duals, impl=impl)))
    torch.testing.assert_close(results[0].tangent, results[1].tangent, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(results[0].primal, results[1].primal, rtol=1e-9, atol=1e-9)


TORCH_OPS = {
    "bias_act": lambda x: torch.ops.pggan_fast.bias_act(x, pixel_norm=True)[0],
    "equalized_conv2d": lambda x: torch.ops.pggan_fast.equalized_conv2d(x, torch.ones(2, 4, 3, 3).to(x), None, 1)[0],
    "equalized_linear": lambda x: torch.ops.pggan_fast.equalized_linear(x.flatten(1), torch.ones(2, 64).to(x), None)[0],
    "upsample2x": lambda x: torch.ops.pggan_fast.upsample2x(x),
    "downsample2x": lambda x: torch.ops.pggan_fast.downsample2x(x),
    "fade_in": lambda x: torch.ops.pggan_fast.fade_in(x[..., ::2, ::2], x, None, 0.3),
    "fade_reals": lambda x: torch.ops.pggan_fast.fade_reals(x, None, 0.3, x.dtype),
    "minibatch_stddev": lambda x: torch.ops.pggan_fast.minibatch_stddev(x, 2, 1, 0.1, True, 0),
}


@pytest.mark.parametrize("op", TORCH_OPS)
def test_torch_ops(op):
    """Called by their names they take the same transforms; what is right is torch.autograd's answer."""
    function = TORCH_OPS[op]
    (x,) = _tensors((4, 4, 4, 4))
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(_loss(function)(leaf), leaf)
    torch.testing.assert_close(grad(_loss(function))(x), expected)
    batch = torch.stack([x, 2 * x])
    torch.testing.assert_close(vmap(function)(batch), torch.stack([function(t) for t in batch]))
    y, tangent = jvp(_loss(function), (x,), (x.cos(),))
    torch.testing.assert_close(tangent, (expected * x.cos()).sum())


@pytest.mark.parametrize("transform", ["grad", "vmap"])
@pytest.mark.parametrize("call", ["bias_act_norm", "conv", "upsample2x", "stddev"])
def test_compiled(call, transform):
    torch._dynamo.reset()
    function, shapes = CALLS[call]
    tensors = _tensors(*shapes)

    def transformed(*t):
        return TRANSFORMS[transform](lambda *t: function(*t, impl="native"), t)

    compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), transformed(*tensors), rtol=1e-9, atol=1e-9)
    torch._dynamo.reset()


@pytest.mark.parametrize("op", ["bias_act", "minibatch_stddev"])
def test_a_third_order_is_refused(op):
    function = _loss(lambda x: getattr(ops, op)(x))
    first = grad(function)
    second = grad(lambda x: first(x).square().sum())
    with pytest.raises(NotImplementedError, match="of first and second order, not of third"):
        grad(lambda x: second(x).square().sum())(*_tensors((4, 4, 2, 2)))


def test_networks():
    """Per-sample gradients of D's parameters, and an ensemble of Gs."""
    D = pggan_fast.Discriminator(8, fmap_base=32, fmap_max=4, mbstd_group_size=1).double()
    parameters = dict(D.named_parameters())
    (images,) = _tensors((3, 3, 8, 8))

    def score(parameters, image):
        return functional_call(D, parameters, (image[None],))[0].sum()

    per_sample = vmap(grad(score), (None, 0))(parameters, images)
    for index, image in enumerate(images):
        for name, expected in grad(score)(parameters, image).items():
            torch.testing.assert_close(per_sample[name][index], expected)
    G = pggan_fast.Generator(8, fmap_base=32, fmap_max=4).double()
    weights = {name: torch.stack([p, 2 * p]) for name, p in G.state_dict().items()}
    (z,) = _tensors((2, G.latent_dim))
    both = vmap(lambda w: functional_call(G, w, (z,)))(weights)
    for index in (0, 1):
        single = functional_call(G, {name: w[index] for name, w in weights.items()}, (z,))
        torch.testing.assert_close(both[index], single)
