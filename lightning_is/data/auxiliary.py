"""A small model that predicts the loss of an example from its past losses.

Shapes: ``N`` examples in the dataset, ``n`` of them at hand, ``slots`` losses of each.
"""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

LEAST, MOST = 1e-6, 1e6  # of a prediction: drawn now and then, and finite


@final
class LossModel(nn.Module):
    r"""Predicts a loss: two LSTM layers over past losses, the class beside them.

    The first layer hands its whole sequence to the second, whose state after the last
    known loss is joined to an embedding of the class; one linear layer makes a number
    of them. Empty slots do not count: they come last, so no earlier state sees them.

    Args:
        classes: Number of classes; None where examples have none.
        hidden: Size of either LSTM layer, and of the embedding.
        log: Learn and predict :math:`\log(\text{loss})`, from logarithms of the past.
        seed: Of the weights it begins with; global random states stay as they are.

    References:
        Katharopoulos & Fleuret, "Biased Importance Sampling for Deep Neural Network
        Training", 2017, arXiv 1706.00043. Only its abstract was read; layers and sizes
        follow the authors' program, and logarithms at the input are our choice.

    Example:
        >>> model = LossModel(classes=3)
        >>> past, known = torch.tensor([[1.0, 0.7, 0.0]]), torch.tensor([2])
        >>> model.predict(past, known, torch.tensor([1])).shape
        torch.Size([1])
    """

    def __init__(
        self,
        classes: int | None = None,
        *,
        hidden: int = 32,
        log: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.log = log
        with torch.random.fork_rng(devices=[]):
            # `torch.manual_seed` would seed the accelerators too, for good.
            torch.default_generator.manual_seed(seed)
            self.recurrent = nn.LSTM(1, hidden, num_layers=2, batch_first=True)
            self.embedding = None if classes is None else nn.Embedding(classes, hidden)
            self.head = nn.Linear(hidden if classes is None else 2 * hidden, 1)

    def forward(
        self,
        past: Float[Tensor, "n slots"],
        known: Int[Tensor, " n"],
        labels: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Return what `target` is compared with: losses, or their logarithms.

        Args:
            past: Past losses, oldest first, then empty slots of any finite content.
            known: How many slots of each row are filled, at least 1.
            labels: Class of each example; None without classes.
        """
        filled = past[:, : int(known.max())]  # none reads the others
        states, _ = self.recurrent(self.target(filled)[:, :, None])
        last = states[torch.arange(len(known)), known - 1]
        if self.embedding is not None:
            last = torch.cat([last, self.embedding(labels)], dim=1)
        guess: Tensor = self.head(last)
        return guess[:, 0]

    def target(self, losses: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Return what to learn of some losses; none above 1e6 or so small as log 0."""
        if self.log:
            return losses.clamp(LEAST, MOST).log()
        return losses.clamp(max=MOST)

    def loss(self, guess: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Turn what `forward` returns into losses, in ``[1e-6, 1e6]``."""
        return (guess.exp() if self.log else guess).clamp(LEAST, MOST)

    @torch.no_grad()
    def predict(
        self,
        past: Float[Tensor, "n slots"],
        known: Int[Tensor, " n"],
        labels: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Predict losses, in ``[1e-6, 1e6]``, without gradients."""
        return self.loss(self(past, known, labels))

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a state.

        Raises:
            ValueError: If it is that of a model of other sizes.
        """
        got = {name: tuple(value.shape) for name, value in state.items()}
        wanted = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        differ = sorted(n for n in got | wanted if got.get(n) != wanted.get(n))
        if differ:
            name = differ[0]
            raise ValueError(
                "A checkpoint must come from the same `hidden` and classes, got "
                f"{got.get(name)} instead of {wanted.get(name)} for `{name}`. Resume "
                "with the settings it was written with, or start afresh."
            )
        self.load_state_dict(state)


@final
class LossHistories:
    """The last losses of every example of a dataset, oldest first.

    Args:
        examples: Number of examples ``N``.
        slots: Losses kept of each.
        initial: Stands for the past of an example never seen. 1.0 is that of the
            authors' last program; one before used the loss of a network that knows
            nothing, the logarithm of the number of classes.

    Raises:
        ValueError: If ``slots`` is not at least 1.

    Example:
        >>> histories = LossHistories(examples=2, slots=3)
        >>> histories.observe(torch.tensor([1]), torch.tensor([0.5]))
        >>> histories.read(torch.tensor([1, 0]))
        (tensor([[1.0000, 0.5000, 0.0000],
                [1.0000, 0.0000, 0.0000]]), tensor([2, 1]))
    """

    def __init__(self, examples: int, slots: int = 10, initial: float = 1.0) -> None:
        if slots < 1:
            raise ValueError(
                f"`slots` must be at least 1, got {slots}. 10 losses are the usual."
            )
        self._table = torch.zeros(examples, slots)
        self._table[:, 0] = initial
        self._counts = torch.ones(examples, dtype=torch.int64)

    def read(
        self, indices: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n slots"], Int[Tensor, " n"]]:
        """Return the histories of some examples, and how many slots are filled."""
        return self._table[indices], self._counts[indices]

    def observe(self, indices: Int[Tensor, " n"], losses: Float[Tensor, " n"]) -> None:
        """Append losses; a full history loses its oldest.

        An example that occurs several times is appended once, by the mean of its
        losses: they are one moment of the training, in no order.

        Args:
            indices: Positions in the dataset, int64; may repeat.
            losses: Their losses.
        """
        distinct, places = torch.unique(indices, return_inverse=True)
        sums = torch.zeros(len(distinct), dtype=torch.float64)
        means = sums.index_add_(0, places, losses.double()) / places.bincount()
        rows, counts = self.read(distinct)
        full = counts == rows.shape[1]
        rows = torch.where(full[:, None], rows.roll(-1, dims=1), rows)
        counts = counts + (~full).long()
        rows.scatter_(1, counts[:, None] - 1, means.float()[:, None])
        self._table[distinct], self._counts[distinct] = rows, counts

    def state_dict(self) -> dict[str, Tensor]:
        """Return the losses and how many each example has."""
        return {"table": self._table.clone(), "counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state``.

        Raises:
            ValueError: If it has another number of examples or of slots.
        """
        got, wanted = tuple(state["table"].shape), tuple(self._table.shape)
        if got != wanted:
            raise ValueError(
                "A checkpoint must come from the same dataset and `slots`, got "
                f"{got[1]} slots of {got[0]} examples for {wanted[1]} of {wanted[0]}. "
                "Resume with the data and settings it was written with, or start "
                "afresh."
            )
        self._table = state["table"].clone()
        self._counts = state["counts"].clone()


@final
class Correlation:
    """Pearson's correlation of two quantities over the last few batches.

    Moments are averaged over batches, each counting 0.9 of the next.

    Example:
        >>> correlation = Correlation()
        >>> correlation.observe(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 7.0]))
        >>> round(correlation.value, 6)
        1.0
    """

    def __init__(self) -> None:
        self.moments = torch.zeros(6, dtype=torch.float64)

    @property
    def value(self) -> float:
        """The correlation, in ``[-1, 1]``; 0 of what is constant or not yet seen."""
        count, x, y, xx, yy, xy = self.moments.tolist()
        if count == 0:
            return 0.0
        x, y, xx, yy, xy = x / count, y / count, xx / count, yy / count, xy / count
        spread_x, spread_y = xx - x * x, yy - y * y
        if not (spread_x > 1e-12 * xx and spread_y > 1e-12 * yy):  # NaN, or rounding
            return 0.0
        ratio: float = (xy - x * y) / (spread_x * spread_y) ** 0.5
        return max(-1.0, min(1.0, ratio))

    def observe(self, first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> None:
        """Take in a batch of pairs."""
        x, y = first.double(), second.double()
        terms = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y])
        self.moments = 0.9 * self.moments + 0.1 * terms.mean(dim=1)
