"""Loaders hand over what the set holds, and refuse sets that hold nothing."""

import pytest
import torch

from lightning_is.experiments.data import (
    Loader,
    Splits,
    Standardise,
    TensorDataModule,
    TensorSet,
)


def rows(n: int) -> TensorSet:
    return TensorSet(torch.arange(float(n))[:, None], torch.arange(n))


class Numbered(TensorDataModule):
    """Inputs equal their labels, so that a mixed-up batch shows."""

    def __init__(self, train: int, val: int = 3, test: int = 3, batch_size: int = 4):
        super().__init__(batch_size, Loader())
        self.sizes, self.loads = (train, val, test), 0

    def load(self) -> Splits:
        self.loads += 1
        train, val, test = (rows(n) for n in self.sizes)
        return Splits(train, val, {"test": test})


def test_inputs_stay_with_their_labels_through_a_shuffled_loader():
    batches = list(Numbered(train=12).train_dataloader())
    labels = torch.cat([y for _, y in batches])
    assert all(torch.equal(x[:, 0].long(), y) for x, y in batches)
    assert labels.sort().values.tolist() == list(range(12))
    assert labels.tolist() != list(range(12))


def test_training_batches_are_full_and_the_ordered_loader_leaves_nobody_out():
    data = Numbered(train=10)
    assert [len(y) for _, y in data.train_dataloader()] == [4, 4]
    ordered = torch.cat([y for _, y in data.ordered_train_dataloader()])
    assert ordered.tolist() == list(range(10))


def test_one_example_is_a_row_of_the_batch():
    data = TensorSet(
        torch.tensor([[2.0], [4.0]]), torch.tensor([5, 6]), lambda x: x / 2
    )
    x, y = data[1]
    assert (x.tolist(), y.item()) == ([2.0], 6)


def test_a_batch_keeps_the_memory_format_of_the_set():
    stored = torch.zeros(8, 5, 5, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    spread = Standardise(torch.tensor(1.0), torch.tensor(2.0))
    x, _ = TensorSet(stored, torch.zeros(8).long(), spread).__getitems__([1, 3])
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.unique().tolist() == [-0.5]


def test_the_data_are_loaded_once():
    data = Numbered(train=8)
    data.setup("fit")
    data.setup("test")
    assert data.loads == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 3, 3), "got none in train"),
        ((8, 0, 0), "got none in val, test"),
        ((3, 3, 3), "got 3 examples for batch_size=4"),
    ],
)
def test_a_set_too_small_to_use_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Numbered(*sizes).setup("fit")
