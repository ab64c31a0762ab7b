"""Networks of other packages, accelerated: outputs, gradients, penalties, state, and what explain says."""

import copy

import pytest

import pggan_fast
from pggan_fast import accelerate, explain
from tests.dropin.helpers import EXACT, always_fuse, assert_same, double, results
from tests.dropin.peers import PEERS


@pytest.fixture(autouse=True)
def no_thresholds(monkeypatch):
    always_fuse(monkeypatch)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", PEERS)
def test_results(name, training):
    peer = PEERS[name]
    if (reason := peer.missing()) is not None:
        pytest.skip(reason)
    model, arguments = peer.make()
    model, arguments = model.double().train(training), tuple(map(double, arguments))
    fast = accelerate(copy.deepcopy(model), inplace=True)
    assert_same(results(fast, arguments), results(model, arguments), EXACT)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert_same(fast.state_dict(), model.state_dict(), EXACT)
    what = " ".join(row.what for row in explain(fast).replaced)
    assert bool(what) == peer.replaced
    assert not peer.fast or "nearest upsampling" in what and "pixel norm" in what


def test_the_models_come_back():
    peer = PEERS["progan_generator"]
    if (reason := peer.missing()) is not None:
        pytest.skip(reason)
    model, arguments = peer.make()
    restored = pggan_fast.restore(accelerate(model, example_inputs=arguments))
    assert [type(m) for m in restored.modules()] == [type(m) for m in model.modules()]
