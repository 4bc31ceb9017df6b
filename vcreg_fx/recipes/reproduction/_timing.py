"""The cost of VCReg (VCReg's table 8): hands over to ``vcreg-fx bench``.

MERGE: this is the only place that knows the benchmark. It calls ``vcreg_fx.benchmark.bench`` and
``write_results`` by the signatures that they have there.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch

from ._errors import ReproductionError

TIMING = "timing"


def run_timing(folder: Path, scale: str) -> dict[str, Any]:
    """Time training steps of ViT-B/32 and ConvNeXt-T, or of small models for ``"quick"``.

    **Arguments:**

    - `folder`: where tables, numbers and pictures go.
    - `scale`: ``"paper"`` takes batches of 128 and the GPU, if there is one.

    **Returns:** everything that was measured, as plain data.

    **Raises:** `ReproductionError` if this installation has no benchmark.
    """
    import timm

    try:
        benchmark = importlib.import_module("vcreg_fx.benchmark")
    except ModuleNotFoundError as error:
        raise ReproductionError(
            f"timing is the benchmark, which this installation does not have ({error})."
        ) from error
    names = {"ViT-Base-32": "vit_base_patch32_224", "ConvNeXt-T": "convnext_tiny"}
    size, batch, rounds = 224, 128 if scale == "paper" else 8, 11
    if scale == "quick":
        names, size, batch, rounds = {"ConvNeXt-Atto": "convnext_atto"}, 64, 8, 3
    device = "cuda" if scale == "paper" and torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    models = {name: timm.create_model(found, pretrained=False) for name, found in names.items()}
    inputs = {name: torch.randn(batch, 3, size, size) for name in names}
    result = benchmark.bench(models, inputs, device=device, rounds=rounds, scaling=scale != "quick")
    folder.mkdir(parents=True, exist_ok=True)
    benchmark.write_results(result, folder)
    markdown: str = result.to_markdown()
    report = {
        "experiment": TIMING,
        "scale": scale,
        "title": "Timing",
        "markdown": markdown,
        "measured": json.loads(result.to_json()),
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (folder / f"{TIMING}.json").write_text(text + "\n", "utf-8")
    (folder / f"{TIMING}.md").write_text(markdown, "utf-8")
    plain: dict[str, Any] = json.loads(text)
    return plain
