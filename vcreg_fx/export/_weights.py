"""Weights of an exported folder, as safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from placement_rules._torch import buffers_of, parameters_of

from ..surgery import Insertion, carry_insertions
from ._errors import ExportError
from ._metadata import WEIGHTS, read_metadata

M = TypeVar("M", bound=nn.Module)


def save_weights(module: nn.Module, path: Path) -> None:
    """Write all parameters and buffers, shared ones once, with what safetensors does not keep."""
    from safetensors.torch import save_file

    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    notes: dict[str, Any] = {"same_as": {}, "frozen": [], "strides": {}}
    for name, tensor in _named_tensors(module).items():
        if (other := first.setdefault(id(tensor), name)) != name:
            notes["same_as"][name] = other
            continue
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            notes["frozen"].append(name)
        if not tensor.is_contiguous():
            notes["strides"][name] = tensor.stride()
        # A copy, because a view into another tensor's memory cannot be written.
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    save_file(tensors, path, metadata={"vcreg_fx": json.dumps(notes)})


def load_exported(cls: type[M], folder: str | Path, device: str | torch.device = "cpu") -> M:
    """Return an exported model with its weights, in eval mode.

    **Arguments:**

    - `cls`: the class in the folder's ``model.py``.
    - `folder`: the folder that `vcreg_fx.export` wrote.
    - `device`: where the weights go.

    **Raises:** `ExportError` if the weights are not those of the class.
    """
    from safetensors import safe_open

    folder = Path(folder)
    with torch.device("meta"):
        model = cls()
    with safe_open(folder / WEIGHTS, framework="pt", device=str(device)) as opened:
        notes = json.loads(opened.metadata()["vcreg_fx"])
        loaded = {name: _restride(opened.get_tensor(name), notes, name) for name in opened.keys()}  # noqa: SIM118
    wanted = _named_tensors(model)
    if wanted.keys() != loaded.keys() | notes["same_as"].keys():
        differing = sorted(wanted.keys() ^ (loaded.keys() | notes["same_as"].keys()))
        raise ExportError(f"{folder / WEIGHTS} does not fit {cls.__name__}: {differing}.")
    made: dict[str, Tensor] = {}
    for name, old in wanted.items():
        first = notes["same_as"].get(name, name)
        if first not in made:
            tensor = loaded[first]
            if isinstance(old, nn.Parameter):
                tensor = nn.Parameter(tensor, requires_grad=first not in notes["frozen"])
            made[first] = tensor
        path, _, key = name.rpartition(".")
        owner = model.get_submodule(path)
        table = parameters_of(owner) if key in parameters_of(owner) else buffers_of(owner)
        table[key] = made[first]  # type: ignore[assignment]
    _tell_insertions(model, folder)
    return model.eval()


def _tell_insertions(model: nn.Module, folder: Path) -> None:
    """Let `get_config` know what was inserted."""
    told = []
    for found in read_metadata(folder)["insertions"]:
        config = {k: v for k, v in found.items() if k not in {"rule", "layout", "coefficients"}}
        places = dict.fromkeys(found["coefficients"], ("", ""))
        told.append(Insertion(found["rule"], config, places, found["layout"]))
    carry_insertions(told, model)


def _restride(tensor: Tensor, notes: dict[str, Any], name: str) -> Tensor:
    stride = notes["strides"].get(name)
    if stride is None:
        return tensor.clone()  # safetensors aligns to 8 bytes, where kernels may round otherwise
    made = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
    return made.copy_(tensor)


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
