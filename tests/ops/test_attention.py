"""attention: the plain formula and its derivatives, block by block, and the memory that this is for."""

import subprocess
import sys

import pytest
import torch
from torch.func import hessian, jacfwd, jacrev
from torch.utils._python_dispatch import TorchDispatchMode

from pggan_fast import SelfAttention2d, ops, reference
from tests.tolerances import EXACT, GRADCHECK

module = sys.modules["pggan_fast.ops.attention"]  # the package has the function under this name


@pytest.fixture(autouse=True)
def in_blocks(monkeypatch):
    """However few scores there are."""
    monkeypatch.setattr(module, "FEW", 0)


SHAPES = {"square": (2, 12, 12, 3, 4), "other keys": (3, 7, 10, 2, 5), "one query": (2, 1, 4, 3, 1)}


def sample(name="square", **to):
    n, p, m, d, e = SHAPES[name]
    random = torch.Generator().manual_seed(0)
    tensors = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((n, p, d), (n, m, d), (n, m, e)))
    return [t.to(**to).requires_grad_() for t in tensors]


def derivatives(function, tensors):
    y = function(*tensors)
    first = torch.autograd.grad(y.sin().sum(), tensors, create_graph=True)
    return y, *first, *torch.autograd.grad(sum(g.cos().sum() for g in first), tensors)


# Scores of all pairs at once; of a part of the samples; of part of the queries; of one query.
@pytest.mark.parametrize("block", [1 << 20, 150, 30, 1])
@pytest.mark.parametrize("name", SHAPES)
def test_the_plain_formula_and_its_derivatives_in_blocks(name, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    tensors = sample(name)
    expected = derivatives(lambda q, k, v: reference.attention(q, k, v, scale=q.shape[2] ** -0.5), tensors)
    torch.testing.assert_close(derivatives(ops.attention, tensors), expected, **EXACT)


def test_torchs_own_attention():
    q, k, v = sample()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)
    torch.testing.assert_close(ops.attention(q, k, v, scale=0.3), expected, **EXACT)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("block", [1 << 20, 24])
def test_gradients(check, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    assert check(ops.attention, [t.detach()[:, :4].clone().requires_grad_() for t in sample()], **GRADCHECK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(dtype):
    tensors = sample(dtype=dtype)
    found = derivatives(ops.attention, tensors)
    plain = derivatives(lambda q, k, v: reference.attention(q, k, v, scale=q.shape[2] ** -0.5), tensors)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    exact = derivatives(lambda q, k, v: reference.attention(q, k, v, scale=q.shape[2] ** -0.5), wide)
    for ours, theirs, true in zip(found, plain, exact, strict=True):
        assert ours.dtype == dtype
        errors = [(t.double() - true).square().mean().sqrt() for t in (ours, theirs)]
        # At most twice plain PyTorch's error, and one rounding of the result.
        assert errors[0] <= 2 * errors[1] + torch.finfo(dtype).eps * true.square().mean().sqrt()


def test_large_scores_do_not_overflow():
    q, k, v = sample(dtype=torch.float32)
    y = ops.attention(1e3 * q, 1e3 * k, v)
    y.sum().backward()
    assert y.isfinite().all() and all(t.grad.isfinite().all() for t in (q, k, v))


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that any operator returns, and in all that are returned and still held."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, torch.Tensor):
                self.largest = max(self.largest, t.numel())
        return result


def penalty(layer, x):
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()


def test_nothing_as_large_as_all_pairs_is_made_or_kept():
    """48 x 48 pixels have 5.3 million pairs, and the plain formula makes many matrices of so many."""
    torch.manual_seed(0)
    layer, x = SelfAttention2d(8), torch.randn(1, 8, 48, 48)
    layer.gamma.data.fill_(1)
    pairs, kept = (48 * 48) ** 2, []

    def count(t):
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t), Largest() as made:
        penalty(layer, x)
    assert max(kept) <= x.numel() and sum(kept) < pairs / 10
    assert made.largest <= module.BLOCK
    with ops.use_impl("reference"), Largest() as plain:
        penalty(layer, x)
    assert plain.largest >= pairs


def test_peak_memory_in_a_process_of_its_own(tmp_path):
    """A penalty at 96 px, where one matrix of all pairs is 340 MB: the peak rises by less than that."""
    script = """
import resource, torch
from pggan_fast import SelfAttention2d
torch.set_num_threads(1)
layer = SelfAttention2d(8)
def penalty(side):
    x = torch.randn(1, 8, side, side, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
layer.gamma.data.fill_(1)
penalty(8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
penalty(96)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 96**4 * 4 / 1024 / 2


def test_few_scores_are_kept(monkeypatch):
    """Which is quicker, and changes no number."""
    monkeypatch.undo()
    tensors = sample()
    y = ops.attention(*tensors)
    assert "Attention" not in y.grad_fn.name()
    monkeypatch.setattr(module, "FEW", 143)
    blocked = ops.attention(*tensors)
    assert "Attention" in blocked.grad_fn.name()
    torch.testing.assert_close(y, blocked, **EXACT)


def test_a_third_derivative_is_refused():
    q, k, v = sample()
    first = torch.autograd.grad(ops.attention(q, k, v).sum(), q, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), q, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="not of third"):
        torch.autograd.grad(second.sum(), q)


@pytest.mark.parametrize(
    "differential",
    [hessian, lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacfwd(f))],
    ids=["forward over reverse", "forward over forward", "reverse over forward"],
)
def test_transforms(differential):
    q, k, v = (t.detach()[:1, :6] for t in sample())

    def plain(q, k, v):
        return reference.attention(q, k, v, scale=q.shape[2] ** -0.5)

    found, expected = (differential(lambda q, f=f: f(q, k, v).sin().sum())(q) for f in (ops.attention, plain))
    torch.testing.assert_close(found, expected, **EXACT)


def test_empty_batch():
    q, k, v = (t[:0] for t in sample())
    y = ops.attention(q, k, v)
    y.sum().backward()
    assert y.shape == (0, 12, 4)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 4), (2, 3, 5), (2, 3, 4)), r"q \[2, 3, 4\], k \[2, 3, 5\], v \[2, 3, 4\] must be \[N, P, d\]"),
        (((2, 3, 4), (2, 5, 4), (2, 3, 4)), r"must be \[N, P, d\], \[N, M, d\] and \[N, M, e\]"),
        (((3, 4), (3, 4), (3, 4)), r"must be \[N, P, d\]"),
        (((1, 3, 4), (2, 3, 4), (2, 3, 4)), "must have one batch"),
        (((2, 3, 4), (2, 0, 4), (2, 0, 4)), "at least one key"),
    ],
)
def test_errors(shapes, message):
    with pytest.raises(ValueError, match=f"^attention: .*{message}") as caught:
        ops.attention(*(torch.zeros(shape) for shape in shapes))
    assert "\n" not in str(caught.value)
