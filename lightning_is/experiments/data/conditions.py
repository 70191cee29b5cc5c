"""What is done to labelled examples before anybody learns from them.

Which classes there are, how many labels are wrong, which classes are rare: conditions
under which methods of sampling differ. Shapes: ``N`` labels, ``M`` of them kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Generator, Tensor

from lightning_is.experiments.data.tensors import Splits, TensorSet
from lightning_is.sampling.randomness import draw_generator

_THINNING, _NOISE = 0, 1  # each with random numbers of its own


@dataclass(frozen=True)
class Conditions:
    """Classes to keep, to make rare, and labels to spoil, in that order.

    Validation and test lose the same classes and are otherwise left alone. Where some
    are rare, the test part becomes two, ``common`` and ``rare``.

    Args:
        classes: Labels to keep, renumbered 0, 1, ... as they are listed; None is all.
        label_noise: Share of the training labels that become another class, any of the
            others as likely.
        rare_classes: Labels of rare classes, as the set numbers them.
        rare_share: Share of their training examples to keep, at least one of a class.
        seed: Of what is random here, at least 0.

    Raises:
        ValueError: If a share is none, the seed negative, or the lists make no sense.

    Example:
        >>> animals = TensorSet(torch.arange(6), torch.tensor([5, 7, 9, 5, 7, 9]))
        >>> whole = Splits(animals, animals, {"test": animals})
        >>> some = Conditions(classes=[9, 5])(whole).train
        >>> some.x.tolist(), some.y.tolist()
        ([0, 2, 3, 5], [1, 0, 1, 0])
    """

    classes: Sequence[int] | None = None
    label_noise: float = 0.0
    rare_classes: Sequence[int] = ()
    rare_share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        shares = {"label_noise": self.label_noise, "rare_share": self.rare_share}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(
                    f"`{name}` is a share and must be within [0, 1], got {share}. Give "
                    "it as a fraction, e.g. 0.2 for a fifth."
                )
        if self.seed < 0:
            raise ValueError(
                f"`seed` must be at least 0, got {self.seed}. Any such number will do."
            )
        _check_labels("rare_classes", self.rare_classes)
        if self.classes is not None:
            _check_labels("classes", self.classes)
            self._check_choice(self.classes)

    def _check_choice(self, classes: Sequence[int]) -> None:
        if len(classes) < 2:
            raise ValueError(
                f"`classes` must leave two or more to tell apart, got {list(classes)}. "
                "Name more, or leave it out for all."
            )
        if not set(self.rare_classes) < set(classes):
            raise ValueError(
                "Rare classes must be some of those that are kept, and not all, got "
                f"rare_classes={list(self.rare_classes)} of classes={list(classes)}. "
                "Both are labels as the set numbers them."
            )

    def rows(self, labels: Int64[Tensor, " N"]) -> Int64[Tensor, " M"]:
        """Find the examples whose class is kept, in their order."""
        if self.classes is None:
            return torch.arange(len(labels))
        return torch.isin(labels, torch.tensor(list(self.classes))).nonzero()[:, 0]

    def check(self, labels: Int64[Tensor, " N"]) -> None:
        """Refuse conditions that training examples with these labels cannot meet.

        Raises:
            ValueError: If a class has no example, or none is common.
        """
        there = set(labels.tolist())
        missing = {*(self.classes or ()), *self.rare_classes} - there
        if missing:
            raise ValueError(
                "Classes must be labels of training examples, got "
                f"{sorted(missing)}, of which there are none. Choose among "
                f"{sorted(there)}, or load more examples."
            )
        if self.rare_classes and not there - set(self.rare_classes):
            raise ValueError(
                "Some class must stay common, got rare_classes="
                f"{list(self.rare_classes)} and no other label. Name fewer."
            )

    def __call__(self, splits: Splits) -> Splits:
        """Bring the parts of a data set into these conditions.

        Raises:
            ValueError: If they cannot be met.
        """
        self.check(splits.train.y)
        kept = {name: self._kept(part) for name, part in splits.tests.items()}
        train = self._kept(splits.train)
        if self.rare_classes:
            share, generator = self.rare_share, draw_generator(self.seed, 0, _THINNING)
            train = _part(train, thinned(train.y, self.rare_classes, share, generator))
            kept = told_apart(kept, self.rare_classes)
        train = self._renumbered(train)
        if self.label_noise > 0:
            generator = draw_generator(self.seed, 0, _NOISE)
            train = replace(train, y=spoilt(train.y, self.label_noise, generator))
        tests = {name: self._renumbered(part) for name, part in kept.items()}
        return Splits(train, self._renumbered(self._kept(splits.val)), tests)

    def _kept(self, part: TensorSet) -> TensorSet:
        rows = self.rows(part.y)
        return part if len(rows) == len(part) else _part(part, rows)

    def _renumbered(self, part: TensorSet) -> TensorSet:
        if self.classes is None:
            return part
        numbers = torch.zeros(max(self.classes) + 1, dtype=torch.int64)
        numbers[list(self.classes)] = torch.arange(len(self.classes))
        return replace(part, y=numbers[part.y])


def thinned(
    labels: Int64[Tensor, " N"], rare: Sequence[int], share: float, generator: Generator
) -> Int64[Tensor, " M"]:
    """Find what is left, in its order, when some classes keep a share of theirs.

    Args:
        labels: Of all examples.
        rare: The classes; of each at least one example is left.
        share: What they keep, rounded.
        generator: Chooses which.
    """
    order = torch.randperm(len(labels), generator=generator)
    left = torch.ones(len(labels), dtype=torch.bool)
    for label in rare:
        own = order[labels[order] == label]
        left[own[max(round(share * len(own)), 1) :]] = False
    return left.nonzero()[:, 0]


def spoilt(
    labels: Int64[Tensor, " N"], share: float, generator: Generator
) -> Int64[Tensor, " N"]:
    """Give a share of the labels another value, any other as likely.

    Args:
        labels: From 0 to the largest one, which tells how many classes there are.
        share: What is spoilt, rounded.
        generator: Chooses which labels, and what they become.

    Raises:
        ValueError: If there is no other class.
    """
    classes = int(labels.max()) + 1
    if classes < 2:
        raise ValueError(
            "Label noise needs another class to name, got labels that are all 0. Load "
            "examples of other classes, or set label_noise=0."
        )
    wrong = torch.randperm(len(labels), generator=generator)
    wrong = wrong[: round(share * len(labels))]
    steps = torch.randint(1, classes, wrong.shape, generator=generator)
    found = labels.clone()
    found[wrong] = (labels[wrong] + steps) % classes
    return found


def told_apart(
    tests: Mapping[str, TensorSet], rare: Sequence[int]
) -> dict[str, TensorSet]:
    """Divide the one test part into its common and its rare examples."""
    (part,) = tests.values()
    is_rare = torch.isin(part.y, torch.tensor(list(rare)))
    rows = {"common": (~is_rare).nonzero()[:, 0], "rare": is_rare.nonzero()[:, 0]}
    return {name: _part(part, own) for name, own in rows.items()}


def _part(data: TensorSet, rows: Tensor) -> TensorSet:
    return replace(data, x=data.x[rows], y=data.y[rows])


def _check_labels(name: str, labels: Sequence[int]) -> None:
    """Refuse what cannot be a list of different labels."""
    if len(set(labels)) < len(labels) or any(label < 0 for label in labels):
        raise ValueError(
            f"`{name}` must be different labels from 0 on, got {list(labels)}. Name "
            "each class once."
        )
