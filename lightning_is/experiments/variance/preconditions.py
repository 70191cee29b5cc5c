"""What a measurement rests on: plain settings, and a Trainer that can be measured."""

from lightning import Trainer

from lightning_is.sampling import ImportancePlan
from lightning_is.scoring import UpperBound
from lightning_is.settings import Settings

_PRECISE = ("32-true", "64-true")


def plain_settings(batch_size: int) -> Settings:
    """Return the settings of a callback that draws so many and is otherwise plain."""
    return Settings(
        batch_size=batch_size,
        scorer=UpperBound(),
        plan=ImportancePlan(),
        when_closed="all",
        head=None,
        per_sample_loss=None,
        index_fn=None,
        score_mode="eval",
        scale_factor=1.0,
        bad_scores="raise",
        score_chunk_size=batch_size,
    )


def refuse_trainer(trainer: Trainer) -> None:
    """Refuse several processes, and numbers too coarse to tell gradients apart.

    Raises:
        RuntimeError: If the Trainer has them.
    """
    if trainer.world_size > 1:
        raise RuntimeError(
            "Draws are measured in one process, got a Trainer with "
            f"{trainer.world_size}. Use `trainer.devices=1`."
        )
    if trainer.precision not in _PRECISE:
        raise RuntimeError(
            "Differences of gradients are measured in full precision, got "
            f"`{trainer.precision}`, whose rounding they may drown in. Use "
            "`trainer.precision=32-true`."
        )
