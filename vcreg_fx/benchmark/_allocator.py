"""Whether memory that a step frees stays with the process, for the next step to use."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, for the rest of the process; return whether it can.

    By default glibc gives large blocks back at once and gets them anew, empty, from the system at
    the next use. That takes a varying time, here 5 to 15 % of a step, which says nothing of the
    work that is measured. Allocators made for servers, and torch's own on a GPU, keep them.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in other C libraries
    return mallopt is not None and all(
        mallopt(setting, value) == 1
        for setting, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER))
    )
