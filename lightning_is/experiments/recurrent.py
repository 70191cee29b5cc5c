"""A recurrent network that reads an image one number at a time."""

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override


class PixelLSTM(nn.Module):
    """One LSTM over the numbers of an example in their order, and a linear classifier.

    Each number is a step; what is classified is the state after the last one. As in the
    reference implementation of the paper, which is written in Keras, recurrent weights
    begin orthogonal and the forget gate begins open (bias 1): without either, hundreds
    of steps leave nothing of the first ones.

    Args:
        classes: Logits to return.
        hidden: Units of the LSTM.

    References:
        Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 1997;
        Le, Jaitly and Hinton, "A Simple Way to Initialize Recurrent Networks of
        Rectified Linear Units", 2015, for images read pixel by pixel.

    Example:
        >>> import torch
        >>> PixelLSTM(classes=10, hidden=16)(torch.zeros(2, 1, 4, 4)).shape
        torch.Size([2, 10])
    """

    def __init__(self, classes: int, *, hidden: int = 128) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)
        self._initialise(hidden)

    @override
    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B classes"]:
        steps = x.flatten(1)[:, :, None]
        _, (state, _) = self.lstm(steps)
        logits: Tensor = self.head(state[-1])
        return logits

    def _initialise(self, hidden: int) -> None:
        weights = dict(self.lstm.named_parameters())
        nn.init.xavier_uniform_(weights["weight_ih_l0"])
        nn.init.orthogonal_(weights["weight_hh_l0"])
        for name in ("bias_ih_l0", "bias_hh_l0"):
            nn.init.zeros_(weights[name])
        # Gates lie one after the other: input, forget, cell, output.
        nn.init.ones_(weights["bias_ih_l0"].data[hidden : 2 * hidden])
