"""MomentumFreeAdam against torch's own Adam with beta1 = 0: the same bits, with half the state."""

import pytest
import torch

from pggan_fast.training.adam import Adam, MomentumFreeAdam

SHAPES = [(3,), (), (2, 3, 3, 3), (5, 2, 4, 4), (70_001,)]


def parameters():
    random = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=random) for shape in SHAPES]
    made[2] = made[2].contiguous(memory_format=torch.channels_last)
    return [torch.nn.Parameter(p) for p in made]


def steps(optimizer, parameters, count, first=0):
    """Give every parameter but the second a gradient, and steps; the third step is skipped."""
    for index in range(first, first + count):
        random = torch.Generator().manual_seed(index)
        for number, p in enumerate(parameters):
            gradient = torch.randn(p.shape, generator=random) * 10.0 ** (index - 4)
            p.grad = None if number == 1 else torch.empty_like(p).copy_(gradient)
        gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
        found = torch.tensor(float(index == 2))
        if isinstance(optimizer, MomentumFreeAdam):
            optimizer.step(skipped=found)
        else:
            optimizer.found_inf, optimizer.grad_scale = found, None
            optimizer.step()
        for p, gradient in zip(parameters, gradients, strict=True):
            assert gradient is None or torch.equal(p.grad, gradient)


def torchs(parameters):
    return torch.optim.Adam(parameters, lr=torch.tensor(1e-3), betas=(0.0, 0.99), eps=1e-8, fused=True)


def assert_same(ours, our_optimizer, theirs, their_optimizer):
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        state, expected = our_optimizer.state.get(a, {}), their_optimizer.state.get(b, {})
        assert state.keys() == expected.keys() - {"exp_avg"}
        assert all(torch.equal(state[name], expected[name]) for name in state)


def test_steps_are_torchs_bit_for_bit():
    ours, theirs = parameters(), parameters()
    optimizer, expected = MomentumFreeAdam(ours, torch.tensor(1e-3)), torchs(theirs)
    steps(optimizer, ours, 6)
    steps(expected, theirs, 6)
    assert_same(ours, optimizer, theirs, expected)
    assert not torch.equal(ours[0], parameters()[0]) and torch.equal(ours[1], parameters()[1])
    assert optimizer.state[ours[0]]["step"] == 5 and ours[1] not in optimizer.state


def test_a_rate_on_the_device_is_read_at_each_step():
    ours, theirs = parameters(), parameters()
    rate = torch.tensor(1e-3)
    optimizer, expected = MomentumFreeAdam(ours, rate), torchs(theirs)
    for optimizer_, tensors in ((optimizer, ours), (expected, theirs)):
        steps(optimizer_, tensors, 2)
        optimizer_.param_groups[0]["lr"].fill_(5e-2)
        steps(optimizer_, tensors, 2, first=2)
    assert rate == torch.tensor(5e-2)
    assert_same(ours, optimizer, theirs, expected)


@pytest.mark.parametrize("source", [torchs, lambda p: MomentumFreeAdam(p, torch.tensor(1e-3))], ids=["torch", "own"])
def test_continues_from_a_loaded_state(source):
    before, ours, theirs = parameters(), parameters(), parameters()
    first, expected = source(before), torchs(theirs)
    steps(first, before, 4)
    steps(expected, theirs, 8)
    with torch.no_grad():
        for p, value in zip(ours, before, strict=True):
            p.copy_(value)
    optimizer = MomentumFreeAdam(ours, torch.tensor(1e-3))
    optimizer.load_state_dict(first.state_dict())
    steps(optimizer, ours, 4, first=4)
    assert_same(ours, optimizer, theirs, expected)


@pytest.mark.parametrize("skipping", [True, False])
@pytest.mark.parametrize("beta1", [0.0, 0.5])
@pytest.mark.parametrize("setting", ["number", "tensor"])
def test_momentum_and_settings_on_the_device(beta1, setting, skipping):
    """beta1 by torch's fused kernel bit for bit; a beta2 on the device by the composite, to rounding."""
    ours, theirs = parameters(), parameters()
    beta2 = 0.95 if setting == "number" else torch.tensor(0.95)
    optimizer = Adam(ours, torch.tensor(1e-3), beta1=beta1, beta2=beta2, eps=1e-6)
    expected = torch.optim.Adam(theirs, lr=torch.tensor(1e-3), betas=(beta1, 0.95), eps=1e-6, fused=True)
    first = 0 if skipping else 3  # the third step is skipped
    steps(optimizer, ours, 3, first)
    steps(expected, theirs, 3, first)
    if setting == "tensor":
        beta2.fill_(0.9)
        expected.param_groups[0]["betas"] = (beta1, 0.9)
        steps(optimizer, ours, 3, 6)
        steps(expected, theirs, 3, 6)
        for a, b in zip(ours, theirs, strict=True):
            # Six steps of 1e-3 and fp32's rounding of each.
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    else:
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
            kept = expected.state.get(b, {}).keys() - ({"exp_avg"} if beta1 == 0 else set())
            assert optimizer.state.get(a, {}).keys() == kept
    assert optimizer.state[ours[0]]["step"] == expected.state[theirs[0]]["step"]


def test_eps_stands_where_tensorflow_has_it():
    """lr_t = lr * sqrt(1 - beta2^t) / (1 - beta1^t); x -= lr_t * m / (sqrt(v) + eps), from its documentation."""
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    x, m, v = p.detach().clone(), torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    optimizer = Adam([p], torch.tensor(0.25), beta1=0.5, beta2=0.75, eps=0.125, eps_place="uncorrected")
    for t in range(1, 5):
        p.grad = torch.tensor([0.1 * t, -0.3], dtype=torch.float64)
        m, v = 0.5 * m + 0.5 * p.grad, 0.75 * v + 0.25 * p.grad**2
        x = x - 0.25 * (1 - 0.75**t) ** 0.5 / (1 - 0.5**t) * m / (v.sqrt() + 0.125)
        optimizer.step()
    torch.testing.assert_close(p.detach(), x, rtol=1e-6, atol=0)  # the rate is fp32
    with pytest.raises(ValueError, match="eps_place is 'here', allowed: corrected, uncorrected"):
        Adam([p], torch.tensor(0.25), eps_place="here")


def test_another_beta1_is_refused():
    other = torch.optim.Adam(parameters(), lr=torch.tensor(1e-3), betas=(0.9, 0.99), fused=True)
    with pytest.raises(ValueError, match=r"betas are \(0.9, 0.99\), the first must be 0"):
        MomentumFreeAdam(parameters(), torch.tensor(1e-3)).load_state_dict(other.state_dict())


def test_steps_are_counted_in_fp32_whatever_the_default():
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    optimizer = MomentumFreeAdam([p], torch.tensor(1e-3))
    torch.set_default_dtype(torch.float64)
    try:
        optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert optimizer.state[p]["step"].dtype == torch.float32
