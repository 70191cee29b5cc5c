"""A source takes the place of the sampler; the user's batches stay as they are."""

from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, get_worker_info

from lightning_is.data import Loading, PassSource
from lightning_is.data.loader import IndexedDataset, indexed, rebuilt
from lightning_is.sampling.passes import Pass, Shuffled

N = 12


class Listed:
    """A scheme: everything in order, each example's weight a tenth of its number."""

    def __call__(self, scores, progress, generator):
        order = torch.arange(len(scores))
        return Pass(order, order / 10)


def source(scheme=None):
    made = PassSource(scheme or Listed(), warm_passes=0)
    made.bind(Loading(None, N, seed=0, progress=float, rescore=abs))
    return made


def data(**settings):
    return DataLoader(TensorDataset(torch.arange(N) * 2), batch_size=4, **settings)


def chosen(loader, length=3, endless=False):
    return indexed(loader, source(), 4, length, endless=endless)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_batches_are_the_users_and_index_and_weight_lie_beside(workers, persistent):
    settings = {"num_workers": workers, "persistent_workers": persistent and workers}
    loader = chosen(data(**settings))
    for _ in range(2):
        seen = []
        for (x,) in loader:
            index, weight = loader.arrived
            assert torch.equal(x, index * 2)
            assert torch.allclose(weight, index / 10)
            seen += index.tolist()
        assert seen == list(range(N))


def test_the_users_collation_is_kept():
    loader = chosen(data(collate_fn=lambda examples: {"first": examples[0][0]}))
    assert [int(batch["first"]) for batch in loader] == [0, 8, 16]


def test_a_dataset_that_fetches_whole_batches_is_asked_for_them():
    class Whole(Dataset):
        def __len__(self):
            return N

        def __getitems__(self, indices):
            return torch.tensor(indices)

    loader = chosen(DataLoader(Whole(), batch_size=4, collate_fn=lambda batch: batch))
    assert next(iter(loader)).tolist() == [0, 1, 2, 3]


class Named(TensorDataset):
    name = "shards"


def name_of_the_data(worker):
    assert get_worker_info().dataset.name == "shards"


def test_workers_find_the_users_dataset_behind_ours():
    inner = DataLoader(
        *(Named(torch.arange(N)), 4),
        num_workers=1,
        worker_init_fn=name_of_the_data,
    )
    assert len(list(chosen(inner))) == 3
    with pytest.raises(AttributeError):
        _ = IndexedDataset(Named(torch.arange(N))).nothing


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_fetched_ahead_comes_first_in_the_next_epoch(workers):
    loader = chosen(data(num_workers=workers), length=5)
    stopped = [loader.arrived[0].tolist() for _ in islice(loader, 2)]
    under_way = [drawn.indices.tolist() for drawn in loader.under_way]
    assert stopped == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(under_way) == (3 if workers else 0)

    again = [loader.arrived[0].tolist() for _ in loader]

    assert again[:2] == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert len(again) == 5


def test_an_endless_loader_gives_more_than_an_epoch():
    loader = chosen(data(), length=1, endless=True)
    assert len(loader) == 1
    next(iter(loader))
    assert [loader.more()[0].tolist() for _ in range(3)] == [
        [8, 10, 12, 14],
        [16, 18, 20, 22],
        [0, 2, 4, 6],
    ]


def test_every_setting_of_the_users_loader_is_kept():
    def initialise(worker):
        pass

    inner = data(
        num_workers=1,
        timeout=7,
        worker_init_fn=initialise,
        multiprocessing_context="fork",
        generator=torch.Generator(),
        prefetch_factor=3,
        persistent_workers=True,
        in_order=False,
    )
    made = rebuilt(inner, inner.batch_sampler)
    for name in (
        *("num_workers", "timeout", "worker_init_fn", "generator", "in_order"),
        *("prefetch_factor", "persistent_workers", "collate_fn", "dataset"),
    ):
        assert getattr(made, name) is getattr(inner, name) or getattr(
            made, name
        ) == getattr(inner, name)
    assert made.multiprocessing_context.get_start_method() == "fork"


def test_pinning_reaches_the_tensors_of_the_batch():
    shuffled = source(Shuffled())
    loader = indexed(data(pin_memory=False), shuffled, 4, 3)
    assert loader.pin_memory is False
    assert len(list(loader)) == 3
