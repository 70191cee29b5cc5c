"""Private random numbers: every draw has a generator of its own."""

from torch import Generator

_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """Scramble 64 bits, so that neighbouring inputs give unrelated outputs."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def draw_generator(seed: int, rank: int, counter: int) -> Generator:
    """Make the generator of one draw from three integers.

    A run is then reproduced by two stored integers, seed and counter, on any number of
    ranks, and the global generator is never touched. It lives on the CPU, so the draws
    are the same whatever the device.

    Args:
        seed: Of the run, at least 0.
        rank: Of the process, at least 0.
        counter: Of the draw, at least 0.

    References:
        Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA
        2014, for the finaliser.

    Example:
        >>> import torch
        >>> a, b = draw_generator(0, 0, 7), draw_generator(0, 0, 7)
        >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
        True
    """
    state = 0
    for part in (seed, rank, counter):
        state = _mix((state + part + 0x9E3779B97F4A7C15) & _MASK)
    return Generator().manual_seed(state >> 1)
