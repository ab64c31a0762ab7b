"""Life of an accelerated model: hooks, copies, pickles, dtypes, autocast, threads."""

import copy
import functools
import io
import pickle
import threading

import pytest
import torch
from torch import nn

import pggan_fast
from pggan_fast import accelerate, explain, restore
from pggan_fast.dropin import fused, rewrite
from tests.dropin.helpers import CLOSE, EXACT, X, always_fuse, assert_same, block, calls, results, tensors
from tests.dropin.model_zoo import ZOO, inputs_of, network
from tests.dropin.progressive import UpBlock

# Hooks


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
@pytest.mark.parametrize("where", ["", "conv1"])
def test_hooks_run(kind, where):
    model = block()
    seen = []
    getattr(model.get_submodule(where), f"register_{kind}_hook")(lambda *_: seen.append(kind))
    fast = accelerate(model)
    for count in (1, 2):
        fast(X.clone().requires_grad_()).sum().backward()
        assert len(seen) == count
    assert explain(fast).replaced


def test_batch_norm_is_never_stale(monkeypatch):
    monkeypatch.setattr(rewrite, "BATCH_NORM_FROM", 0)
    model = network("stackgan").eval()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    z = torch.randn(4, 16)

    def check():
        for a, b in zip(fast(z), model(z), strict=True):
            torch.testing.assert_close(a, b, **CLOSE)

    check()
    for net in (fast, model):
        net.train()
        net(z * 3)
    check()
    fast.eval(), model.eval()
    check()
    state = {k: v * 1.5 for k, v in model.state_dict().items()}
    fast.load_state_dict(state), model.load_state_dict(state)
    check()


# Afterwards


def test_deepcopy_is_independent(monkeypatch):
    fast = accelerate(block())
    other = copy.deepcopy(fast)
    with torch.no_grad():
        other.conv1.weight.mul_(2)
        other.conv1.bias.add_(1)
    called = calls(monkeypatch)
    torch.testing.assert_close(fast(X), block()(X), **CLOSE)
    assert not torch.allclose(other(X), fast(X), atol=1e-2)
    assert len(called) == 6 and explain(other).replaced
    assert type(restore(other)) is UpBlock


KINDS = ("pggan_generator", "pggan_discriminator", "stackgan", "stylegan2", "unet")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_compute_the_same_and_stay_accelerated(name, way, monkeypatch):
    always_fuse(monkeypatch)
    model, inputs = network(name).double(), inputs_of(ZOO[name], torch.float64)
    model.eval()  # of no dropout
    fast = accelerate(model)
    fast(*inputs)
    file = io.BytesIO()
    if way == "deepcopy":
        other = copy.deepcopy(fast)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(fast))
    else:
        torch.save(fast, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert_same(results(other, inputs), results(model, inputs), EXACT)
    assert {row.what for row in explain(other).replaced} == {row.what for row in explain(fast).replaced} != set()
    assert [type(m) for m in restore(other).modules()] == [type(m) for m in model.modules()]
    assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}


def test_a_copy_of_a_model_that_was_run_with_spectral_norm():
    """Its hooks leave a weight that has a gradient, which deepcopy refuses."""
    model, inputs = network("sagan_discriminator").double(), inputs_of(ZOO["sagan_discriminator"], torch.float64)
    model(*inputs)
    fast = accelerate(model.eval())
    assert_same(results(fast, inputs), results(model, inputs), EXACT)


@pytest.mark.parametrize("name", ["pggan_discriminator", "stackgan", "sagan_parametrized"])
def test_export_sees_the_original(name):
    """torch.export in both modes: programs of plain operators with the original's numbers."""
    model, inputs = network(name).eval(), inputs_of(ZOO[name])
    fast = accelerate(model)
    expected = tensors(fast(*inputs))
    for strict in (False, True):
        program = torch.export.export(fast, inputs, strict=strict)
        assert not any("pggan_fast" in str(node.target) for node in program.graph.nodes)
        for a, b in zip(tensors(program.module()(*inputs)), expected, strict=True):
            torch.testing.assert_close(a, b, **CLOSE)


def test_training_continues_in_the_middle():
    """Optimizer, average of the weights and their checkpoints: before, after, and after restoring."""

    def train(change):
        G = block().double()
        average, optimizer = copy.deepcopy(G), torch.optim.Adam(G.parameters(), lr=1e-3)
        for step in range(6):
            G = change(step, G)
            optimizer.zero_grad()
            G(X.double()).square().mean().backward()
            optimizer.step()
            for a, p in zip(average.parameters(), G.parameters(), strict=True):
                a.data.lerp_(p.data, 0.1)
        return {**G.state_dict(), **{f"average {k}": v for k, v in accelerate(average).state_dict().items()}}

    def change(step, G):
        return {2: lambda G: accelerate(G), 4: restore, 5: lambda G: accelerate(G, inplace=True)}.get(
            step, lambda G: G
        )(G)

    assert_same(train(change), train(lambda step, G: G), EXACT)


def test_state_dicts_go_both_ways():
    model, fast = block(), accelerate(block(gain=1.0))
    fast.load_state_dict(model.state_dict())
    model.load_state_dict(fast.state_dict())
    assert torch.equal(fast.conv1.weight, model.conv1.weight)


def test_moving_to_a_dtype_and_layout():
    model = block()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    for net in (fast, model):
        net.double().to(memory_format=torch.channels_last)
    x = X.double().contiguous(memory_format=torch.channels_last)
    y = fast(x)
    torch.testing.assert_close(y, model(x))
    assert y.dtype == torch.float64 and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["pggan_generator", "stackgan", "wgan_gp_critic"])
def test_autocast_has_the_dtypes_of_the_original(name):
    model = network(name)
    fast = accelerate(model)
    inputs = torch.randn(4, 16) if name != "wgan_gp_critic" else torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a, b = fast(inputs), model(inputs)
    for mine, theirs in zip(*(t if isinstance(t, list) else [t] for t in (a, b)), strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine.float(), theirs.float(), rtol=0.1, atol=0.1)


def test_transforms_of_torch_func_see_the_original():
    fast, model = accelerate(block()), block()
    for net in (fast, model):
        net.requires_grad_(False)
    tangent = torch.randn_like(X)
    expected = torch.func.jvp(model, (X,), (tangent,))
    for a, b in zip(torch.func.jvp(fast, (X,), (tangent,)), expected, strict=True):
        torch.testing.assert_close(a, b)
    traced = torch.fx.symbolic_trace(fast)
    torch.testing.assert_close(traced(X), model(X), **CLOSE)


def test_threads_trace_at_once():
    model = network("pggan_discriminator")
    fast = accelerate(model)
    expected = {n: model(X[:n, :3].repeat(1, 1, 2, 2)) for n in (2, 4)}
    wrong = []

    def work(n):
        for _ in range(5):
            if not torch.allclose(fast(X[:n, :3].repeat(1, 1, 2, 2)), expected[n], atol=1e-4):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in (2, 4, 2, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_example_inputs_settle_what_depends_on_shapes():
    images = torch.randn(4, 3, 32, 32)
    fast = accelerate(network("pggan_discriminator"), example_inputs=images)
    assert any("minibatch stddev" in row.what for row in explain(fast).replaced)
    by_name = accelerate(block(), example_inputs={"x": X})
    assert explain(by_name).replaced
    several = accelerate(network("biggan_generator"), example_inputs=(torch.randn(4, 16), torch.randn(4, 16)))
    assert explain(several).replaced


def test_example_inputs_leave_no_trace_and_catch_a_difference(monkeypatch):
    model = network("stackgan").train()
    before = copy.deepcopy(model.state_dict())
    accelerate(model, example_inputs=torch.randn(4, 16))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    right = fused.fold_batch_norm
    wrong = functools.wraps(right)(lambda *args: tuple(1.1 * t for t in right(*args)))
    monkeypatch.setattr(fused, "fold_batch_norm", wrong)
    monkeypatch.setattr(rewrite, "BATCH_NORM_FROM", 0)
    model.eval()
    fast = accelerate(model, example_inputs=torch.randn(4, 16))
    assert type(fast.up1) is nn.Sequential
    (row,) = explain(fast)
    assert row.status == "left" and "differ" in row.what


def test_names_are_exported():
    assert {"accelerate", "explain", "restore"} <= set(pggan_fast.__all__)


def test_a_shallow_copy_runs_its_own_parameters():
    """Made as DataParallel's replicas: the attributes of the original, other children."""
    fast = accelerate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    x = torch.randn(2, 3, 8, 8)
    fast(x)
    replica, other = fast._replicate_for_data_parallel(), nn.Conv2d(3, 4, 3)
    replica._modules = {"0": other, "1": nn.ReLU()}
    torch.testing.assert_close(replica(x), torch.relu(other(x)), rtol=0, atol=0)


def test_what_a_shallow_copy_met_first_does_not_reach_the_original():
    """Traced for each shape: a replica that gets a new one must not leave the original with its parameters."""
    fast = accelerate(network("pggan_discriminator").double(), inplace=True)
    replica = fast._replicate_for_data_parallel()
    replica._modules = dict(copy.deepcopy(fast)._modules)
    with torch.no_grad():
        for module in replica._modules.values():
            for parameter in module.parameters():
                parameter.mul_(2)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    twice, expected = replica(x), network("pggan_discriminator").double()(x)
    torch.testing.assert_close(fast(x), expected)
    assert not torch.allclose(twice, expected)


def test_a_parameter_that_becomes_an_attribute_is_found():
    """Left as FSDP and weight normalization leave it."""
    conv = nn.Conv2d(3, 4, 3)
    fast = accelerate(nn.Sequential(conv, nn.ReLU()), inplace=True)
    x = torch.randn(2, 3, 8, 8)
    fast(x)
    weight = conv._parameters.pop("weight")
    conv.weight = 2 * weight.detach()
    torch.testing.assert_close(fast(x), torch.relu(nn.functional.conv2d(x, 2 * weight, conv.bias)))
