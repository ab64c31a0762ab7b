"""Every op of csrc/cuda launches on its tensors' device, and as many blocks as the GPU runs at once."""

import pytest
import torch

from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.few import FEW, Few
from tests.ops.op_calls import CALLS, Make

# One of each op: which kernel is launched on the device does not count.
FOR_FEW = list({few.call.op: few for few in FEW}.values())


def bits(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def half(*shape: int) -> torch.Tensor:
    t = torch.linspace(-1, 1, torch.Size(shape).numel()).view(shape).bfloat16()
    return t.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else t


@pytest.fixture
def harness():
    controls = build.load()
    controls.take_launches()
    yield controls
    controls.set_device(0)
    controls.set_resident_blocks(4)


@pytest.mark.parametrize("call", [c for c in CALLS if c.has_gpu_kernel] + FOR_FEW, ids=str)
def test_an_op_sets_its_tensors_device_in_its_own_runtime(harness, call):
    """Torch's runtime is another library: what it holds for current need not be so in the module's own."""
    if isinstance(call, Few):
        name, arguments = call.call.op, call.arguments()
    else:
        name, arguments = call.op, call.arguments(Make(torch.float32))
    harness.set_device(1)
    getattr(torch.ops.pggan_fast_cuda_on_cpu, name)(*arguments)
    assert harness.take_launches()


OPS = {
    "bias_act": lambda t: (t(4, 64, 32, 32), t(64), 0.7, "lrelu", 0.2, 1.3, True, 1e-8),
    "bias_act_backward": lambda t: (
        t(4, 64, 32, 32),
        None,
        t(4, 64, 32, 32),
        None,
        0.7,
        "lrelu",
        0.2,
        1.3,
        False,
        True,
    ),
    "bias_act_with_sign_bits_": lambda t: (t(4, 64, 32, 32).clone(), t(64), 0.7, 0.2, 1.3),
    "conv_rgb_weight_gradient": lambda t: (t(4, 16, 64, 64), t(4, 3, 64, 64), bits(4, 64, 64, 1), 0.7, 0.2, 1.3),
    "conv_halo_weight_gradient": lambda t: (t(2, 16, 48, 48), t(2, 16, 48, 48), None, 1, 0.7, 1.3, 0.2),
}


@pytest.mark.parametrize("op", OPS)
def test_blocks_are_as_many_as_run_at_once(harness, op):
    """One wave, whatever a multiprocessor holds, with the same sums."""
    function, results = getattr(torch.ops.pggan_fast_cuda_on_cpu, op), []
    for resident in (1, 2, 5):
        harness.set_resident_blocks(resident)
        found = function(*OPS[op](half))
        results.append(found if isinstance(found, tuple) else (found,))
        assert harness.take_launches()[0].threads == 256 * resident
    for others in results[1:]:
        for a, b in zip(results[0], others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
