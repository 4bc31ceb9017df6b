"""The format ``fx``: a folder of importable Python with its weights."""

from __future__ import annotations

import importlib.util
import keyword
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import fx, nn

from .._errors import InsertionError
from .._version import __version__
from ._check import check_gradients, check_outputs
from ._code import TAKEN, write_code
from ._errors import ExportError
from ._example import Example
from ._graph_module import make_graph, to_graph_module
from ._metadata import KEY, WEIGHTS, to_text
from ._weights import save_weights

_INIT = '''\
"""{name} with VCReg, written by vcreg_fx {version}.

``load()`` returns the model with its weights, in eval mode.
"""

from pathlib import Path

from vcreg_fx.export import load_exported

from .model import {name} as {name}


def load(device="cpu"):
    """Return the model with the weights in this folder."""
    return load_exported({name}, Path(__file__).parent, device)
'''


def write_folder(
    model: nn.Module, folder: Path, example: Example, metadata: Mapping[str, Any], *, check: bool
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
        KEY: to_text(dict(metadata)) + "\n",
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
            graph = make_graph(model, example.args, example.kwargs, decide_first=True)
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
