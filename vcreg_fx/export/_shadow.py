"""Stand-ins that share everything with a module but its class."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from placement_rules._torch import FORWARD_HOOKS

from ..surgery import original_class


def shadow(module: nn.Module, cls: type[nn.Module] | None = None) -> nn.Module:
    """Return a module of another class with the same parameters, buffers, children, attributes.

    **Arguments:**

    - `module`: it is not changed.
    - `cls`: the class; by default the one that the module had before VCReg was inserted.
    """
    cls = original_class(module) if cls is None else cls
    made: nn.Module = cls.__new__(cls)
    kept: dict[str, Any] = {
        name: value for name, value in module.__dict__.items() if not name.startswith("vcreg_")
    }
    made.__dict__.update(kept)
    made.__dict__.update({name: OrderedDict() for name in FORWARD_HOOKS})  # tracing would run them
    return made
