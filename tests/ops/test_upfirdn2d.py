"""upfirdn2d beyond the matrix: published numbers, adjoints, any order, vmap, filters in odd layouts, its helpers."""

import pytest
import torch

from pggan_fast import _native, ops
from pggan_fast.ops.dispatch import unavailable_reason
from tests.ops import stylegan_golden as golden
from tests.ops.implementations import IMPLEMENTATIONS
from tests.tolerances import EXACT, GRADCHECK

NATIVE = pytest.mark.skipif(not _native.cpu_available, reason=_native.cpu_reason)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def binomial() -> torch.Tensor:
    """[4, 4], an outer product exactly."""
    return ops.setup_filter([1, 3, 3, 1])


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", golden.cases("upfirdn2d"), ids=str)
def test_golden(implementation, case, dtype, layout):
    function = implementation.function("upfirdn2d")
    golden.check(case, lambda x, f=None, **k: function(x, f, **k), dtype, fp32=("f",), format=FORMATS[layout])


@pytest.mark.parametrize("impl", [i for i in ("native", "reference") if unavailable_reason(i, "cpu") is None])
@pytest.mark.parametrize("case", golden.cases("filter2d", "upsample2d", "downsample2d"), ids=str)
def test_golden_helpers(case, impl):
    function = getattr(ops, case.op)
    with ops.use_impl(impl):
        golden.check(case, lambda x, f=None, **k: function(x, f, **k), torch.float64, fp32=("f",))


@pytest.mark.parametrize("case", golden.cases("setup_filter"), ids=str)
def test_golden_setup_filter(case):
    kwargs = dict(case.kwargs)
    f = ops.setup_filter(kwargs.pop("f"), **kwargs)
    expected = golden.array(f"{case.name}/out")
    assert f.dtype == torch.float32 and f.shape == expected.shape
    torch.testing.assert_close(f, expected, rtol=3e-7, atol=0)  # theirs divides in place, in another order


def test_setup_filter_leaves_its_argument_alone():
    given = torch.tensor([1.0, 2.0, 1.0])
    ops.setup_filter(given, separable=True)
    assert given.tolist() == [1, 2, 1]


@NATIVE
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("size", [(5, 6), (40, 33)], ids=str)
def test_a_product_gives_what_its_dense_matrix_does(size, layout):
    """A filter that is a product takes one pass along each axis; a perturbed one does not."""
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=FORMATS[layout])
    product, nearly = binomial().double(), binomial().double()
    nearly[1, 2] += 1e-9
    for f in (product, nearly):
        for options in (dict(up=2, padding=(2, 1, 2, 1)), dict(down=2, padding=1), dict(padding=(2, 1, 2, 1))):
            expected = ops.upfirdn2d(x, f, **options, impl="reference")
            torch.testing.assert_close(ops.upfirdn2d(x, f, **options, impl="native"), expected, **EXACT)


@NATIVE
def test_the_third_derivative_exists():
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)

    def cubed(x):
        return ops.upfirdn2d(x, binomial(), up=2, padding=(2, 1, 2, 1), impl="native") ** 4

    def first(x):
        return torch.autograd.grad(cubed(x).sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(first, x, fast_mode=True, **GRADCHECK)


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("call", ["public", "op"])
def test_vmap(impl, call):
    if (reason := unavailable_reason(impl, "cpu")) is not None:
        pytest.skip(reason)
    if call == "op" and impl == "reference":
        pytest.skip("the reference is no op")
    f, x = binomial(), torch.randn(3, 4, 2, 5, 6)

    def function(x):
        if call == "op":
            return torch.ops.pggan_fast.upfirdn2d(x, f, 2, 2, 1, 1, 2, 1, 2, 1)
        return ops.upfirdn2d(x, f, up=2, padding=(2, 1, 2, 1), impl=impl)

    expected = torch.stack([function(t) for t in x])
    torch.testing.assert_close(torch.vmap(function)(x), expected)
    torch.testing.assert_close(torch.vmap(function, in_dims=1)(x.transpose(0, 1)), expected)


@NATIVE
def test_vmap_of_gradients():
    """Per-sample gradients, as functorch takes them."""
    f, x = binomial(), torch.randn(3, 1, 2, 5, 6)

    def loss(x):
        return ops.upfirdn2d(x, f, down=2, padding=1, impl="native").square().sum()

    expected = torch.stack([torch.func.grad(loss)(t) for t in x])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(x), expected)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(sum(loss(t) for t in leaf), leaf)[0], expected)


@pytest.mark.parametrize("make", [lambda f: f.repeat(2, 2)[:4, :4], lambda f: f.T.contiguous().T, lambda f: f.double()])
def test_filters_in_any_layout_and_dtype(implementation, make):
    random = torch.Generator().manual_seed(3)
    f, x = torch.randn(4, 4, generator=random), torch.randn(1, 2, 6, 7, generator=random)
    function = implementation.function("upfirdn2d")
    torch.testing.assert_close(function(x, make(f), padding=2), function(x, f.contiguous(), padding=2))


@pytest.mark.parametrize("shape", [(70, 90), (70, 1), (1100,)], ids=str)
def test_filters_larger_than_shared_memory(implementation, shape):
    """A kernel on a GPU has room for 1024 taps and for a patch of some thousand pixels."""
    if implementation is IMPLEMENTATIONS.get("triton"):
        pytest.skip("6300 taps take the interpreter minutes; its kernel has no shared memory to run out of")
    random = torch.Generator().manual_seed(3)
    f, x = torch.randn(shape, generator=random, dtype=torch.float64), torch.randn(1, 2, 3, 4, generator=random)
    options = dict(padding=(shape[-1] // 2, shape[-1] - shape[-1] // 2, shape[0] // 2, shape[0] - shape[0] // 2))
    for layout in FORMATS.values():
        image = x.double().contiguous(memory_format=layout)
        expected = ops.upfirdn2d(image, f, **options, impl="reference")
        actual = implementation.function("upfirdn2d")(image, f, **options)
        torch.testing.assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize("shape", [(1, 2, 0, 3), (0, 3, 4, 4), (2, 0, 4, 4)], ids=["pixels", "images", "channels"])
def test_no_values(implementation, shape):
    n, c, h, w = shape
    x = torch.zeros(shape, requires_grad=True)
    y = implementation.function("upfirdn2d")(x, binomial(), padding=4)
    assert y.shape == (n, c, h + 5, w + 5) and not y.any()
    y.sum().backward()
    assert x.grad.shape == x.shape


@NATIVE
@pytest.mark.parametrize("threads_used", [1, 3])
def test_threads_share_the_rows(threads, threads_used):
    torch.set_num_threads(threads_used)
    x = torch.randn(3, 37, 18, 20)
    for layout in FORMATS.values():
        image = x.contiguous(memory_format=layout)
        actual = ops.upfirdn2d(image, binomial(), up=2, padding=(2, 1, 2, 1), impl="native")
        expected = ops.upfirdn2d(image.double(), binomial(), up=2, padding=(2, 1, 2, 1), impl="reference")
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", [(-5, 6, 0, 0), (6, -5, 0, 0), (0, 0, -7, 9), (9, -8, -7, 8)], ids=str)
@pytest.mark.parametrize("factors", [dict(), dict(up=2), dict(down=2)], ids=str)
def test_crops_that_reach_beyond_the_image(implementation, padding, factors):
    """Padding comes first: an image of 4 columns with 6 zeros behind it can lose 5 of them before."""
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    x0, x1, y0, y1 = padding
    up = factors.get("up", 1)
    wide = torch.zeros(2, 3, 4 * up + 40, 4 * up + 40, dtype=torch.float64)
    wide[..., 20 : 20 + 4 * up : up, 20 : 20 + 4 * up : up] = x.detach()
    cropped = wide[..., 20 - y0 : 20 + 4 * up + y1, 20 - x0 : 20 + 4 * up + x1]
    f = torch.tensor([1.0, 2.0])
    y = implementation.function("upfirdn2d")(x, f, padding=padding, **factors)
    expected = ops.upfirdn2d(cropped, f, down=factors.get("down", 1), impl="reference")
    torch.testing.assert_close(y, expected, **EXACT)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.shape == x.shape
