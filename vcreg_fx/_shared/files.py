"""Files that are there whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new file, which takes the place of `path` when it lies on the disk.

    After an exception, as where the disk is full, `path` is as it was, and the new file is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with naming(path):
        try:
            yield new
            sync(new)
            os.replace(new, path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system name a file, also where only its number was known."""
    try:
        yield
    except OSError as error:
        if not isinstance(error.filename, str):
            error.filename = str(path)
        raise


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of `replacing` a file that no process writes now."""
    for new in path.parent.glob(f".{path.name}.*"):
        new.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text, whole; what UTF-8 cannot hold is written as escapes, which JSON reads back."""
    with replacing(path) as new:
        new.write_bytes(text.encode("utf-8", "backslashreplace"))


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def printable(text: str) -> str:
    """Return a text in which whatever does not show itself is an escape: control characters, say.

    A terminal obeys them, and lone surrogates cannot be written at all.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
