"""Write a module as the call that constructs it."""

from __future__ import annotations

import importlib
import inspect
import json
import math
from typing import Any

import torch
from torch import Tensor, nn

from placement_rules._torch import buffers_of, has_hooks, parameters_of

from ._errors import ExportError

_PLAIN = (bool, int, float, str, type(None), torch.dtype)
# Arguments that are kept under another name: as a tensor that is there or not.
_KEPT_AS = {"bias": ("bias", "in_proj_bias"), "add_bias_kv": ("bias_k",)}


def constructor(module: nn.Module, path: str) -> tuple[str, str | None]:
    """Return the call that makes a module like this one, and the import it needs.

    The call is tried: what it makes has to have the same parameters and attributes.

    **Arguments:**

    - `module`: a module of torch.nn, or any whose class keeps its arguments as attributes.
    - `path`: its path, for messages.

    **Returns:** such as ``("nn.Conv2d(3, 64, kernel_size=(7, 7), bias=False)", None)``.

    **Raises:** `ExportError` if no such call can be found, with the reason.
    """
    cls = type(module)
    _check_hooks(module, path)
    parameters = inspect.signature(cls).parameters
    values = {
        key: value
        for key, value in _arguments(module, path).items()
        if not _is_default(value, parameters[key].default)
    }
    try:
        with torch.device("meta"):
            made = cls(**values)
    except Exception as error:
        raise _refusal(module, path, f"{cls.__name__}({values}) raised {error!r}") from error
    if difference := _difference(made, module):
        raise _refusal(module, path, f"constructed anew it differs in {difference}")
    name, line = reference(cls, path)
    written = [
        source_of(value)
        if parameters[key].default is inspect.Parameter.empty
        else f"{key}={source_of(value)}"
        for key, value in values.items()
    ]
    return f"{name}({', '.join(written)})", line


def reference(target: Any, path: str) -> tuple[str, str | None]:
    """Return how code names a class or function, and the import that this needs.

    **Raises:** `ExportError` if it cannot be imported, as a local class.
    """
    name = target.__qualname__
    if getattr(nn, name, None) is target:
        return f"nn.{name}", None
    try:
        found: Any = importlib.import_module(target.__module__)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ExportError(
            f"{path} needs {target.__module__}.{name}, which cannot be imported: {error}. Define "
            "it at the top of a module that can be."
        ) from error
    if found is not target or target.__module__ == "__main__":
        raise ExportError(
            f"{path} needs {name} of {target.__module__}, which another program cannot import "
            "under this name. Define it at the top of a module that can be imported."
        )
    return name, f"from {target.__module__} import {name.partition('.')[0]}"


def source_of(value: Any) -> str:
    """Return a plain value as Python code."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, tuple):
        inner = ", ".join(source_of(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, list):
        return f"[{', '.join(source_of(item) for item in value)}]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _arguments(module: nn.Module, path: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, parameter in inspect.signature(type(module)).parameters.items():
        if key in {"device", "dtype"}:  # the weights bring both
            continue
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            continue
        kept = [name for name in _KEPT_AS.get(key, (key,)) if hasattr(module, name)]
        value = getattr(module, kept[0]) if kept else parameter.default
        if key in _KEPT_AS and (value is None or isinstance(value, Tensor)):
            value = value is not None
        if value is parameter.empty or not _is_plain(value):
            raise _refusal(module, path, f"it does not keep its argument {key}")
        values[key] = value
    return values


def _is_default(value: Any, default: Any) -> bool:
    """Whether an argument need not be written; ``(1, 1)`` is how a convolution keeps ``1``."""
    if isinstance(value, tuple) and isinstance(default, int) and value:
        return all(item == default for item in value)
    return type(value) is type(default) and bool(value == default)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, _PLAIN)


def _difference(made: nn.Module, module: nn.Module) -> str:
    """Return what differs between two modules; nothing about values, devices and types."""
    if repr(made) != repr(module):
        return f"what it shows: {made!r}"
    theirs = dict(module.named_modules())
    for path, ours in made.named_modules():
        other = theirs.get(path)
        if other is None or type(ours) is not type(other):
            return f"its part {path}"
        for kind, table in (("parameters", parameters_of), ("buffers", buffers_of)):
            shapes = [
                {key: None if t is None else t.shape for key, t in table(one).items()}
                for one in (ours, other)
            ]
            if shapes[0] != shapes[1]:
                return f"its {kind}: {shapes[0]} and {shapes[1]}"
        own = type(ours).__module__.startswith("torch.nn.")  # others may put private marks on it
        for key, value in vars(other).items():
            if key == "training" or (own and key[0] == "_" and key not in vars(ours)):
                continue
            if _is_plain(value) and vars(ours).get(key, ...) != value:
                return f"{key}: {vars(ours).get(key)!r} and {value!r}"
    return ""


def _check_hooks(module: nn.Module, path: str) -> None:
    for part in module.modules():
        if has_hooks(part):
            raise _refusal(module, path, "it has hooks, which are no part of its code")


def _refusal(module: nn.Module, path: str, reason: str) -> ExportError:
    return ExportError(
        f"{path} ({type(module).__name__}) cannot be written as Python code: {reason}. "
        'format="pt2" and format="onnx" need no code.'
    )
