"""Networks of other packages, accelerated: outputs, gradients, penalties, state, and what explain says."""

import copy

import pytest
import torch

from pggan_fast import accelerate, explain, restore
from tests.dropin.helpers import (
    EXACT,
    always_fuse,
    assert_as_accurate,
    assert_same,
    double,
    results,
    step_of_adam,
)
from tests.dropin.third_party import THIRD_PARTY, ThirdParty


@pytest.fixture(autouse=True)
def no_thresholds(monkeypatch):
    always_fuse(monkeypatch)


@pytest.fixture
def network(name) -> ThirdParty:
    if (reason := THIRD_PARTY[name].missing()) is not None:
        pytest.skip(reason)
    return THIRD_PARTY[name]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", THIRD_PARTY)
def test_results(network, training):
    model, arguments = network.make()
    model, arguments = model.double().train(training), tuple(map(double, arguments))
    fast = accelerate(copy.deepcopy(model), inplace=True)
    assert_same(results(fast, arguments), results(model, arguments), EXACT)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert_same(fast.state_dict(), model.state_dict(), EXACT)
    what = " ".join(row.what for row in explain(fast).replaced)
    assert what or training or not network.replaced  # batch norms are folded in eval mode alone
    assert not network.fast or "nearest upsampling" in what and "pixel norm" in what


BRIEFLY = [name for name in THIRD_PARTY if name != "progan_conditional_discriminator"]


@pytest.mark.parametrize("name", BRIEFLY)
def test_single_precision(network):
    """It is as near to fp64 as the original: outputs, gradients, a penalty's gradients.

    At the second attempt at the latest: a leaky ReLU whose input is within rounding of 0 may take the other slope.
    """
    for seed in range(2):
        model, arguments = network.make(seed)
        try:
            return assert_as_accurate(accelerate(copy.deepcopy(model), inplace=True), model, arguments)
        except AssertionError:
            if seed:
                raise


@pytest.mark.parametrize("name", BRIEFLY)
def test_a_step_of_adam(network):
    model, arguments = network.make()
    model, arguments = model.double(), tuple(map(double, arguments))
    other = copy.deepcopy(model)
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.0, 0.99)) for net in (other, model)]
    fast = accelerate(other, inplace=True)
    for net, optimizer in zip((fast, model), optimizers, strict=True):
        step_of_adam(net, optimizer, arguments)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert_same(fast.state_dict(), model.state_dict(), EXACT)


@pytest.mark.parametrize("name", ["progan_generator"])
def test_the_models_come_back(network):
    model, arguments = network.make()
    restored = restore(accelerate(model, example_inputs=arguments))
    assert [type(m) for m in restored.modules()] == [type(m) for m in model.modules()]
