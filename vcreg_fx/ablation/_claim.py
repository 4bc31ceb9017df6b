"""Claims: which process works on which trial, agreed on through files alone.

A claim is a file made with O_EXCL, which one process wins. It is renewed while the trial runs.
Where its process has ended, or did not renew it for long, the next process makes a claim with the
next number; the highest number holds. No claim is ever taken away from under its owner, so there is
no moment in which two processes can disagree.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from pathlib import Path
from typing import Any


class Claim:
    """A claim of this process on a trial. As a context, it is renewed; afterwards released."""

    def __init__(self, path: Path, lost_after: float) -> None:
        self.path = path
        self._pause = lost_after / 4
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Claim:
        """Begin to renew the claim."""
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Release the claim, with those of processes that were lost before."""
        self._over.set()
        self._thread.join()
        for path in [*claims_of(self.path.parent, self.path.stem), self.path]:
            if _number(path) <= _number(self.path):
                path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._over.wait(self._pause):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return  # another process gave this one up for lost, and has finished the trial


def make_claim(folder: Path, trial: str, lost_after: float) -> Claim | None:
    """Return a claim on a trial; None if a living process has one."""
    present = claims_of(folder, trial)
    if present and not _is_lost(present[-1], lost_after):
        return None
    number = _number(present[-1]) + 1 if present else 0
    path = folder / f"{trial}.{number}"
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return None  # another process was faster
    with os.fdopen(handle, "w") as file:
        json.dump(this_process(), file)
    return Claim(path, lost_after)


def claims_of(folder: Path, trial: str) -> list[Path]:
    """Return the claims on a trial, by number."""
    found = [path for path in folder.glob(f"{trial}.*") if path.suffix[1:].isdigit()]
    return sorted(found, key=_number)


def is_abandoned(folder: Path, trial: str, lost_after: float) -> bool:
    """Whether a process claimed the trial and was lost."""
    present = claims_of(folder, trial)
    return bool(present) and _is_lost(present[-1], lost_after)


def is_running(folder: Path, trial: str, lost_after: float) -> bool:
    """Whether a living process has a claim on the trial."""
    present = claims_of(folder, trial)
    return bool(present) and not _is_lost(present[-1], lost_after)


def _is_lost(path: Path, lost_after: float) -> bool:
    try:
        renewed = path.stat().st_mtime
        owner: dict[str, Any] | None = json.loads(path.read_text())
    except FileNotFoundError:
        return True  # released a moment ago: whoever asks will find the trial done, or free
    except json.JSONDecodeError:
        owner = None  # made a moment ago, or its process was killed while writing it
    if owner is not None and is_gone(owner):
        return True
    return _now(path.parent) - renewed > lost_after


def _now(folder: Path) -> float:
    """Return the time by the clock of the file system, which all machines share."""
    probe = folder / f".clock-{uuid.uuid4().hex}"
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now


def _number(path: Path) -> int:
    return int(path.suffix[1:])


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
