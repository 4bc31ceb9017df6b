"""Copies of models, and results on fake tensors, in a fraction of the time that torch takes.

`copy.deepcopy` takes some 500 calls for a module, nearly all of them for the empty tables of hooks
that it has. On a fake tensor each operation takes some hundred microseconds, and a linear layer is
four of them.
"""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._torch import FakeTensor, storage_of, without_dispatch_to_modes

# Copies --------------------------------------------------------------------------------------


_UNCHANGED = frozenset({bool, int, float, complex, str, bytes, type(None)})


def copy_model(model: nn.Module, stand_in: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """Return a deep copy of a model.

    **Arguments:**

    - `stand_in`: makes what the copy has for each parameter and buffer; by default a copy.
    """
    known: dict[int, Any] = {}
    if stand_in is not None:  # a copy of each would cost five operations on fake tensors
        tensors = (*model.parameters(), *model.buffers())
        known = {id(t): stand_in(t) for t in tensors if type(t) in {Tensor, nn.Parameter}}
    copied: nn.Module = _copied(model, known)
    return copied


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Copy as `copy.deepcopy` does; modules that have a way of their own are left to it."""
    kind = type(value)
    if kind in _UNCHANGED:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict or kind is OrderedDict:
        made = memo[id(value)] = kind()
        for key, item in value.items():
            made[key if type(key) in _UNCHANGED else copy.deepcopy(key, memo)] = _copied(item, memo)
        return made
    if isinstance(value, nn.Module) and _is_reduced_as_objects_are(kind):
        reduced: Any = value.__reduce_ex__(4)
        make, given, state, *_ = reduced
        if make is copyreg.__newobj__ and given == (kind,) and type(state) is dict:  # type: ignore[attr-defined]
            module = memo[id(value)] = make(kind)
            module.__setstate__({name: _copied(item, memo) for name, item in state.items()})
            return module
    return copy.deepcopy(value, memo)


def _is_reduced_as_objects_are(kind: Any) -> bool:
    plain: Any = object
    return (
        kind.__reduce_ex__ is plain.__reduce_ex__
        and kind.__reduce__ is plain.__reduce__
        and kind not in copyreg.dispatch_table
        and not hasattr(kind, "__deepcopy__")
    )


# Results -------------------------------------------------------------------------------------

# What these return is a new tensor, and depends on the metadata of their arguments alone.
_REMEMBERED = {F.linear, F.layer_norm, F.gelu, torch.matmul, Tensor.matmul, Tensor.__matmul__}
_ATOMS = (type(None), bool, int, float, str)

Metadata = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]


class Results:
    """Remembers what functions return for fake tensors, by the metadata of their arguments."""

    def __init__(self) -> None:
        self._known: dict[Any, Metadata] = {}

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return ``func(*args, **kwargs)``, or a tensor like it where that is known."""
        if func not in _REMEMBERED or torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return func(*args, **kwargs)
        tensors: list[Tensor] = []
        key: tuple[Any, ...] = (func, _key(args, tensors), _key(tuple(kwargs.items()), tensors))
        if not tensors or any(part is None for part in key):
            return func(*args, **kwargs)
        device = tensors[0].device.type
        if torch.is_autocast_enabled(device):
            key = (*key, torch.get_autocast_dtype(device))
        if key in self._known:
            return _new(tensors[0], self._known[key])
        output = func(*args, **kwargs)
        if _can_be_made(output) and storage_of(output) not in map(storage_of, tensors):
            self._known[key] = _metadata(output)
        return output


def another(tensor: Any) -> Any:
    """Return the tensor as an object of its own, which shares memory and version with it."""
    if not _can_be_made(tensor) or torch.is_grad_enabled():
        return tensor.view_as(tensor)
    with without_dispatch_to_modes():
        return FakeTensor(tensor.fake_mode, tensor.view_as(tensor), tensor.fake_device)


def _can_be_made(value: object) -> bool:
    return type(value) is FakeTensor and value.device.type != "meta"  # type: ignore[attr-defined]


def _new(like: Any, metadata: Metadata) -> Any:
    shape, strides, dtype, device = metadata
    with without_dispatch_to_modes():
        empty = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        return FakeTensor(like.fake_mode, empty, device)


def _metadata(tensor: Tensor) -> Metadata:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _key(values: tuple[Any, ...], tensors: list[Tensor]) -> tuple[Any, ...] | None:
    """Return what a result may depend on of some arguments; None if that cannot be told."""
    found: list[Any] = []
    for value in values:
        if _can_be_made(value) and value.layout is torch.strided:
            tensors.append(value)
            found.append(_metadata(value))
        elif isinstance(value, (tuple, list)):
            if (inner := _key(tuple(value), tensors)) is None:
                return None
            found.append(inner)
        elif isinstance(value, _ATOMS):
            found.append((type(value), value))
        else:
            return None
    return tuple(found)
