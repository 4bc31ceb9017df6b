"""Who works on a trial: a process, which other processes can tell alive from dead."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Return what identifies this process among all that share a store."""
    pid = os.getpid()
    return {"machine": _machine(), "pid": pid, "started": _started(pid)}


def is_gone(owner: dict[str, Any]) -> bool:
    """Whether a process has ended for certain: it ran on this machine, and does not any more.

    Of a process on another machine nothing is certain; it is given up when its claim is no longer
    renewed.
    """
    if os.name != "posix" or owner.get("machine") != _machine():
        return False
    pid: int = owner["pid"]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # it is there, and belongs to someone else
    started: str | None = owner["started"]
    return _started(pid) != started


def _machine() -> str:
    """Name the machine; containers that share a host name have other process numbers."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {os.readlink(namespace) if namespace.is_symlink() else ''}"


def _started(pid: int) -> str | None:
    """Return when a process began, which tells it from a later one of the same number.

    None where the system does not say, or for a process that ended and waits to be noticed.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    values = text.rpartition(")")[2].split()
    return None if values[0] == "Z" else values[19]
