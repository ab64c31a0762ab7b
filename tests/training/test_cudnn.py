"""cuDNN's settings while a run trains, and afterwards."""

import pytest
import torch

from pggan_fast.training import RunFolder, TrainStep, train
from pggan_fast.training import trainer as trainer_module
from tests.training.runs import config, write_data


class Killed(BaseException):
    pass


@pytest.fixture
def flags():
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    yield lambda: (cudnn.deterministic, cudnn.benchmark)
    cudnn.deterministic, cudnn.benchmark = before


@pytest.mark.parametrize("timed", [False, True])
def test_algorithms_are_deterministic_at_every_step_and_settings_are_restored(timed, flags, tmp_path, monkeypatch):
    seen = []

    class Watched(TrainStep):
        def __call__(self, *arguments, **options):
            seen.append(flags())
            if len(seen) == 8:
                raise Killed  # restored whatever ends the run
            return super().__call__(*arguments, **options)

    monkeypatch.setattr(trainer_module, "TrainStep", Watched)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, not timed
    settings = config(write_data(tmp_path / "data"), tmp_path / "run", total_kimg=0.096, cudnn_benchmark=timed)
    assert train(RunFolder.create(settings))
    assert len(seen) == 7 and set(seen) == {(True, timed)}  # five batches of 16 at 4 px, two of 8 at 8 px
    assert flags() == (False, not timed)
    with pytest.raises(Killed):
        train(RunFolder.open(tmp_path / "run", {"total_kimg": 0.24}))
    assert flags() == (False, not timed)
