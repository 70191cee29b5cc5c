"""How many examples of a set to keep."""

from collections.abc import Mapping


def check_sizes(sizes: Mapping[str, int | None]) -> None:
    """Refuse to make parts of no examples.

    Args:
        sizes: How many examples to keep, by the name of the setting; None is not said.

    Raises:
        ValueError: If one is below 1.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(
                f"`{name}` must be at least 1, as no part of a data set may be empty, "
                f"got {size}. Leave it out for its default."
            )


def kept(name: str, size: int | None, there: int) -> int:
    """Return how many examples to keep: as many as asked for, or all.

    Args:
        name: Of the setting.
        size: Its value; None is all.
        there: How many there are.

    Raises:
        ValueError: If more are asked for.

    Example:
        >>> kept("n_train", 5, 10), kept("n_train", None, 10)
        (5, 10)
    """
    if size is not None and size > there:
        raise ValueError(
            f"`{name}` must be at most what there is, {there} examples, got {size}. "
            "Lower it, or leave it out for all of them."
        )
    return there if size is None else size
