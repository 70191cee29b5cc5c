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


def kept(name: str, size: int | None, there: int, takers: str) -> int:
    """Return how many examples to keep: as many as asked for, or all.

    Args:
        name: Of the setting.
        size: Its value; None is all.
        there: How many there are.
        takers: Settings that may have taken others away.

    Raises:
        ValueError: If more are asked for.

    Example:
        >>> kept("n_train", 5, 10, "`n_val`"), kept("n_train", None, 10, "`n_val`")
        (5, 10)
    """
    if size is not None and size > there:
        raise ValueError(
            f"`{name}` must be at most what there is, {there} examples, got {size}. "
            f"Lower it, or what takes others away ({takers}); leave it out for all of "
            "them."
        )
    return there if size is None else size
