"""What a measurement asks of the machine."""

import ctypes
import platform

# One arena, no mappings of single blocks, nothing trimmed; numbers from malloc.h.
_MALLOC = {-8: 1, -3: 2**30, -1: 2**31 - 1}


def steady_memory() -> None:
    """Let the C library give no memory back, where it can be told so (glibc).

    Otherwise each thread has memory of its own kind, some of which is fetched from the
    system anew at every step: the same program then differs by a tenth from itself.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for option, value in _MALLOC.items():
            library.mallopt(option, value)
