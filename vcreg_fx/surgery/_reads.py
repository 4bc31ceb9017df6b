"""Which plain values a forward reads, while it is traced: those that tracing bakes in."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

_PLAIN = (bool, int, float, str, type(None))
Read = tuple[str, str]  # the path of a module below the root, and its attribute


@contextmanager
def watch_reads(root: nn.Module, read: dict[Read, Any]) -> Iterator[None]:
    """Note which attributes of the root and of the modules below it are read, and their values."""
    paths = {module: path for path, module in root.named_modules()}

    def noting(self: nn.Module, name: str) -> Any:
        value = before(self, name)
        if not name.startswith("__") and self in paths and name in before(self, "__dict__"):
            tables = ("_parameters", "_buffers", "_modules", "_forward_hooks")
            if name not in tables and not isinstance(value, (nn.Module, torch.Tensor, fx.Proxy)):
                read.setdefault((paths[self], name), value)
        return value

    own = nn.Module.__dict__.get("__getattribute__")
    before = nn.Module.__getattribute__
    nn.Module.__getattribute__ = noting  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        if own is None:
            del nn.Module.__getattribute__
        else:
            nn.Module.__getattribute__ = own  # type: ignore[method-assign]


def is_plain(value: Any) -> bool:
    """Whether a value cannot change without being replaced."""
    if isinstance(value, (tuple, list)):
        return all(is_plain(item) for item in value)
    return isinstance(value, (*_PLAIN, torch.dtype, torch.device)) or inspect.isroutine(value)


def same(one: Any, other: Any) -> bool:
    """Whether two plain values are equal, and of one type."""
    return one is other or (type(one) is type(other) and bool(one == other))
