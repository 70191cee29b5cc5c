"""What needs a dataset: batches taken apart, and what chooses the next ones."""

from lightning_is.data.batch import SampledBatch, batch_size, take
from lightning_is.data.batch_sampler import PresampleBatchSampler
from lightning_is.data.pass_source import PassSource
from lightning_is.data.predicted_loss import PredictedLoss
from lightning_is.data.source import IndexSource, Loading

__all__ = [
    "IndexSource",
    "Loading",
    "PassSource",
    "PredictedLoss",
    "PresampleBatchSampler",
    "SampledBatch",
    "batch_size",
    "take",
]
