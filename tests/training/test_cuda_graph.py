"""A step that is recorded once and played back: the same numbers, with nothing decided by the host."""

from contextlib import nullcontext

import pytest
import torch

from pggan_fast import Discriminator, Generator
from pggan_fast.training import TrainStep
from pggan_fast.training import step as step_module
from pggan_fast.training.augment import AdaptiveAugment
from pggan_fast.training.config import TrainConfig
from pggan_fast.training.losses import Relativistic
from pggan_fast.training.runtime import cuda_graph
from pggan_fast.training.runtime.cuda_graph import WARM_UP, CUDAGraphStep, recorded
from tests.training.tape import Tape, TapeRecorder

SMALL = dict(fmap_base=32, fmap_max=8)


def build(**options):
    torch.manual_seed(0)
    options = dict(options)
    labels = options.pop("label_dim", 0)
    if options.get("objective") == "modern":
        options["objective"] = Relativistic(r1_weight=torch.tensor(1.0), r2_weight=torch.tensor(1.0))
    networks = (network(8, label_dim=labels, **SMALL) for network in (Generator, Discriminator))
    return TrainStep(*networks, **options)


def changed_by(step):
    tensors = [*step.G.parameters(), *step.D.parameters(), *step.G_ema.parameters(), *step._counters().values()]
    for optimizer in (step.optimizer_G, step.optimizer_D):
        tensors += [tensor for state in optimizer.state.values() for tensor in state.values()]
    if step.augment is not None:
        tensors += step.augment.buffers()
    return tensors


def batches(resolutions, n=8):
    random = torch.Generator().manual_seed(1)
    for resolution, alpha in resolutions:
        yield (
            torch.rand(n, 3, resolution, resolution, generator=random) * 2 - 1,
            torch.eye(2)[torch.arange(n) % 2],
            alpha,
        )


LAZY_STAGES = [(5, 4), (4, 5), (4, 3)]  # steps with and without the penalties at each of the stages below
STAGES = [(4, 1.0)] * 6 + [(8, torch.tensor(0.1 * i)) for i in range(1, 7)] + [(8, 1.0)] * 5
MORE = [(4, 1.0)] * 9 + [(8, torch.tensor(0.1 * i)) for i in range(1, 10)] + [(8, 1.0)] * 7


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "fp16"},
        {"precision": "bf16", "micro_batch": 4, "label_dim": 2},
        {"objective": "modern", "penalty_every": 2, "augment": "diffaugment", "penalty_on": "raw", "betas": (0.5, 0.9)},
    ],
    ids=["fp32", "fp16", "bf16_parts_labels", "lazy_scheduled"],
)
def test_a_recorded_step_gives_the_bits_of_a_plain_one(options, monkeypatch):
    # A tape sees operators, not what their kernels keep: weights are cast and folded in its sight, at every use.
    monkeypatch.setattr(step_module, "cache_folded_weights", lambda: nullcontext(lambda parameters: None))
    plain, recorded = build(**options), build(**options)
    recorder = TapeRecorder(lambda: changed_by(recorded))
    captured = CUDAGraphStep(recorded, recorder)
    live, lazy = None, "penalty_every" in options
    random = torch.get_rng_state()
    for index, (real, labels, alpha) in enumerate(batches(MORE if lazy else STAGES)):
        labels = labels if options.get("label_dim") else None
        for step in (plain, recorded):
            if live != (real.shape, isinstance(alpha, torch.Tensor)):
                step.reset_optimizers()
            step.set_learning_rate(1e-3 / (index + 1))
            if lazy:
                weights = {"r1_weight": 2.0 - 0.05 * index, "r2_weight": 1.0 + index}
                step.set_hyperparameters(beta2=0.9 + 0.003 * index, ema_decay=0.5 + 0.02 * index, **weights)
        live = (real.shape, isinstance(alpha, torch.Tensor))
        torch.set_rng_state(random)
        expected = plain(real, labels, alpha=alpha)
        torch.set_rng_state(random)
        found = captured(real, labels, alpha=alpha)
        random = torch.get_rng_state()
        assert found.keys() == expected.keys()
        for name in found:
            assert torch.equal(found[name], expected[name]), (index, name)
    for a, b in zip(changed_by(recorded), changed_by(plain), strict=True):
        assert torch.equal(a, b)
    if not lazy:
        assert recorder.recordings == 3 == len([1 for stage in (6, 6, 5) if stage > WARM_UP])
    else:  # of every second step with the penalties, and of the others, where a stage has more than WARM_UP of them
        assert recorder.recordings == 6 == len([1 for stage in LAZY_STAGES for kind in stage if kind > WARM_UP])


@pytest.mark.parametrize("augment", [None, "ada", "diffaugment"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_never_reads_the_device(precision, augment):
    step = build(precision=precision, augment=augment)
    real, _, alpha = next(batches([(8, torch.tensor(0.5))]))
    step(real, alpha=alpha)
    with Tape() as tape:  # which raises at a read
        step(real, alpha=alpha)
        step.set_learning_rate(1e-4)
    assert torch.ops.aten._fused_adam_.tensor_lr in {call[0] for call in tape.calls}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_modern_recipe_never_reads_the_device(precision):
    """Penalties of their own through ADA, a fixed probability, and every setting that a curve changes."""
    lazy = dict(objective="modern", penalty_every=2, penalty_on="raw", betas=(0.5, 0.9), eps_place="uncorrected")
    step = build(precision=precision, augment=AdaptiveAugment(p=0.5), **lazy)
    settings = dict(beta2=0.95, r1_weight=0.5, r2_weight=0.25, ema_decay=0.9, augment_p=0.25)
    real, _, alpha = next(batches([(8, torch.tensor(0.5))]))
    for penalties in ((True,), (False,)):
        step.set_hyperparameters(**settings)
        step.run(real, None, alpha=alpha, penalties=penalties)
        with Tape():  # which raises at a read
            step.set_hyperparameters(**settings)
            scalars = step.run(real, None, alpha=alpha, penalties=penalties)
        assert ("penalty" in scalars) == penalties[0] and "overfitting" not in scalars
        assert step.augment.p == 0.25 and step.ema_decay == torch.tensor(0.9)


def test_the_tape_notices_a_read():
    x = torch.ones(2)
    with Tape(), pytest.raises(AssertionError, match="reads the device"):
        float(x.sum())


class FailingRecorder(TapeRecorder):
    """Cannot record, as on a device that a step waits for."""

    def record(self, work):
        raise RuntimeError(
            "operation not permitted when stream is capturing\nCUDA kernel errors might be reported later"
        )


def test_a_step_that_cannot_be_recorded_runs_as_usual_and_says_why(capsys):
    plain, step = build(), build()
    captured = CUDAGraphStep(step, FailingRecorder(lambda: changed_by(step)))
    random = torch.get_rng_state()
    for real, _, alpha in batches([(4, 1.0)] * 6):
        torch.set_rng_state(random)
        expected = plain(real, alpha=alpha)
        torch.set_rng_state(random)
        found = captured(real, alpha=alpha)
        random = torch.get_rng_state()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "CUDA graphs are off: this step cannot be recorded (operation not permitted when stream is capturing)"
    ]


def test_the_third_step_of_a_stage_is_recorded():
    step = build()
    recorder = TapeRecorder(lambda: changed_by(step))
    captured = CUDAGraphStep(step, recorder)
    for count, (real, _, alpha) in enumerate(batches([(4, 1.0)] * 4), 1):
        captured(real, alpha=alpha)
        assert recorder.recordings == (count >= 3)


def test_where_a_step_is_recorded(monkeypatch, capsys):
    step = build()
    monkeypatch.setattr(cuda_graph, "CudaRecorder", lambda: TapeRecorder(lambda: []))
    assert recorded(step, torch.device("cpu")) is step
    assert isinstance(recorded(step, torch.device("cuda")), CUDAGraphStep)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    assert isinstance(recorded(step, torch.device("cuda"), 2), CUDAGraphStep)
    assert not capsys.readouterr().out
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    assert recorded(step, torch.device("cuda"), 2) is step
    assert "CUDA graphs are off: reductions by gloo" in capsys.readouterr().out
    assert TrainConfig.__dataclass_fields__["cuda_graphs"].default is True
