"""The cost of VCReg (VCReg's table 8): the benchmark, with settings of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..._shared.keeping import using_threads
from ...benchmark import bench, write_results
from ._experiment import Experiment

_NAME = "timing"


def run_timing(folder: Path, scale: str, threads: int | None) -> dict[str, Any]:
    """Time training steps of ViT-B/32 and ConvNeXt-T, or of a small model for ``"quick"``.

    **Arguments:**

    - `folder`: where tables, numbers and pictures go.
    - `scale`: ``"paper"`` takes batches of 128 and the GPU, if there is one.
    - `threads`: of torch, on a CPU; None as many as it has now.

    **Returns:** everything that was measured, as plain data.
    """
    from torchvision.models import get_model

    names, size, batch, rounds = ["vit_b_32", "convnext_tiny"], 224, 8, 11
    if scale == "quick":
        names, size, rounds = ["resnet18"], 64, 3
    device = "cpu"
    if scale == "paper":
        batch, device = 128, "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    models = {f"torchvision/{name}": get_model(name, weights=None) for name in names}
    inputs = {name: torch.randn(batch, 3, size, size) for name in models}
    with using_threads(threads):
        result = bench(models, inputs, device=device, rounds=rounds, scaling=scale != "quick")
    write_results(result, folder)
    report = {
        "experiment": _NAME,
        "scale": scale,
        "title": "Timing",
        "markdown": result.to_markdown(),
        "measured": result.to_dict(),
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (folder / f"{_NAME}.json").write_text(text + "\n", "utf-8")
    (folder / f"{_NAME}.md").write_text(result.to_markdown(), "utf-8")
    plain: dict[str, Any] = json.loads(text)
    return plain


TIMING = Experiment(
    name=_NAME, title="Timing", summary="the cost of a training step", run=run_timing
)
