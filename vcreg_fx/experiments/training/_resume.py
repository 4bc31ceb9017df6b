"""Stop on a signal between two steps, and go on from the file of the last whole epoch."""

from __future__ import annotations

import os
import random
import signal
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from ..._shared.files import remove_unfinished, replacing, sync
from ._distributed import Processes

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Training was stopped by a signal; the same call goes on after its last whole epoch.

    Like a `KeyboardInterrupt`, it is no mistake that an ablation would record as a failed trial.

    **Attributes:**

    - `signal`: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class Flag:
    """Whether a signal has arrived: its number, or 0."""

    def __init__(self) -> None:
        self.number = 0


@contextmanager
def noticed() -> Iterator[Flag]:
    """Keep the first SIGINT or SIGTERM as a flag; a second one acts as usual.

    Outside of the main thread, where Python does not deliver signals, nothing is changed.
    """
    flag = Flag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def notice(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as Python calls it
        flag.number = number
        _restore(before)

    for number in _SIGNALS:
        signal.signal(number, notice)
    try:
        yield flag
    finally:
        _restore(before)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def save(path: Path, state: dict[str, Any], where: Processes) -> None:
    """Write a checkpoint, whole, with the random states of all processes; keep the one before.

    Where that cannot be done, a warning says so.
    """
    states = where.gather(torch.get_rng_state())
    cuda = where.gather(torch.cuda.get_rng_state(where.device)) if _on_cuda(where) else []
    if where.leads:
        name, keys, *rest = np.random.get_state(legacy=True)
        random_states = {
            "torch": states,
            "cuda": cuda,
            "numpy": [name, np.asarray(keys).tolist(), *rest],
            "python": random.getstate(),
        }
        try:
            with replacing(path) as new:
                torch.save({**state, "random": random_states}, new)
                sync(new)
                if path.exists():
                    os.replace(path, before(path))
        except (OSError, RuntimeError) as error:  # torch's, where a disk is full
            warnings.warn(
                f"{path} cannot be written: {error}. Training goes on without it, and if it is "
                "stopped it goes on from the last checkpoint that could be.",
                stacklevel=3,
            )
    where.wait()


def before(path: Path) -> Path:
    """Return where the checkpoint before the last one lies."""
    return path.with_name(f"{path.name}.before")


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint with the one before it."""
    path.unlink(missing_ok=True)
    before(path).unlink(missing_ok=True)


def load(path: Path, where: Processes) -> dict[str, Any] | None:
    """Return a checkpoint and restore the random states; None if there is none.

    A damaged one is set aside with a warning that names it, and the one before it is used.

    **Raises:** `ValueError` if it was written by another number of processes.
    """
    if where.leads:
        remove_unfinished(path)
        set_aside_if_damaged(before(path))
        last = "the one before it" if before(path).exists() else "the beginning"
        set_aside_if_damaged(path, f"; training goes on from {last}")
        if not path.exists() and before(path).exists():
            os.replace(before(path), path)
    where.wait()
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    found = state.pop("random")
    if len(found["torch"]) != where.size:
        raise ValueError(
            f"{path} was written by {len(found['torch'])} processes; go on with as many, or "
            "remove it to begin again."
        )
    torch.set_rng_state(found["torch"][where.rank])
    if _on_cuda(where) and found["cuda"]:
        torch.cuda.set_rng_state(found["cuda"][where.rank], where.device)
    name, keys, *rest = found["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = found["python"]
    random.setstate((version, tuple(internal), gauss))
    return state


def set_aside_if_damaged(path: Path, then: str = "") -> None:
    """Rename a file of torch.save that is not whole, with a warning that names it."""
    if path.exists() and (damage := _damage(path)):
        aside = path.with_name(f"{path.name}.damaged")
        os.replace(path, aside)
        warnings.warn(
            f"{path} is damaged: {damage}. It was set aside as {aside}{then}.", stacklevel=4
        )


def _damage(path: Path) -> str:
    """Say what is wrong with a file, by the checksum that torch.save gives each entry of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            if entry := archive.testzip():
                return f"{entry} does not have its checksum"
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a reader makes of a file that is none
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def _on_cuda(where: Processes) -> bool:
    return where.device.type == "cuda"
