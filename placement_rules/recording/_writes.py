"""In-place writes: noticed by the versions of tensors, found again by their memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from .._torch import storage_of, version_of


@dataclass(frozen=True)
class Write:
    """An in-place write: when it happened, which storage it changed, where."""

    time: int
    storage: int
    name: str


class Writes:
    """The in-place writes of one forward pass, added in the order of their times."""

    def __init__(self) -> None:
        self._of: dict[int, list[Write]] = {}  # by storage
        self._versions: dict[int, int] = {}  # of each storage, at its last sight

    def add(self, write: Write) -> None:
        """Note a write."""
        self._of.setdefault(write.storage, []).append(write)

    def after(self, storage: int, time: int) -> Write | None:
        """Return the first write to a storage after a time, if any."""
        writes = self._of.get(storage, [])
        place = bisect_right(writes, time, key=_time)
        return writes[place] if place < len(writes) else None

    def within(self, storage: int, start: int, end: int) -> bool:
        """Whether a storage was written to from one time to another."""
        write = self.after(storage, start - 1)
        return write is not None and write.time <= end

    def look(self, tensors: Iterable[Tensor], where: str, clock: Callable[[], int]) -> list[int]:
        """Notice which tensors were written to since they were last seen; return their versions.

        **Arguments:**

        - `tensors`: the arguments of a call.
        - `where`: what runs now, and may have written by calls that cannot be seen.
        - `clock`: gives the time of a write.
        """
        versions = []
        for tensor in tensors:
            storage, version = storage_of(tensor), version_of(tensor)
            if version > self._versions.get(storage, version):
                self.add(Write(clock(), storage, f"a call in {where}"))
            self._versions[storage] = version
            versions.append(version)
        return versions

    def saw(self, tensors: Iterable[Tensor]) -> None:
        """Note that tensors are now as a call that was seen left them."""
        for tensor in tensors:
            self._versions[storage_of(tensor)] = version_of(tensor)


def _time(write: Write) -> int:
    return write.time
