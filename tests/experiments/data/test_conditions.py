"""Classes are picked, thinned and mislabelled as asked, and only where asked."""

import pytest
import torch

from lightning_is.experiments.data import Conditions, Digits, Splits, TensorSet

LABELS = torch.arange(6000) % 6  # 1000 examples of each


def whole(labels=LABELS):
    part = TensorSet(torch.arange(len(labels)), labels)
    return Splits(part, part, {"test": part})


def test_without_conditions_nothing_changes():
    before, after = whole(), Conditions()(whole())
    for one, other in ((before.train, after.train), (before.val, after.val)):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)
    assert list(after.tests) == ["test"]


def test_kept_classes_are_numbered_as_they_are_listed_in_every_part():
    after = Conditions(classes=[4, 0, 3])(whole())
    old = [int(label) for label in LABELS if label in (4, 0, 3)]
    for part in (after.train, after.val, after.tests["test"]):
        assert (part.x % 6).tolist() == old  # in their order
        assert part.y.tolist() == [[4, 0, 3].index(label) for label in old]


def test_rare_classes_keep_their_share_of_training_and_no_other_part_loses_any():
    after = Conditions(rare_classes=[1, 5], rare_share=0.013)(whole())
    assert torch.bincount(after.train.y).tolist() == [1000, 13, 1000, 1000, 1000, 13]
    assert after.train.x.tolist() == sorted(after.train.x.tolist())  # in their order
    assert len(after.val) == 6000
    assert sorted(after.tests["common"].y.unique().tolist()) == [0, 2, 3, 4]
    assert after.tests["rare"].y.unique().tolist() == [1, 5]
    assert [len(part) for part in after.tests.values()] == [4000, 2000]


def test_a_rare_class_keeps_one_example_at_least():
    after = Conditions(rare_classes=[2], rare_share=0.0)(whole())
    assert torch.bincount(after.train.y)[2] == 1


def test_who_stays_of_a_rare_class_is_chosen_by_chance():
    chosen = [
        Conditions(rare_classes=[0], rare_share=0.1, seed=seed)(whole()).train
        for seed in range(20)
    ]
    kept = torch.stack([part.x[part.y == 0] for part in chosen]) / 6  # of 0 to 999
    # Of uniform positions the mean is 499.5 and the deviation 289.
    assert (kept.double().mean() - 499.5).abs() < 4 * 289 / kept.numel() ** 0.5


def test_the_asked_share_of_training_labels_becomes_any_other_class():
    after = Conditions(label_noise=0.2)(whole())
    wrong = after.train.y != LABELS
    assert wrong.sum() == 1200
    steps = torch.bincount((after.train.y - LABELS)[wrong] % 6, minlength=6)
    assert steps[0] == 0
    error = (1200 * 0.2 * 0.8) ** 0.5  # of a binomial count
    assert (steps[1:] - 240).abs().max() < 4 * error
    place = wrong.nonzero().double().mean()  # of 0 to 5999, deviation 1732
    assert (place - 2999.5).abs() < 4 * 1732 / 1200**0.5
    assert torch.equal(after.val.y, LABELS)
    assert torch.equal(after.tests["test"].y, LABELS)


def test_noise_stays_within_the_classes_that_are_kept():
    after = Conditions(classes=[5, 2], label_noise=1.0)(whole())
    right = [[5, 2].index(int(x) % 6) for x in after.train.x]
    assert after.train.y.tolist() == [1 - label for label in right]
    assert after.val.y.tolist() == right


def test_rare_classes_are_named_as_the_set_numbers_them():
    after = Conditions(classes=[4, 5, 0], rare_classes=[5], rare_share=0.1)(whole())
    assert torch.bincount(after.train.y).tolist() == [1000, 100, 1000]
    assert after.tests["rare"].y.unique().tolist() == [1]


def test_the_seed_alone_decides_and_each_chance_has_its_own():
    state = torch.get_rng_state()
    settings = {"rare_classes": [1], "rare_share": 0.5}
    one = Conditions(**settings)(whole()).train
    again = Conditions(**settings)(whole()).train
    other = Conditions(**settings, seed=1)(whole()).train
    noisy = Conditions(**settings, label_noise=0.5)(whole()).train
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.x, again.x)
    assert not torch.equal(one.x, other.x)
    assert torch.equal(one.x, noisy.x)  # the same are left, whatever their labels
    first, second = (
        Conditions(label_noise=0.1, seed=s)(whole()).train.y for s in (0, 1)
    )
    assert not torch.equal(first, second)


def test_the_digits_take_them(tmp_path):
    conditions = Conditions(classes=[3, 8, 1], rare_classes=[8], label_noise=0.1)
    plain, data = Digits().splits, Digits(conditions=conditions).splits
    counts = torch.bincount(plain.train.y)
    left = counts[[3, 1]].sum() + round(0.05 * int(counts[8]))
    assert len(data.train) == left
    assert list(data.tests) == ["common", "rare"]
    assert len(data.tests["rare"]) == (plain.tests["test"].y == 8).sum()
    assert sorted(data.val.y.unique().tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_noise": 1.2}, r"`label_noise`.*within \[0, 1\], got 1.2"),
        ({"label_noise": float("nan")}, r"within \[0, 1\], got nan"),
        ({"rare_share": -0.1}, r"`rare_share`.*within \[0, 1\], got -0.1"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"classes": [1]}, r"two or more.*got \[1\]"),
        ({"classes": [1, 2, 1]}, r"different labels.*got \[1, 2, 1\]"),
        ({"rare_classes": [-1]}, r"from 0 on, got \[-1\]"),
        ({"classes": [1, 2], "rare_classes": [3]}, r"rare_classes=\[3\] of classes="),
        ({"classes": [1, 2], "rare_classes": [1, 2]}, "and not all"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(settings, message):
    with pytest.raises(ValueError, match=message):
        Conditions(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": [0, 7]}, r"got \[7\], of which there are none.*\[0, 1, 2, 3, 4"),
        ({"rare_classes": [9]}, r"got \[9\], of which there are none"),
        ({"rare_classes": [0, 1, 2, 3, 4, 5]}, "Some class must stay common"),
    ],
)
def test_what_a_set_cannot_meet_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Conditions(**settings)(whole())


def test_noise_among_one_class_is_refused():
    with pytest.raises(ValueError, match="needs another class to name"):
        Conditions(label_noise=0.5)(whole(torch.zeros(8).long()))
