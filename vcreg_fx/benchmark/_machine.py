"""What a timing is taken on, and whether memory that a step frees stays with the process."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

import torch


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Return processor, graphics card, threads and versions; nothing that names the machine."""
    found: dict[str, str | int] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
    }
    if device.type == "cuda":
        found["graphics card"] = torch.cuda.get_device_name(device)
        found["cuda"] = str(torch.version.cuda)
    return found


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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
