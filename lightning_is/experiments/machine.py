"""What a measurement asks of the machine."""

import ctypes
import platform

# One arena, no mappings of single blocks, nothing trimmed; numbers from malloc.h.
_MALLOC = {-8: 1, -3: 2**30, -1: 2**31 - 1}
_RETURNED = {-8: 1, -3: 2**16, -1: 0}  # blocks of their own, all trimmed


def steady_memory() -> None:
    """Let the C library give no memory back, where it can be told so (glibc).

    Otherwise each thread has memory of its own kind, some of which is fetched from the
    system anew at every step: the same program then differs by a tenth from itself.
    """
    _tell(_MALLOC)


def returned_memory() -> None:
    """Let the C library give all memory back at once, where it can be told so (glibc).

    What a process holds is then what the program does: for measurements of memory.
    """
    _tell(_RETURNED)


def _tell(options: dict[int, int]) -> None:
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for option, value in options.items():
            library.mallopt(option, value)
