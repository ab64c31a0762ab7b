"""Accelerated models under torch's own tools, beside the unaccelerated deep copy."""

import copy
import io
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pggan_fast import accelerate, explain, restore
from tests.dropin.helpers import CLOSE, EXACT, X, always_fuse, assert_same, block, called, results


@pytest.fixture(autouse=True)
def no_thresholds(monkeypatch):
    always_fuse(monkeypatch)


class Critic(nn.Module):
    """Shared weights, a batch norm, spectral norm, and a method beside forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.again.weight = self.first.weight
        self.normed = nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.2))
        self.head = nn.Linear(8, 1)

    def features(self, x):
        return self.body(F.avg_pool2d(F.leaky_relu(self.again(F.relu(self.first(x))), 0.2), 2))

    def forward(self, x):
        return self.head(F.leaky_relu(self.normed(self.features(x)), 0.2).mean((2, 3)))


def pair() -> tuple[nn.Module, nn.Module]:
    """(accelerated and called, original), in fp64."""
    model = Critic().double().eval()
    return called(accelerate(copy.deepcopy(model), inplace=True), X.double()), model


def assert_alike(function) -> None:
    fast, model = pair()
    torch.testing.assert_close(function(fast), function(model), rtol=1e-9, atol=1e-9)
    assert explain(fast).replaced


def test_vmap_and_grad_of_a_functional_call():
    def per_sample(net):
        parameters = {name: p.detach() for name, p in net.named_parameters()}

        def loss(parameters, x):
            return torch.func.functional_call(net, parameters, (x[None],)).square().sum()

        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, X.double())

    assert_alike(per_sample)


def test_functional_call_with_other_parameters():
    def doubled(net):
        return torch.func.functional_call(net, {n: p * 2 for n, p in net.named_parameters()}, (X.double(),))

    assert_alike(doubled)


def test_forward_mode():
    assert_alike(lambda net: torch.func.jvp(net.requires_grad_(False), (X.double(),), (torch.ones_like(X.double()),)))


def test_inference_mode_and_no_grad():
    def run(net):
        with torch.inference_mode():
            inner = net(X.double()).clone()
        with torch.no_grad():
            return inner, net(X.double())

    assert_alike(run)


def test_checkpointing():
    def run(net):
        x = X.double().requires_grad_()
        y = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False)
        return torch.autograd.grad(y.square().sum(), [x, *net.parameters()])

    assert_alike(run)


class Checkpointed(nn.Module):
    """A part that is computed again in backward, where it is called by itself."""

    def __init__(self):
        super().__init__()
        self.part = block()

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(lambda y: F.leaky_relu(self.part(y), 0.5) * 2, x, use_reentrant=False)


def test_checkpoints_inside():
    model = Checkpointed().double()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    for _ in range(3):
        assert_same(results(fast, (X.double(),)), results(model, (X.double(),)), EXACT)


def test_autocast_inside_and_outside():
    def run(net):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net.float()(X).float()

    fast, model = pair()
    torch.testing.assert_close(run(fast), run(model), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("way", ["script", "trace"])
@pytest.mark.filterwarnings("ignore")
def test_torchscript(way):
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.act = nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.2)

        def forward(self, x):
            return self.act(self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))

    model = Scripted()
    fast = called(accelerate(copy.deepcopy(model), inplace=True), X)
    scripted = torch.jit.script(fast) if way == "script" else torch.jit.trace(fast, X)
    torch.testing.assert_close(scripted(X), model(X), **CLOSE)
    torch.jit.save(scripted, io.BytesIO())


def test_an_outer_compile():
    torch._dynamo.reset()
    assert_alike(lambda net: torch.compile(net, backend="aot_eager")(X.double()))
    torch._dynamo.reset()


def test_a_module_inside_another_accelerated_one():
    inner = accelerate(block(), inplace=True)
    outer = nn.Sequential(inner, nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    expected = copy.deepcopy(outer)
    restore(expected)
    fast = accelerate(outer, inplace=True)
    torch.testing.assert_close(fast(X), expected(X), **CLOSE)
    assert {row.module for row in explain(fast).replaced} >= {"0.conv1", "2"}


@pytest.mark.filterwarnings("ignore")
def test_global_hooks_see_every_module():
    fast, model = pair()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: seen.append(type(module)))
    try:
        fast(X.double())
        mine = list(seen)
        seen.clear()
        model(X.double())
    finally:
        handle.remove()
    assert mine == seen != []


def test_methods_beside_forward():
    assert_alike(lambda net: net.features(X.double()))


def test_a_moving_average_by_deepcopy():
    fast, model = pair()
    averages = [torch.optim.swa_utils.AveragedModel(net) for net in (fast, model)]
    for net, average in zip((fast, model), averages, strict=True):
        with torch.no_grad():
            net.head.weight.mul_(2)
        average.update_parameters(net)
        average.update_parameters(net)
    torch.testing.assert_close(averages[0](X.double()), averages[1](X.double()))
    assert explain(averages[0]).replaced


def test_state_dicts_and_strict_loading():
    fast, model = pair()
    assert list(fast.state_dict()) == list(model.state_dict())
    fast.load_state_dict(model.state_dict(), strict=True)
    assert_same(results(fast, (X.double(),)), results(model, (X.double(),)), EXACT)
    restore(fast)
    assert vars(fast).keys() == vars(model).keys()


def test_data_parallel_s_replicas():
    fast, model = pair()
    torch.testing.assert_close(nn.DataParallel(fast)(X.double()), model(X.double()))
    replica = fast._replicate_for_data_parallel()
    replica.head = nn.Linear(8, 1).double()
    torch.testing.assert_close(replica.head.weight.shape, model.head.weight.shape)
    assert not torch.allclose(replica(X.double()), fast(X.double()))


def test_eight_threads():
    fast, model = pair()
    fast = copy.deepcopy(fast)  # which has captured nothing yet
    inputs = [X[: 1 + i % 4].double() for i in range(8)]
    expected, wrong = [model(x) for x in inputs], []

    def work(i):
        for _ in range(4):
            if not torch.allclose(fast(inputs[i]), expected[i], rtol=1e-9):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_the_original_refuses_is_refused():
    fast, model = pair()
    for net in (fast, model):
        with pytest.raises(RuntimeError, match="channels"):
            net(X[:, :3].double())
    torch.testing.assert_close(fast(X.double()), model(X.double()))


def test_a_compile_of_the_user_s_own_is_not_disturbed():
    torch._dynamo.reset()
    model = block()
    counter = torch._dynamo.testing.CompileCounter()
    theirs = torch.compile(model, backend=counter)
    theirs(X)
    fast = accelerate(model)
    for n in (1, 2, 3):
        fast(X[:n])
    before = counter.frame_count
    theirs(X)
    assert counter.frame_count == before
    torch._dynamo.reset()


def test_onnx_runs_as_the_original(tmp_path):
    """The program that is exported is the original's, and onnxruntime computes what the accelerated model does."""
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    fast = called(accelerate(Critic().eval()), X)
    torch.onnx.export(fast, (X,), tmp_path / "critic.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "critic.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), fast(X), **CLOSE)
    assert explain(fast).replaced


# Releases of torch without the parts of TorchDynamo that acceleration stands on


def test_a_torch_without_an_optimizer_of_frames(monkeypatch):
    monkeypatch.delattr(torch._dynamo, "optimize")
    model = Critic().double()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    torch.testing.assert_close(fast(X.double()), model(X.double()), rtol=0, atol=0)
    assert "TorchDynamo cannot be used here" in str(explain(fast)) and not explain(fast).replaced


MISSING = """
import sys, torch
sys.modules["torch._dynamo.pgo"] = None
import pggan_fast
model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3), torch.nn.ReLU())
x = torch.randn(1, 3, 5, 5)
fast = pggan_fast.accelerate(model, example_inputs=x)
assert torch.equal(fast(x), model(x))
print(pggan_fast.explain(fast))
"""


def test_a_torch_without_a_module_of_dynamo(tmp_path):
    done = subprocess.run([sys.executable, "-c", MISSING], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "lacks what accelerate stands on" in done.stdout


class Appended(nn.Module):
    """An image with its minibatch deviation."""

    def forward(self, x):
        deviation = torch.sqrt((x - x.mean(0)).square().mean(0) + 1e-8).mean().view(1, 1, 1, 1)
        return torch.cat([x, deviation.expand(len(x), 1, *x.shape[2:])], dim=1)


@pytest.mark.parametrize("make", [block, Appended], ids=["block", "deviation"])
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last], ids=str)
def test_results_lie_in_memory_in_the_same_order(weights, make):
    """Images of either layout in a model of either."""
    model = make().to(memory_format=weights)
    fast = accelerate(copy.deepcopy(model), inplace=True)
    last = X.contiguous(memory_format=torch.channels_last)
    for x in (X, last, X[:, :, :, 1:7], last[:, :, :, 1:7]):
        y, expected = fast(x), model(x)
        assert y.stride() == expected.stride()
        torch.testing.assert_close(y, expected)
