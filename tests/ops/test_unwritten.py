"""That poisoned memory shows what a kernel leaves unwritten: the tests on values stand on it."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pggan_fast import _native, ops, use_impl
from tests.ops.samples import DTYPES


@pytest.fixture
def forgetful_upsample():
    """A kernel of upsample2x that writes all but one element."""

    def kernel(x, *options):
        y = x.new_empty(x.shape[0], x.shape[1], 2 * x.shape[2], 2 * x.shape[3])
        y.view(-1)[:-1] = 1.0
        return y

    library = torch.library.Library("pggan_fast", "IMPL")
    library.impl("upsample2x", kernel, "CPU", allow_override=True)
    yield
    library._destroy()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_unwritten_element_is_nan(poisoned_memory, forgetful_upsample, dtype):
    y = torch.ops.pggan_fast.upsample2x(torch.zeros(2, 3, 5, 7, dtype=dtype))
    assert y.isnan().sum() == 1
    assert y.view(-1)[-1].isnan()


def test_the_allocator_itself_gives_nan(poisoned_memory):
    """So does memory that is not filled by torch.empty: here, since the mode that makes torch fill it is off."""
    torch.use_deterministic_algorithms(False)
    for size in (3, 1000, 1 << 20):
        assert torch.empty(size).isnan().all()
        assert (torch.empty(size, dtype=torch.float64) > 1e300).all()
        # In half precision every other value is a NaN.
        assert torch.empty(size, dtype=torch.bfloat16)[1::2].isnan().all()
        assert torch.empty(size, dtype=torch.float16)[1::2].isnan().all()


def test_memory_is_as_usual_elsewhere():
    assert not torch.are_deterministic_algorithms_enabled()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.empty(1000)
    assert not any(e.name == "aten::fill_" for e in seen.events())


CALLS = {
    "bias_act": lambda x: ops.bias_act(x, pixel_norm=True),
    "upsample2x": ops.upsample2x,
    "downsample2x": ops.downsample2x,
    "fade_reals": lambda x: ops.fade_reals(x, 0.5),
    "minibatch_stddev": ops.minibatch_stddev,
}


@pytest.mark.skipif(not _native.cpu_available, reason=_native.cpu_reason)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CALLS)
def test_native_kernels_take_the_allocators_memory(name, layout):
    """The profiler, which the allocator reports to, sees an op allocate at least the bytes of its result."""
    x = torch.randn(4, 6, 8, 8).contiguous(memory_format=layout)
    with use_impl("native"), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        y = CALLS[name](x)
    (op,) = (e for e in seen.events() if e.name == f"pggan_fast::{name}")
    assert op.cpu_memory_usage >= y.nbytes
