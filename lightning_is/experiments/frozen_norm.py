"""Batch normalisation by the statistics of a pretrained network, which stay."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class FrozenBatchNorm(nn.Module):
    """Normalises by running statistics in every mode; scale and shift still train.

    It is no `torch.nn.BatchNorm2d` in another mode, so that nobody who looks for those
    (evaluation loops, weight averaging, the conversion to synchronised ones) wakes it.
    Its state dict has the same keys.

    Args:
        norm: What it takes the place of, and shares parameters and buffers with.

    Raises:
        ValueError: If that keeps no running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm,
    ) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(
                "Only batch normalisation with running statistics can be frozen, got "
                f"{norm}. Take a network that keeps them, or frozen_statistics=false."
            )
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)

    @override
    def forward(self, x: Float[Tensor, "B C ..."]) -> Float[Tensor, "B C ..."]:
        return functional.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=False,
            eps=self.eps,
        )


def freeze_statistics(net: nn.Module) -> None:
    """Replace every batch normalisation inside a network by its frozen counterpart.

    Raises:
        ValueError: If one keeps no running statistics.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> freeze_statistics(net)
        >>> net
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
          (1): FrozenBatchNorm()
        )
    """
    for name, part in net.named_children():
        if isinstance(part, BATCH_NORMS):
            setattr(net, name, FrozenBatchNorm(part))
        else:
            freeze_statistics(part)
