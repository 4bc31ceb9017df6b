"""Stop on a signal, between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

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
