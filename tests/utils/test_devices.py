"""Devices beside CPU and CUDA: none is here, so the CPU takes their place, and the meta device."""

import types

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pggan_fast
from pggan_fast import Discriminator, Generator
from pggan_fast.training import TrainStep
from pggan_fast.training.adam import one_minus_power
from pggan_fast.training.checkpoint import random_state, set_random_state
from pggan_fast.utils import device as devices
from pggan_fast.utils.errors import UserError


class NoFloat64(TorchDispatchMode):
    """A device without fp64: any tensor of it, in or out of an op, is an error."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, out)):
            if isinstance(value, torch.Tensor) and value.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"{func} has fp64")
        return out


def step_of(precision, objective="wgan-gp"):
    torch.manual_seed(0)
    G = Generator(8, fmap_max=8, label_dim=2)
    D = Discriminator(8, fmap_max=8, label_dim=2)
    return TrainStep(G, D, objective=objective, precision=precision)


def trained(step, steps=3):
    torch.manual_seed(1)
    reals, labels = torch.rand(4, 3, 8, 8) * 2 - 1, torch.tensor([0, 1, 1, 0])
    for _ in range(steps):
        scalars = step(reals, labels, alpha=torch.tensor(0.5))
    assert all(value.isfinite().all() for value in scalars.values())
    return step.G.state_dict()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("objective", ["wgan-gp", "hinge"])
def test_a_step_without_float64(monkeypatch, precision, objective):
    """With the reference formulas, as other devices have them; the weights are those of fp64's corrections."""
    with pggan_fast.use_impl("reference"):
        expected = trained(step_of(precision, objective))
        monkeypatch.setattr(devices, "HAVE_FLOAT64", ())
        step = step_of(precision, objective)
        with NoFloat64():
            found = trained(step)
            step.G_ema(torch.randn(2, step.G.latent_dim), torch.tensor([0, 1]))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)  # 3 steps of 1e-3, whose factor is fp32's


def test_float64_is_found():
    with pytest.raises(TypeError, match="has fp64"), NoFloat64():
        torch.ones(2).double()


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.99, 0.999, 0.9999])
def test_adams_correction_without_float64(monkeypatch, beta):
    counts = torch.tensor([1.0, 2.0, 10.0, 1e3, 1e6])
    expected = 1 - float(torch.tensor(beta)) ** counts.double()
    monkeypatch.setattr(devices, "HAVE_FLOAT64", ())
    found = one_minus_power(torch.tensor(beta), counts)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-3 if beta == 0.9999 else 2e-4, atol=0)  # log of fp32


def test_networks_on_the_meta_device():
    """Networks read nothing back from a device, and every result stays there."""
    G, D = Generator(16, fmap_max=8).to("meta"), Discriminator(16, fmap_max=8).to("meta")
    images = G(torch.randn(4, G.latent_dim, device="meta"), resolution=8, alpha=torch.tensor(0.5, device="meta"))
    scores, _ = D(images, alpha=torch.tensor(0.5, device="meta"))
    scores.sum().backward()
    assert images.shape == (4, 3, 8, 8) and images.device.type == scores.device.type == "meta"
    touched = [p for p in G.parameters() if p.grad is not None]
    assert touched and all(p.grad.device.type == "meta" for p in touched)


@pytest.mark.parametrize("name", ["mps", "xpu", "xpu:1", "meta", "abacus", "cuda:99"])
def test_a_device_that_is_not_here_is_one_line(name):
    if torch.get_device_module(name.partition(":")[0]).is_available() if name[:3] in ("mps", "xpu") else False:
        pytest.skip(f"{name} is here")
    with pytest.raises(UserError, match=f"^--device {name}: cannot be used") as error:
        devices.find_device(name)
    assert "\n" not in str(error.value)


def test_the_random_state_of_a_device_is_kept(monkeypatch):
    """Each device's module has its own way; a checkpoint of another device leaves this one's alone."""
    for name, takes in (("xpu", 1), ("mps", 0)):
        states = {"now": torch.tensor([3], dtype=torch.uint8)}

        def get(*device, takes=takes, states=states):
            assert len(device) == takes
            return states["now"]

        def put(state, *device, takes=takes, states=states):
            assert len(device) == takes
            states["now"] = state

        module = types.SimpleNamespace(get_rng_state=get, set_rng_state=put)
        monkeypatch.setattr(torch, "get_device_module", lambda _, module=module: module)
        kept = random_state(torch.device(name))
        states["now"] = torch.tensor([5], dtype=torch.uint8)
        set_random_state(random_state(torch.device("cpu")), torch.device(name))
        assert states["now"] == 5
        set_random_state(kept, torch.device(name))
        assert states["now"] == 3
