"""Load a checkpoint into a model."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._errors import ModelError

_INSIDE = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_SHOWN = 4


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load weights that ``torch.save`` or safetensors wrote, every one of them.

    A state dict, or a dictionary that holds one as ``state_dict``, ``model_state_dict`` or
    ``model``. Nothing in the file is executed.

    **Raises:** `ModelError` that says what does not fit; `OSError` if the file cannot be read.
    """
    found = _read(path)
    for key in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ModelError(
            f"{path} holds no state dict, neither itself nor as {', '.join(_INSIDE)}. Save one: "
            "torch.save(model.state_dict(), path)."
        )
    state = {_plain(key): tensor for key, tensor in found.items()}
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    unknown = [key for key in state if key not in wanted]
    other = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = [
        f"{what} {_some(keys)}"
        for what, keys in (("lacks", missing), ("has besides", unknown), ("has", other))
        if keys
    ]
    if problems:
        raise ModelError(
            f"{path} does not fit the model: it {'; it '.join(problems)}. Name the model that it "
            "was saved from, with --set num_classes=10 and the like as it was built; "
            "package.module:factory builds one of your own."
        )
    model.load_state_dict(state)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        import safetensors
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except safetensors.SafetensorError as error:
            raise _unreadable(path, error) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path} cannot be read as weights: {str(error).splitlines()[0]} Save a state dict alone: "
        "torch.save(model.state_dict(), path)."
    )


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def _plain(key: str) -> str:
    for prefix in _PREFIXES * 2:
        key = key.removeprefix(prefix)
    return key
