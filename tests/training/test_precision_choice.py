"""`auto` is bf16 where the processor has instructions for it; elsewhere bf16 says what it is worth."""

import pytest
import torch

from pggan_fast.networks import Discriminator, Generator
from pggan_fast.ops import narrow_cpu
from pggan_fast.training import TrainStep
from pggan_fast.training.precision import on_this_processor


def step(precision: str) -> TrainStep:
    return TrainStep(Generator(4, fmap_max=8), Discriminator(4, fmap_max=8), precision=precision)


@pytest.mark.parametrize(("slow", "chosen"), [(True, "fp32"), (False, "bf16")])
def test_auto_follows_the_processor(monkeypatch, slow, chosen):
    monkeypatch.setattr(narrow_cpu, "is_slow", lambda dtype: slow)
    assert step("auto").precision == chosen
    assert step("bf16").precision == "bf16"


def test_half_precision_says_what_it_is_worth(monkeypatch):
    monkeypatch.setattr(narrow_cpu, "is_slow", lambda dtype: dtype == torch.bfloat16)
    assert "stored in bf16" in on_this_processor("bf16")
    assert on_this_processor("fp16") is None and on_this_processor("fp32") is None


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="precision is 'half', allowed: fp32, bf16, fp16, auto"):
        step("half")
