"""Judging images of runs, weights and folders: where images come from, the command, metrics during training."""

from pggan_fast.evaluation.during_training import Judge, check_metrics, judge_for
from pggan_fast.evaluation.evaluate import EvaluateConfig, evaluate

__all__ = ["EvaluateConfig", "Judge", "check_metrics", "evaluate", "judge_for"]
