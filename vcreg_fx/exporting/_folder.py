"""The format ``fx``: a folder of importable Python with its weights as safetensors."""

from __future__ import annotations

import importlib.util
import json
import keyword
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from placement_rules._torch import buffers_of, parameters_of

from .._errors import ExportError, InsertionError
from .._version import __version__
from ..site import Insertion, carry_insertions
from ._code import TAKEN, write_code
from ._example import Example, check_gradients, check_outputs
from ._graph_module import make_graph, to_graph_module
from ._metadata import KEY, WEIGHTS, read_metadata
from ._two_modes import named_tensors

M = TypeVar("M", bound=nn.Module)
FILES = {"__init__.py", "model.py", KEY, WEIGHTS, "__pycache__"}  # of an exported folder

_INIT = '''\
"""{name} with VCReg, written by vcreg_fx {version}.

``load()`` returns the model with its weights, in eval mode.
"""

from pathlib import Path

from vcreg_fx.exporting import load_exported

from .model import {name} as {name}


def load(device="cpu"):
    """Return the model with the weights in this folder."""
    return load_exported({name}, Path(__file__).parent, device)
'''


def write_folder(
    model: nn.Module, folder: Path, example: Example, metadata: str, *, check: bool
) -> None:
    """Write ``__init__.py``, ``model.py``, the weights and the metadata into a folder.

    **Raises:** `ExportError` if the folder's name cannot be imported, or if the model cannot be
    written as code.
    """
    if not folder.name.isidentifier() or keyword.iskeyword(folder.name):
        raise ExportError(
            f"{folder.name!r} cannot be imported. Choose a name of letters, digits and underscores "
            "for the folder."
        )
    name = type(model).__name__
    if name in TAKEN:  # by what the code imports
        name = f"{name}Model"
    graph, code = _graph_and_code(model, name, example)
    files = {
        "__init__.py": _INIT.format(name=name, version=__version__),
        "model.py": code,
        KEY: f"{metadata}\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text, "utf-8")
    save_weights(graph, folder / WEIGHTS)
    if check:
        device = next((str(p.device) for p in model.parameters()), "cpu")
        loaded = import_folder(folder).load(device)
        check_outputs(
            model,
            lambda call: loaded(*call.args, **call.kwargs),
            example,
            (example.batch, 1, 3),
            str(folder),
        )
        if not any(tensor.dtype == torch.float16 for tensor in graph.parameters()):
            check_gradients(model, loaded.train(), example, (example.batch, 3))


def _graph_and_code(model: nn.Module, name: str, example: Example) -> tuple[fx.GraphModule, str]:
    """Return a graph that can be written as code, and the code.

    A module that was kept whole may be none that code can construct. Then it is traced after all,
    for inputs like the example.
    """
    graph = to_graph_module(model, example.args, example.kwargs)
    try:
        return graph, write_code(graph, name)
    except ExportError as refusal:
        try:
            graph = make_graph(model, (example.args, example.kwargs), decide_first=True)
            return graph, write_code(graph, name)
        except InsertionError:
            raise refusal from None


def import_folder(folder: Path) -> ModuleType:
    """Import an exported folder from wherever it lies, without leaving it among the modules."""
    spec = importlib.util.spec_from_file_location(
        folder.name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ExportError(f"{folder} cannot be imported.")
    names = (folder.name, f"{folder.name}.model")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    module = importlib.util.module_from_spec(spec)
    sys.modules[folder.name] = module
    importlib.invalidate_caches()
    try:
        spec.loader.exec_module(module)
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
    return module


def save_weights(module: nn.Module, path: Path) -> None:
    """Write all parameters and buffers, shared ones once, with what safetensors does not keep."""
    from safetensors.torch import save_file

    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    notes: dict[str, Any] = {"same_as": {}, "frozen": [], "strides": {}}
    for name, tensor in named_tensors(module).items():
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

    **Raises:** `ExportError` if the weights are damaged or not those of the class.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    with torch.device("meta"):
        model = cls()
    try:
        with safe_open(folder / WEIGHTS, framework="pt", device=str(device)) as opened:
            notes = json.loads((opened.metadata() or {})["vcreg_fx"])
            names = opened.keys()
            loaded = {name: _restride(opened.get_tensor(name), notes, name) for name in names}
    except (SafetensorError, KeyError, ValueError) as error:
        raise ExportError(
            f"{folder / WEIGHTS} is damaged, or of another program: {error}"
        ) from error
    wanted = named_tensors(model)
    if wanted.keys() != loaded.keys() | notes["same_as"].keys():
        differing = sorted(wanted.keys() ^ (loaded.keys() | notes["same_as"].keys()))
        raise ExportError(f"{folder / WEIGHTS} does not fit {cls.__name__}: {differing}.")
    for name, old in wanted.items():
        shape = loaded[notes["same_as"].get(name, name)].shape
        if shape != old.shape:
            raise ExportError(
                f"{folder / WEIGHTS} does not fit {cls.__name__}: {name} is {tuple(shape)} there, "
                f"and {tuple(old.shape)} in the code."
            )
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
    told = []  # so that `get_config` knows what was inserted
    for found in read_metadata(folder)["insertions"]:
        config = {k: v for k, v in found.items() if k not in {"rule", "layout", "coefficients"}}
        told.append(Insertion(found["rule"], config, list(found["coefficients"]), found["layout"]))
    carry_insertions(told, model)
    return model.eval()


def _restride(tensor: Tensor, notes: dict[str, Any], name: str) -> Tensor:
    stride = notes["strides"].get(name)
    if stride is None:
        return tensor.clone()  # safetensors aligns to 8 bytes, where kernels may round otherwise
    made = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
    return made.copy_(tensor)
