"""ONNX files, for inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..surgery import suspended
from ._check import check_outputs, tensors_in
from ._errors import ExportError
from ._example import Example
from ._metadata import KEY, to_text
from ._modes import keeping_modes
from ._program import export_failed


def write_onnx(
    model: nn.Module,
    path: Path,
    example: Example,
    metadata: dict[str, Any],
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
        raise export_failed(model, "torch.onnx", cause, dynamic_batch=dynamic_batch) from error
    if program is None:
        raise ExportError(f"torch.onnx made nothing of {type(model).__name__}.")
    program.model.metadata_props[KEY] = to_text(metadata)
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
