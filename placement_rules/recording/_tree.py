"""Tensors inside nested outputs: where they are, how to read one, how to put one back.

A path is a tuple of keys: an index for tuples and lists, a key for mappings, a field name for
dataclasses. The empty path is the value itself.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Path = tuple[int | str, ...]


def leaves(value: Any, prefix: Path = ()) -> list[tuple[Path, Tensor]]:
    """Return ``(path, tensor)`` for every tensor in nested tuples, lists, mappings, dataclasses.

    A list, since compilers older than that of torch 2.9 cannot follow a generator.
    """
    if isinstance(value, Tensor):
        return [(prefix, value)]
    found = []
    for key, child in _children(value):
        found.extend(leaves(child, (*prefix, key)))
    return found


def get_leaf(value: Any, path: Path) -> Any:
    """Return what lies at ``path`` in ``value``."""
    for key in path:
        value = getattr(value, str(key)) if _is_dataclass(value) else value[key]
    return value


def replace_leaf(value: Any, path: Path, tensor: Tensor, *, in_place: bool = False) -> Any:
    """Return ``value`` with ``tensor`` at ``path``; what lies around it is copied, not changed.

    **Arguments:**

    - `in_place`: change what can be changed. What a module returns may be an object that its caller
      has and reads on. A caller's own arguments are never written to.
    """
    if not path:
        return tensor
    key, rest = path[0], path[1:]
    before = get_leaf(value, (key,))
    child = replace_leaf(before, rest, tensor, in_place=in_place)
    if child is before:
        return value
    if isinstance(value, tuple):
        fields = getattr(value, "_fields", None)
        if fields is not None:
            return type(value)(**{**value._asdict(), fields[int(key)]: child})  # type: ignore[attr-defined]
        if type(value) is not tuple:  # torch.return_types: a sequence of its fields
            return type(value)([child if i == key else item for i, item in enumerate(value)])
        return (*value[: int(key)], child, *value[int(key) + 1 :])
    frozen = _is_dataclass(value) and value.__dataclass_params__.frozen
    if frozen or not in_place:
        value = _copied(value)
    if frozen:
        object.__setattr__(value, str(key), child)
    elif _is_dataclass(value):
        setattr(value, str(key), child)
    else:
        value[key] = child
    return value


def is_same(one: Any, other: Any) -> bool:
    """Whether two structures of the same kind hold the same objects at the same places."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping) and list(one) != list(other):
        return False
    pairs = _children(one), _children(other)
    return len(pairs[0]) == len(pairs[1]) > 0 and all(
        is_same(a, b) for (_, a), (_, b) in zip(*pairs, strict=True)
    )


def _copied(value: Any) -> Any:
    """Return a shallow copy; those of Python's own types in a way that compilers can follow."""
    if type(value) is dict:
        return dict(value)
    return list(value) if type(value) is list else copy.copy(value)


def format_path(path: Path) -> str:
    """Return ``path`` as it is written behind a value: ``[0]['logits']``."""
    return "".join(f"[{key!r}]" for key in path)


def _children(value: Any) -> list[tuple[int | str, Any]]:
    if value is None or isinstance(value, (bool, int, float, str, torch.Size)):
        return []
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if isinstance(value, Mapping):
        return list(value.items())
    if _is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def _is_dataclass(value: Any) -> bool:
    # transformers' ModelOutput is both a mapping and a dataclass; as a mapping it is complete.
    return (
        dataclasses.is_dataclass(value)
        and not isinstance(value, type)
        and not isinstance(value, Mapping)
    )
