"""What an exported file says of itself."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._errors import InsertionError
from .._version import __version__
from ..site import live_sites
from ..surgery import get_configs

KEY = "vcreg_fx.json"  # the file or entry that holds it, in each of the formats
WEIGHTS = "weights.safetensors"


def make_metadata(model: nn.Module, form: str, *, training: bool) -> str:
    """Return rules, sites, coefficients and versions as JSON."""
    metadata = {
        "vcreg_fx": __version__,
        "torch": str(torch.__version__),
        "model": type(model).__name__,
        "format": form,
        "training": training,
        "insertions": get_configs(model),
        "sites": [
            {"name": site.name, "layout": str(site.layout), "channels": site.channels,
             "alpha": site.alpha, "beta": site.beta}
            for site in live_sites(model)
        ],
    }  # fmt: skip
    return json.dumps(metadata, indent=2, ensure_ascii=False)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return what `vcreg_fx.export` wrote about a file or folder: rule, sites, coefficients.

    Nothing of what the file contains is run.

    **Arguments:**

    - `path`: what was exported: a folder, a ``.pt2`` or an ``.onnx`` file.

    **Returns:** ``vcreg_fx`` and ``torch`` (versions), ``model`` (the class's name), ``format``,
    ``training``, ``insertions`` (as `get_configs` gives them) and ``sites``.

    **Raises:** `InsertionError` if `vcreg_fx.export` did not write it.
    """
    path = Path(path)
    text = ""
    if path.is_dir() and (path / KEY).is_file():
        text = (path / KEY).read_text("utf-8")
    elif path.suffix == ".onnx":
        import onnx

        try:
            model = onnx.load(str(path), load_external_data=False)
        except Exception as error:  # whatever the reader makes of a file that is none
            raise InsertionError(f"{path} cannot be read as ONNX: {error}.") from error
        text = {entry.key: entry.value for entry in model.metadata_props}.get(KEY, "")
    elif path.is_file():
        text = _entry_of(path)
    elif not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if not text:
        raise InsertionError(f"{path} was not written by vcreg_fx.export: it has no {KEY}.")
    try:
        metadata: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise InsertionError(f"{KEY} of {path} is damaged: {error}.") from error
    return metadata


def _entry_of(path: Path) -> str:
    """Read one entry of a program's archive, and nothing else of it: loading it may run code."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.rpartition("/")[2] == KEY]
            return archive.read(names[0]).decode("utf-8") if names else ""
    except zipfile.BadZipFile as error:
        raise InsertionError(f"{path} cannot be read as a program: {error}.") from error
