"""The models that coverage is measured on: names, and how each is built without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ._errors import ModelError
from ._model import load_model

_TRANSFORMERS = [
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "BeitForImageClassification",
    "SwinForImageClassification",
    "Swinv2ForImageClassification",
    "ConvNextForImageClassification",
    "ConvNextV2ForImageClassification",
    "ResNetForImageClassification",
    "RegNetForImageClassification",
    "Dinov2ForImageClassification",
    "CLIPVisionModel",
    "CLIPForImageClassification",
    "SiglipVisionModel",
    "SiglipForImageClassification",
    "SegformerForImageClassification",
    "SegformerForSemanticSegmentation",
    "VideoMAEForVideoClassification",
    "VideoMAEForPreTraining",
    "VivitForVideoClassification",
    "TimesformerForVideoClassification",
    "BertForSequenceClassification",
    "GPT2Model",
    "Wav2Vec2ForSequenceClassification",
]


def zoo(source: str, everything: bool) -> list[str]:
    """Return the names of a source's models, as `load_model` takes them.

    **Arguments:**

    - `source`: ``"timm"``, ``"torchvision"`` or ``"transformers"``.
    - `everything`: every model, and not only one of each module file (of each class, for
      transformers, either way).

    **Raises:** `ModelError` for another source.
    """
    listing: dict[str, Callable[[bool], list[str]]] = {
        "timm": _timm,
        "torchvision": _torchvision,
        "transformers": lambda _: _TRANSFORMERS,
    }
    if source not in listing:
        raise ModelError(f"{source!r} is no source of models. Sources: {', '.join(listing)}.")
    return [f"{source}/{name}" for name in listing[source](everything)]


def build(name: str) -> tuple[nn.Module, tuple[Any, ...] | None]:
    """Return a model on the meta device where it can be built there, and inputs it needs.

    A torchvision detector is represented by its backbone, which is what there is to regularize;
    its own forward takes and returns lists of varying length.
    """
    model = load_model(name, meta=True)
    inputs = None
    kind = type(model).__module__
    if "torchvision.models.detection" in kind:
        backbone = model.backbone
        if not isinstance(backbone, nn.Module):
            raise ModelError(f"{name} has no backbone module.")
        model = backbone
    elif "optical_flow" in kind:
        device = next(model.parameters()).device
        inputs = (torch.zeros(2, 3, 128, 128, device=device),) * 2
    return model, inputs


def _timm(everything: bool) -> list[str]:
    import timm

    names: list[str] = timm.list_models()
    if everything:
        return names
    return [
        min(names_in_file, key=lambda name: (len(name), name))
        for module in timm.list_modules()
        if (names_in_file := timm.list_models(module=module))
    ]


def _torchvision(everything: bool) -> list[str]:
    from torchvision import models

    names: list[str] = models.list_models()
    if everything:
        return names
    files: dict[str, str] = {}
    for name in names:
        files.setdefault(models.get_model_builder(name).__module__, name)
    return list(files.values())
