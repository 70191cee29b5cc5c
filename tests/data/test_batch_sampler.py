"""The presample batch sampler: sizes follow the gate, epochs keep their length."""

from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from lightning_is.data import PresampleBatchSampler

N, SMALL, LARGE = 12, 2, 6


def sampler(**options: object) -> PresampleBatchSampler:
    source = RandomSampler(range(N), generator=torch.Generator().manual_seed(0))
    return PresampleBatchSampler(source, SMALL, True, presample_size=LARGE)


def test_a_closed_sampler_passes_once_over_the_data_in_small_batches():
    batches = list(sampler())
    assert [len(batch) for batch in batches] == [SMALL] * (N // SMALL)
    assert sorted(chain(*batches)) == list(range(N))


def test_it_starts_closed():
    assert sampler().is_open is False


def test_an_open_sampler_gives_as_many_presamples():
    batches = sampler()
    batches.is_open = True
    assert [len(batch) for batch in batches] == [LARGE] * (N // SMALL)


def test_every_example_is_seen_equally_often_while_open():
    batches = sampler()
    batches.is_open = True
    passes = LARGE // SMALL
    assert Counter(chain(*batches)) == dict.fromkeys(range(N), passes)


def test_each_pass_is_shuffled_anew():
    batches = sampler()
    batches.is_open = True
    stream = list(chain(*batches))
    passes = [tuple(stream[i : i + N]) for i in range(0, len(stream), N)]
    assert len(set(passes)) == len(passes) == 3
    again = list(chain(*batches))
    assert again != stream


def test_sizes_follow_the_gate_within_an_epoch():
    batches = sampler()
    sizes = []
    for number, batch in enumerate(batches):
        sizes.append(len(batch))
        batches.is_open = number in {1, 2, 4}
    assert sizes == [2, 2, 6, 6, 2, 6]


def test_a_change_of_the_gate_neither_skips_nor_repeats_examples():
    source = SequentialSampler(range(10))
    batches = PresampleBatchSampler(source, 2, True, presample_size=5)
    stream = []
    for number, batch in enumerate(batches):
        stream += batch
        batches.is_open = number % 2 == 0
    assert stream == [i % 10 for i in range(len(stream))]
    assert len(stream) == 2 + 5 + 2 + 5 + 2


@given(
    examples=st.integers(1, 40),
    small=st.integers(1, 10),
    extra=st.integers(0, 10),
    gates=st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_an_epoch_has_n_over_b_full_batches_whatever_the_gate(
    examples: int, small: int, extra: int, gates: list[bool]
):
    large = min(small + extra, examples)
    if large < small:
        return
    batches = PresampleBatchSampler(range(examples), small, False, presample_size=large)
    sizes = []
    iterator = iter(batches)
    for is_open in gates[: examples // small]:
        batches.is_open = is_open
        sizes.append(len(next(iterator)))
    assert next(iterator, None) is None
    assert len(batches) == len(sizes) == examples // small
    wanted = [large if is_open else small for is_open in gates]
    assert sizes == wanted[: len(sizes)]


@pytest.mark.parametrize("drop_last", [True, False])
def test_all_batches_are_full_whether_or_not_the_rest_is_dropped(drop_last: bool):
    batches = PresampleBatchSampler(range(7), 3, drop_last, presample_size=4)
    assert list(batches) == [[0, 1, 2], [3, 4, 5]]
    assert batches.drop_last is drop_last


def ranks(epoch: int = 0) -> list[PresampleBatchSampler]:
    made = []
    for rank in range(2):
        source = DistributedSampler(range(N), num_replicas=2, rank=rank, seed=3)
        source.set_epoch(epoch)
        made.append(PresampleBatchSampler(source, SMALL, True, presample_size=LARGE))
        made[-1].is_open = True
    return made


def passes_of(batches: PresampleBatchSampler) -> list[tuple[int, ...]]:
    stream, length = list(chain(*batches)), N // 2
    return [tuple(stream[i : i + length]) for i in range(0, len(stream), length)]


def test_ranks_share_out_each_pass_between_them():
    first, second = (passes_of(batches) for batches in ranks())
    assert len(first) == len(second) == 3
    for mine, yours in zip(first, second, strict=True):
        assert sorted(mine + yours) == list(range(N))


def test_each_pass_of_a_distributed_sampler_is_shuffled_anew():
    epochs = [passes_of(ranks(epoch)[0]) for epoch in range(4)]
    seen = list(chain(*epochs))
    assert len(set(seen)) == len(seen) == 12


def test_a_closed_distributed_sampler_keeps_the_order_of_its_epoch():
    """So that training before the gate opens is what it was without us."""
    batches = ranks(epoch=5)[0]
    batches.is_open = False
    reference = DistributedSampler(range(N), num_replicas=2, rank=0, seed=3)
    reference.set_epoch(5)
    assert list(chain(*batches)) == list(reference)
    assert batches.sampler.epoch == 5


def test_a_loader_asks_for_no_more_batches_than_promised():
    batches = sampler()
    loader = DataLoader(range(N), batch_sampler=batches)
    assert len(loader) == len(list(loader)) == N // SMALL


def test_a_presample_smaller_than_the_batch_is_refused():
    with pytest.raises(ValueError, match=r"at least the batch size, got 3 .* of 4\."):
        PresampleBatchSampler(range(8), 4, True, presample_size=3)


def test_a_presample_of_the_size_of_the_batch_is_allowed():
    batches = PresampleBatchSampler(range(4), 4, True, presample_size=4)
    batches.is_open = True
    assert list(batches) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("examples", [0, 5])
def test_a_dataset_smaller_than_the_presample_is_refused(examples: int):
    message = rf"got {examples} examples for `presample_size=6`\. .*is not empty"
    with pytest.raises(ValueError, match=message):
        PresampleBatchSampler(range(examples), 2, True, presample_size=6)


def test_a_batch_size_that_torch_refuses_is_refused():
    with pytest.raises(ValueError, match="batch_size should be a positive integer"):
        PresampleBatchSampler(range(4), 0, True, presample_size=2)
