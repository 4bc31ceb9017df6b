"""Write a model with VCReg to a file or folder that another program can run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from .._errors import ExportError, InsertionError, InsideError
from .._shared.files import sync
from .._shared.keeping import keeping_modes
from ..site import live_sites
from ..surgery import check_model, suspended
from ._example import Example, check_gradients, check_outputs, find_example, tensors_in
from ._folder import FILES, write_folder
from ._graph_module import to_graph_module
from ._metadata import KEY, make_metadata, read_metadata

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
    overwrite: bool = False,
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
    - `check`: run what was written and compare it with the model, on random inputs. Only what
      passes takes the place of an earlier export.
    - `overwrite`: replace what is at the path, also where no export wrote it.

    **Returns:** the path.

    **Raises:** `InsertionError` if nothing was inserted; `ExampleInputsError` without usable
    inputs; `ExportError`, a `ValueError`, if the format cannot hold the model, if what was written
    does not do what the model does, or if the path holds something else; `ModuleNotFoundError` if a
    package that the format needs is not installed: ``pip install "vcreg-fx[export]"``.
    """
    path = Path(path)
    form = _check_format(path, format, training=training)
    if not overwrite:
        _check_free(path)
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
    sizes = (example.batch, 1, 3) if dynamic_batch else (example.batch,)
    with _in_place_of(path) as new:
        if form == "fx":
            write_folder(model, new, example, metadata, check=check)
            return path
        if form == "pt2":
            program = _program(model, example, training, dynamic_batch)
            torch.export.save(program, new, extra_files={KEY: metadata})
        else:
            onnx = _onnx_program(model, example, dynamic_batch)
            onnx.model.metadata_props[KEY] = metadata
            onnx.save(str(new))
        if check and training:
            check_gradients(model, torch.export.load(new).module(), example, sizes[::2])
        elif check:
            check_outputs(model, _runner(new, form), example, sizes, path.name)
    return path


def _check_free(path: Path) -> None:
    """Refuse to replace what no export wrote.

    **Raises:** `ExportError` that says how to do it all the same.
    """
    if not path.exists():
        return
    try:
        strange = {item.name for item in path.iterdir()} - FILES if path.is_dir() else set()
        if not path.is_dir() or any(path.iterdir()):
            read_metadata(path)
    except InsertionError as error:
        strange = {str(error)}
    if strange:
        raise ExportError(
            f"{path} exists, and holds what no export wrote: {', '.join(sorted(strange)[:3])}. "
            "Choose another path, or pass overwrite=True to replace it, with all that is in it."
        )


@contextmanager
def _in_place_of(path: Path) -> Iterator[Path]:
    """Yield where to write an export; when it is complete, it takes the place of `path`.

    So there is the old one or the new one or, for a moment, none; never parts of both.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        made, old = Path(folder, "new"), Path(folder, "old")
        made.mkdir()
        yield made / path.name
        for file in made.rglob("*"):
            sync(file)
        # A large ONNX file has its weights beside it; what names them goes first and comes last.
        names = sorted((part.name for part in made.iterdir()), key=lambda name: name == path.name)
        if len(names) > 1 or path.is_dir():
            old.mkdir()
            for name in reversed(names):
                if (path.parent / name).exists():
                    os.replace(path.parent / name, old / name)
        for name in names:
            os.replace(made / name, path.parent / name)
        sync(path.parent)


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


def _program(
    model: nn.Module, example: Example, training: bool, dynamic_batch: bool
) -> torch.export.ExportedProgram:
    def traced(source: nn.Module) -> torch.export.ExportedProgram:
        shapes = example.dynamic_shapes(source) if dynamic_batch else None
        with keeping_modes(source), torch.random.fork_rng(devices=[]):
            source.train(training)
            return torch.export.export(source, example.args, example.kwargs, dynamic_shapes=shapes)

    try:
        try:
            with nullcontext() if training else suspended(model):
                return traced(model)
        except InsideError:  # transformers' models call their layers in another way while exported
            return traced(to_graph_module(model, example.args, example.kwargs))
    except Exception as error:
        raise _failed(model, "torch.export", error, dynamic_batch) from error


def _onnx_program(model: nn.Module, example: Example, dynamic_batch: bool) -> Any:
    import onnxscript  # noqa: F401  (what torch's exporter needs, asked for before it starts)

    shapes = example.dynamic_shapes(model) if dynamic_batch else None
    try:
        with keeping_modes(model), suspended(model), torch.random.fork_rng(devices=[]):
            model.eval()
            program = torch.onnx.export(
                model,
                example.args,
                kwargs=example.kwargs,
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise _failed(model, "torch.onnx", cause, dynamic_batch) from error
    if program is None:
        raise ExportError(f"torch.onnx made nothing of {type(model).__name__}.")
    return program


def _failed(model: nn.Module, by: str, error: Exception, dynamic_batch: bool) -> ExportError:
    hint = (
        " If the model was written for one batch size, pass dynamic_batch=False with "
        "example_inputs= of that size."
    )
    return ExportError(
        f"{by} cannot export {type(model).__name__}: {type(error).__name__}: {error}"
        f"{hint if dynamic_batch else ''}"
    )


def _runner(path: Path, form: str) -> Callable[[Example], Any]:
    """Return what runs a file on an example."""
    if form == "pt2":
        module = torch.export.load(path).module()
        return lambda call: module(*call.args, **call.kwargs)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(call: Example) -> list[torch.Tensor]:
        names = [given.name for given in session.get_inputs()]
        given = tensors_in((call.args, call.kwargs))
        feeds = {name: t.cpu().numpy() for name, t in zip(names, given, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feeds)]

    return run
