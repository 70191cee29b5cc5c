"""Passes come one after the other, whole or not, and are shared among ranks."""

import copy

import pytest
import torch

from lightning_is.data import Loading, PassSource
from lightning_is.sampling.passes import Pass, Shuffled


class Highest:
    """A scheme: the examples with the highest scores, weights told by progress."""

    def __init__(self, count):
        self.count = count

    def __call__(self, scores, progress, generator):
        indices = scores.topk(self.count).indices
        return Pass(indices, torch.full((self.count,), progress))


def loading(examples=10, rank=0, world_size=1, rescore=None, progress=lambda: 0.5):
    return Loading(
        dataset=None,
        examples=examples,
        seed=3,
        progress=progress,
        rescore=rescore or (lambda positions: torch.zeros(len(positions))),
        rank=rank,
        world_size=world_size,
    )


def bound(scheme=None, *, examples=10, rank=0, world_size=1, rescore=None, **settings):
    source = PassSource(Shuffled() if scheme is None else scheme, **settings)
    source.bind(loading(examples, rank, world_size, rescore))
    return source


def drawn(source, batches, size):
    return [source.draw(size).indices.tolist() for _ in range(batches)]


def test_a_warm_pass_holds_every_example_once():
    source = bound(Highest(2))
    first = [i for batch in drawn(source, 5, 2) for i in batch]
    assert sorted(first) == list(range(10))


def test_batches_are_full_and_cross_from_pass_to_pass():
    source = bound(Highest(3), warm_passes=0)
    source.observe(torch.arange(10), torch.arange(10.0))
    assert drawn(source, 3, 2) == [[9, 8], [7, 9], [8, 7]]


def test_a_batch_may_need_several_passes():
    source = bound(Highest(1), warm_passes=0)
    source.observe(torch.arange(10), torch.arange(10.0))
    assert drawn(source, 1, 3) == [[9, 9, 9]]


def test_passes_are_shuffled_anew():
    source = bound()
    passes = [tuple(drawn(source, 1, 10)[0]) for _ in range(3)]
    assert len(set(passes)) == 3


def test_new_examples_count_as_the_highest_scored():
    source = bound(Highest(1), warm_passes=0)
    source.observe(torch.tensor([0, 1, 2, 3, 5, 6, 7, 8, 9]), torch.full((9,), 1e30))
    assert drawn(source, 1, 1) == [[4]]


def test_weights_come_with_the_indices_and_know_the_progress():
    weights = bound(Highest(2), warm_passes=0).draw(2).weights
    assert weights.tolist() == [0.5, 0.5]


def test_a_pass_is_given_up_where_scores_are_to_be_newer():
    source = bound(Highest(6), warm_passes=0, redraw_every=2)
    source.observe(torch.arange(10), torch.arange(10.0))
    assert drawn(source, 2, 2) == [[9, 8], [7, 6]]
    source.observe(torch.arange(10), torch.arange(10.0).flip(0))
    assert drawn(source, 1, 2) == [[0, 1]]


def test_a_warm_pass_is_never_given_up():
    source = bound(Highest(6), redraw_every=1)
    first = [i for batch in drawn(source, 5, 2) for i in batch]
    assert sorted(first) == list(range(10))


@pytest.mark.parametrize(
    ("every", "passes"), [(1, [1, 2, 3, 4]), (2, [1, 3]), (3, [1, 4]), (None, [])]
)
def test_scores_are_computed_afresh_every_so_many_passes(every, passes):
    asked = []

    def rescore(positions):
        asked.append(number)
        return torch.arange(10.0)[positions]

    number = 0

    source = bound(Highest(10), rescore_every=every, rescore=rescore)
    while number < 5:
        source.draw(10)
        number += 1
    assert asked == passes
    if passes:
        assert source.scores.tolist() == list(range(10))


def test_the_highest_share_is_computed_afresh():
    asked = []

    def rescore(positions):
        asked.append(positions.tolist())
        return torch.zeros(len(positions))

    settings = {"rescore_every": 1, "rescore_share": 0.3, "rescore": rescore}
    source = bound(Highest(10), warm_passes=0, **settings)
    source.observe(torch.arange(10), torch.arange(10.0))
    source.draw(1)
    assert asked == [[7, 8, 9]]


def test_ranks_share_a_pass_out():
    sources = [bound(rank=rank, world_size=3) for rank in range(3)]
    parts = [drawn(source, 2, 2) for source in sources]  # 4 each, of a pass of 10
    seen = [i for part in parts for batch in part for i in batch]
    assert len(seen) == 12
    assert set(seen) == set(range(10))


def test_the_last_round_of_the_ranks_begins_again_at_the_first_example():
    sources = [
        bound(Highest(10), rank=rank, world_size=3, warm_passes=0) for rank in range(3)
    ]
    for source in sources:
        source.observe(torch.arange(10), torch.arange(10.0).flip(0))
    parts = [drawn(source, 1, 4) for source in sources]
    assert parts == [[[0, 3, 6, 9]], [[1, 4, 7, 0]], [[2, 5, 8, 1]]]


@pytest.mark.parametrize("count", [3, 9])  # used up, or given up after two batches
def test_a_resumed_source_goes_on_where_it_stopped(count):
    source = bound(Highest(count), redraw_every=2)
    drawn(source, 4, 3)
    source.observe(torch.arange(10), torch.arange(10.0))
    state = copy.deepcopy(source.state_dict())
    expected = drawn(source, 7, 3)

    resumed = PassSource(Highest(count), redraw_every=2)
    resumed.load_state_dict(state)
    resumed.bind(loading())

    assert drawn(resumed, 7, 3) == expected


def test_a_saved_state_does_not_change_afterwards():
    source = bound()
    state = source.state_dict()
    source.observe(torch.arange(10), torch.zeros(10))
    assert state["scores"].isinf().all()


def test_a_state_of_other_data_is_refused():
    resumed = PassSource(Shuffled())
    resumed.load_state_dict(bound().state_dict())
    with pytest.raises(ValueError, match="scores of 10 examples for 11"):
        resumed.bind(loading(11))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_scores_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="finite and at least 0"):
        bound().observe(torch.tensor([0]), torch.tensor([bad]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"warm_passes": -1},
            "`warm_passes` must be a whole number of at least 0, got -1",
        ),
        (
            {"redraw_every": 0},
            "`redraw_every` must be a whole number of at least 1, got 0",
        ),
        (
            {"rescore_every": 0},
            "`rescore_every` must be a whole number of at least 1, got 0",
        ),
        ({"rescore_share": 0.0}, r"`rescore_share` must be in \(0, 1\], got 0.0"),
        ({"start": 0.5, "end": 0.5}, "0 <= start < end <= 1, got 0.5 and 0.5"),
        ({"end": 1.1}, "got 0.0 and 1.1"),
        ({"rescore_share": 1.5}, r"`rescore_share` must be in \(0, 1\], got 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PassSource(Shuffled(), **settings)


def test_a_source_without_a_dataset_is_refused():
    with pytest.raises(RuntimeError, match="bound to a dataset"):
        PassSource(Shuffled()).draw(1)


@pytest.mark.parametrize(
    ("progress", "chooses"), [(0.1, 0), (0.2, 1), (0.7, 1), (0.8, 0)]
)
def test_a_source_chooses_in_its_part_of_the_run_alone(progress, chooses):
    asked = []

    def rescore(positions):
        asked.append(len(positions))
        return torch.zeros(len(positions))

    source = PassSource(Highest(3), warm_passes=0, rescore_every=1, start=0.2, end=0.8)
    source.bind(loading(rescore=rescore, progress=lambda: progress))
    source.draw(1)
    assert source.pass_size == (3 if chooses else 10)
    assert len(asked) == chooses


def test_a_part_of_a_run_must_know_its_length():
    source = PassSource(Shuffled(), warm_passes=0, end=0.5)
    source.bind(loading(progress=lambda: float("nan")))
    with pytest.raises(ValueError, match="must know its length"):
        source.draw(1)
