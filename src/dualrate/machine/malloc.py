"""glibc's allocator, told to keep what a network frees.

By default a large tensor is mapped from the kernel anew and given back when freed, so each training iteration pays for
its pages being cleared again: a sixth of the CPU time of a Fashion-MNIST training iteration (docs/results/speed.md).
The command line does it at start; a program that uses the library decides for itself.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of <malloc.h>


def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and never shrink it. False where the C library has no such settings."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20))
    return all(mallopt(name, value) == 1 for name, value in settings)
