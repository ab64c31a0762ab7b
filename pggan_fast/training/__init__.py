"""The trainer: schedule, losses, data, checkpoints, and the loop in trainer.py."""

from pggan_fast.data.dataset import DatasetWriter, PreparedData
from pggan_fast.training.config import TrainConfig
from pggan_fast.training.run_folder import RunFolder
from pggan_fast.training.schedule import Schedule, Stage
from pggan_fast.training.step import TrainStep
from pggan_fast.training.trainer import train
from pggan_fast.utils.errors import UserError

__all__ = [
    "DatasetWriter",
    "PreparedData",
    "RunFolder",
    "Schedule",
    "Stage",
    "TrainConfig",
    "TrainStep",
    "UserError",
    "train",
]
