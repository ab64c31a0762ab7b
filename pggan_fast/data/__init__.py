"""Images on their way to a training step: sources, preprocessing, prepared datasets, batches."""

from pggan_fast.data.dataset import DatasetWriter, PreparedData

__all__ = ["DatasetWriter", "PreparedData"]
