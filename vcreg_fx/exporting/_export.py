"""Write a model with VCReg to a file or folder that another program can run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .._errors import ExportError, InsertionError
from ..site import live_sites
from ..surgery import check_model
from ._example import find_example
from ._folder import write_folder
from ._metadata import make_metadata
from ._programs import write_onnx, write_program

FORMATS = ("fx", "pt2", "onnx")


def export(
    model: nn.Module,
    path: str | Path,
    format: str | None = None,  # noqa: A002 (the name that torch and others use)
    *,
    training: bool = False,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_batch: bool = True,
    check: bool = True,
) -> Path:
    """Export a model with VCReg.

    The batch size of what is written is free, and metadata say what was inserted
    (`vcreg_fx.exporting.read_metadata`).

    **Arguments:**

    - `model`: a model with VCReg inserted; it is not changed.
    - `path`: the folder or file to write.
    - `format`: ``"fx"``, a folder of importable Python with its weights, which runs and trains;
      ``"pt2"``, a program of ``torch.export``; ``"onnx"``, for inference. By default what the
      ending of the path says: ``.pt2``, ``.onnx``, or none for ``"fx"``.
    - `training`: with ``"pt2"``, write the model as it is in train mode, with VCReg's operator;
      otherwise nothing of VCReg is left.
    - `example_inputs`, `example_kwargs`: arguments of one forward call; by default worked out from
      the model.
    - `dynamic_batch`: False fixes the batch size of a ``"pt2"`` or ``"onnx"`` file to that of the
      example, for models that were written for one size.
    - `check`: run what was written and compare it with the model, on random inputs.

    **Returns:** the path.

    **Raises:** `InsertionError` if nothing was inserted; `ExampleInputsError` without usable
    inputs; `ExportError`, a `ValueError`, if the format cannot hold the model, or what was written
    does not do what the model does; `ModuleNotFoundError` if a package that the format needs is not
    installed: ``pip install "vcreg-fx[export]"``.
    """
    path = Path(path)
    form = _check_format(path, format, training=training)
    check_model(model)
    if not live_sites(model):
        raise InsertionError(
            "VCReg was not inserted into this model: call vcreg_fx.insert(model) first. A model "
            "without VCReg is exported by torch.export.export or torch.onnx.export."
        )
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ExportError("The model lies on the meta device and has no weights to export.")
    example = find_example(model, example_inputs, example_kwargs)
    metadata = make_metadata(model, form, training=training or form == "fx")
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "fx":
        write_folder(model, path, example, metadata, check=check)
        return path
    options: dict[str, Any] = {"dynamic_batch": dynamic_batch, "check": check}
    if form == "pt2":
        write_program(model, path, example, metadata, training=training, **options)
    else:
        write_onnx(model, path, example, metadata, **options)
    return path


def _check_format(path: Path, form: str | None, *, training: bool) -> str:
    form = (path.suffix.removeprefix(".") or "fx") if form is None else form
    if form not in FORMATS:
        raise ExportError(f"{form!r} is not a format. Choose one of {', '.join(FORMATS)}.")
    if form == "onnx" and training:
        raise ExportError(
            'ONNX files are for inference. For training use format="pt2" with training=True, or '
            '"fx".'
        )
    if form == "fx" and path.suffix:
        raise ExportError(f'format="fx" writes a folder; {path.name!r} has the ending of a file.')
    if form != "fx" and path.is_dir():
        raise ExportError(f"format={form!r} writes a file, and {path} is a folder.")
    if form == "fx" and path.is_file():
        raise ExportError(f'format="fx" writes a folder, and {path} is a file.')
    return form
