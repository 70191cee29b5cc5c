"""What needs a dataset: batches taken apart, and batch samplers."""

from lightning_is.data.batch import SampledBatch, batch_size, take
from lightning_is.data.batch_sampler import PresampleBatchSampler

__all__ = ["PresampleBatchSampler", "SampledBatch", "batch_size", "take"]
