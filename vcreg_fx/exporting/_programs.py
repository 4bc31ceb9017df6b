"""Programs of ``torch.export``: ``.pt2`` files, and ONNX files for inference."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._errors import ExportError, InsideError
from .._shared.keeping import keeping_modes
from ..surgery import suspended
from ._example import Example, check_gradients, check_outputs, tensors_in
from ._graph_module import to_graph_module
from ._metadata import KEY


def write_program(
    model: nn.Module,
    path: Path,
    example: Example,
    metadata: str,
    *,
    training: bool,
    dynamic_batch: bool,
    check: bool,
) -> None:
    """Write a ``.pt2`` file: inference without VCReg, or a training step with its operator.

    **Raises:** `ExportError` if `torch.export` cannot export it, or not with a free batch size.
    """
    try:
        try:
            with nullcontext() if training else suspended(model):
                program = _export(model, example, training, dynamic_batch)
        except InsideError:  # transformers' models call their layers in another way while exported
            graph = to_graph_module(model, example.args, example.kwargs)
            program = _export(graph, example, training, dynamic_batch)
    except Exception as error:
        raise _export_failed(model, "torch.export", error, dynamic_batch) from error
    torch.export.save(program, path, extra_files={KEY: metadata})
    if not check:
        return
    loaded = torch.export.load(path).module()
    sizes = (example.batch, 1, 3) if dynamic_batch else (example.batch,)
    if training:
        check_gradients(model, loaded, example, sizes[::2])
    else:
        check_outputs(model, lambda c: loaded(*c.args, **c.kwargs), example, sizes, str(path))


def _export(
    model: nn.Module, example: Example, training: bool, dynamic_batch: bool
) -> torch.export.ExportedProgram:
    shapes = example.dynamic_shapes(model) if dynamic_batch else None
    with keeping_modes(model), torch.random.fork_rng(devices=[]):
        model.train(training)
        return torch.export.export(model, example.args, example.kwargs, dynamic_shapes=shapes)


def _export_failed(model: nn.Module, by: str, error: Exception, dynamic_batch: bool) -> ExportError:
    hint = (
        " If the model was written for one batch size, pass dynamic_batch=False with "
        "example_inputs= of that size."
    )
    return ExportError(
        f"{by} cannot export {type(model).__name__}: {type(error).__name__}: {error}"
        f"{hint if dynamic_batch else ''}"
    )


def write_onnx(
    model: nn.Module,
    path: Path,
    example: Example,
    metadata: str,
    *,
    dynamic_batch: bool,
    check: bool,
) -> None:
    """Write an ONNX file of the model in eval mode, and run it once with onnxruntime."""
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
        raise _export_failed(model, "torch.onnx", cause, dynamic_batch) from error
    if program is None:
        raise ExportError(f"torch.onnx made nothing of {type(model).__name__}.")
    program.model.metadata_props[KEY] = metadata
    program.save(str(path))
    if check:
        sizes = (example.batch, 1, 3) if dynamic_batch else (example.batch,)
        check_outputs(model, _runner(path), example, sizes, str(path))


def _runner(path: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(call: Example) -> list[torch.Tensor]:
        names = [given.name for given in session.get_inputs()]
        given = tensors_in((call.args, call.kwargs))
        feeds = {name: t.cpu().numpy() for name, t in zip(names, given, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feeds)]

    return run
