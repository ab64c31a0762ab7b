"""Metrics of the images of runs, weights and folders: where images come from, the command, metrics during training."""

from pggan_fast.evaluation.during_training import MetricCallback, check_metrics, metric_callback_for
from pggan_fast.evaluation.evaluate import EvaluateConfig, evaluate

__all__ = ["EvaluateConfig", "MetricCallback", "check_metrics", "evaluate", "metric_callback_for"]
