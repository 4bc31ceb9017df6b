"""Build a model with a user's own factory."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ._errors import ModelError


def build_from_factory(name: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Return what the factory ``package.module:factory`` returns, or the module that it names.

    **Arguments:**

    - `options`: named arguments for the factory.

    The current directory is searched for the package first.

    **Raises:** `ModelError` that says which part of the name, or what in the factory, is wrong.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ModelError(f"{name!r} is not package.module:factory; a part is missing.")
    found = _find(import_module(module_name), module_name, attribute)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ModelError(f"{name} is a {type(found).__name__}, neither callable nor a module.")
    try:
        model = found(**(options or {}))
    except Exception as error:
        raise ModelError(
            f"{name}() raised {type(error).__name__}: {error}. A factory is called without "
            "arguments, or with those of --set."
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name}() returned a {type(model).__name__}, not a torch.nn.Module.")
    return model


def import_module(name: str) -> Any:
    """Import a user's module; the current directory is searched first.

    **Raises:** `ModelError` if it does not exist or raises.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModelError(
                f"There is no module {error.name!r}, neither in {here} nor among the installed "
                "packages."
            ) from error
        raise
    except Exception as error:
        raise ModelError(f"Importing {name} raised {type(error).__name__}: {error}") from error


def _find(module: Any, module_name: str, attribute: str) -> Any:
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), n=3)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise ModelError(f"{module_name} has no {attribute!r}.{hint}")
        found = getattr(found, part)
    return found
