"""Claims: which process works on which trial, agreed on through files alone.

A claim is a file that is made whole, which one process wins. It is renewed while the trial runs.
Where its process has ended, or does not renew it, the next process makes a claim with the next
number; the highest number holds. No claim is ever taken away from under its owner, so there is no
moment in which two processes can disagree.

No clocks are compared: a claim is given up by a process that has seen it unchanged for long enough,
and that writes this down beside it (``.lost``). Claims of lost processes stay until the trial is
finished; so many there are, so often it was begun in vain.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._shared.files import naming

Owner = dict[str, Any]  # of a claim; empty where the file says nothing


@dataclass(frozen=True)
class Standing:
    """How the claims on a trial stand.

    **Attributes:**

    - `number`: of the next claim.
    - `holder`: what has a claim on it now; None if nothing has.
    - `lost`: what had one, and was lost.
    """

    number: int = 0
    holder: Owner | None = None
    lost: tuple[Owner, ...] = ()

    @property
    def deaths(self) -> int:
        """How often a process was lost that would not have ended for another trial's sake."""
        return sum(bool(owner.get("alone")) for owner in self.lost)


class Claim:
    """A claim of this process on a trial. As a context, it is renewed; afterwards given back.

    **Attributes:**

    - `deaths`: of earlier processes, see `Standing`.
    """

    def __init__(self, path: Path, lost_after: float, deaths: int) -> None:
        self.path, self.deaths = path, deaths
        self._pause = lost_after / 4
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    @property
    def is_held(self) -> bool:
        """Whether no other process has given this one up for lost."""
        return self.path.exists() and not _mark(self.path).exists()

    def __enter__(self) -> Claim:
        """Begin to renew the claim."""
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_error: object) -> None:
        """Give the claim back; without an exception, the trial is finished."""
        self._over.set()
        self._thread.join()
        self.give_back(finished=kind is None)

    def give_back(self, *, finished: bool) -> None:
        """Remove the claim; if the trial is finished, with those of lost processes before."""
        mine = claims_of(self.path.parent, self.path.stem) if finished else [self.path]
        _remove(path for path in mine if _number(path) <= _number(self.path))

    def _renew(self) -> None:
        while not self._over.wait(self._pause):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return  # another process gave this one up for lost, and has finished the trial
            except OSError:
                continue  # the network may be back before others give this process up


class Claims:
    """The claims on the trials of a store.

    **Arguments:**

    - `folder`: where they lie.
    - `lost_after`: seconds in which a claim has to change.
    """

    def __init__(self, folder: Path, lost_after: float) -> None:
        self._folder, self._lost_after = folder, lost_after
        self._seen: dict[Path, tuple[int, float]] = {}  # claim → when it was renewed, first seen

    def make(self, trial: str, *, alone: bool) -> Claim | None:
        """Return a claim on a trial; None if another process has one.

        **Arguments:**

        - `alone`: whether this process would not be ended for the sake of another trial's.

        **Raises:** `OSError` if it cannot be written; then there is none.
        """
        standing = self._standing(claims_of(self._folder, trial))
        if standing.holder is not None:
            return None
        path = self._folder / f"{trial}.{standing.number}"
        text = json.dumps({**this_process(), "alone": alone})
        try:
            with naming(path):
                self._write(path, text)
        except FileExistsError:
            return None  # another process was faster
        return Claim(path, self._lost_after, standing.deaths)

    def _write(self, path: Path, text: str) -> None:
        """Write a file that does not exist, whole; one of many processes succeeds."""
        new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            new.write_text(text)
            try:
                os.link(new, path)
            except FileExistsError:
                raise
            except OSError:  # a file system without links, as FAT: half a claim is nobody's
                with path.open("x") as file:
                    file.write(text)
        finally:
            new.unlink(missing_ok=True)

    def standings(self) -> dict[str, Standing]:
        """Return how the claims stand on all trials that have any."""
        found = defaultdict(list)
        for path in self._folder.iterdir():
            if _is_claim(path):
                found[path.stem].append(path)
        return {trial: self._standing(paths) for trial, paths in found.items()}

    def clear(self, trial: str) -> None:
        """Remove the claims on a finished trial, such as of a process that was killed just then."""
        _remove([*claims_of(self._folder, trial), *self._folder.glob(f".{trial}.*")])

    def _standing(self, paths: Iterable[Path]) -> Standing:
        owners = [(path, self._owner(path)) for path in sorted(paths, key=_number)]
        present = [(path, owner) for path, owner in owners if owner is not None]
        if not present:
            return Standing()
        last, owner = present[-1]
        lost = [owner for _, owner in present[:-1]]
        if self._is_lost(last, owner):
            return Standing(_number(last) + 1, None, (*lost, owner))
        return Standing(_number(last) + 1, owner, tuple(lost))

    def _owner(self, path: Path) -> Owner | None:
        """Return what made a claim; None if it was given back a moment ago."""
        try:
            owner = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            return {}  # made a moment ago, or damaged
        return owner if isinstance(owner, dict) else {}

    def _is_lost(self, path: Path, owner: Owner) -> bool:
        if _mark(path).exists() or is_gone(owner):
            return True
        try:
            with path.open() as file:  # opening asks a file server; what a client keeps may be old
                renewed = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return False  # given back a moment ago
        now = time.monotonic()
        before, since = self._seen.setdefault(path, (renewed, now))
        if before != renewed:
            self._seen[path] = renewed, now
        elif now - since > self._lost_after:
            _mark(path).touch()
            return True
        return False


def claims_of(folder: Path, trial: str) -> list[Path]:
    """Return the claims on a trial, by number."""
    return sorted(filter(_is_claim, folder.glob(f"{trial}.*")), key=_number)


def _remove(claims: Iterable[Path]) -> None:
    for path in claims:
        path.unlink(missing_ok=True)
        _mark(path).unlink(missing_ok=True)


def _is_claim(path: Path) -> bool:
    return path.suffix[1:].isdigit()


def _number(path: Path) -> int:
    return int(path.suffix[1:])


def _mark(path: Path) -> Path:
    """Return the file that says that a claim was given up for lost."""
    return path.with_name(f"{path.name}.lost")


def this_process() -> Owner:
    """Return what identifies this process among all that share a store."""
    pid = os.getpid()
    return {"machine": _machine(), "pid": pid, "started": _started(pid)}


def in_words(owner: Owner) -> str:
    """Say which process made a claim."""
    if not {"pid", "machine"} <= owner.keys():
        return "a process that did not write down which it is"
    return f"process {owner['pid']} on {str(owner['machine']).partition(' ')[0]}"


def is_gone(owner: Owner) -> bool:
    """Whether a process has ended for certain: it ran on this machine, and does not any more.

    Of a process on another machine nothing is certain; it is given up when its claim is no longer
    renewed.
    """
    pid = owner.get("pid")
    if os.name != "posix" or owner.get("machine") != _machine() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False  # it is there, and belongs to someone else
    return _started(pid) != owner.get("started")


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
