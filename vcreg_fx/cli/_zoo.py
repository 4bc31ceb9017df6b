"""The models that coverage is measured on: names, and how each is built without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from placement_rules import candidate_inputs

from ._errors import ModelError, OptionError
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

    Without `everything` one of each module file; of transformers one of each class either way.

    **Raises:** `OptionError` for a source that is not known.
    """
    listing: dict[str, Callable[[bool], list[str]]] = {
        "timm": _timm,
        "torchvision": _torchvision,
        "transformers": lambda _: _TRANSFORMERS,
    }
    if source not in listing:
        raise OptionError(
            "--source", f"{source!r} is no source of models. Sources: {', '.join(listing)}."
        )
    return [f"{source}/{name}" for name in listing[source](everything)]


def build(name: str) -> tuple[nn.Module, tuple[Any, ...] | None]:
    """Return a model on the meta device where it can be built there, and inputs it needs.

    A torchvision detector is represented by its backbone, which is what there is to regularize;
    its own forward takes and returns lists of varying length.
    """
    model = load_model(name, meta=True)
    if "optical_flow" not in type(model).__module__:
        return _regularized(model), None
    device = next(model.parameters()).device
    return model, (torch.zeros(2, 3, 128, 128, device=device),) * 2


def _regularized(model: nn.Module) -> nn.Module:
    detects = "torchvision.models.detection" in type(model).__module__
    backbone = getattr(model, "backbone", None)
    return backbone if detects and isinstance(backbone, nn.Module) else model


Example = tuple[tuple[Any, ...], dict[str, Any]]
_SIDES = (32, 64, 96, 128, 224, 240, 256)


def small(name: str) -> tuple[nn.Module, Example]:
    """Return a model with weights, and random inputs as small as it takes, for a training step.

    **Raises:** `ModelError` if it runs on none of the inputs.
    """
    failure: Exception | None = None
    for side in _SIDES:
        try:
            torch.manual_seed(0)
            model = _of_side(name, side)
            for example in _examples(model, side):
                with torch.no_grad():
                    model.train()(*example[0], **example[1])
                return model, example
        except Exception as error:  # whatever a model may raise on an image that is too small
            failure = error
    raise ModelError(f"{name} runs in training on no input that was tried: {failure}")


def _of_side(name: str, side: int) -> nn.Module:
    library, _, rest = name.partition("/")
    if library == "timm":
        try:
            return load_model(name, options={"num_classes": 5, "img_size": side})
        except ModelError:  # convolutional networks take any size and no such argument
            return load_model(name, options={"num_classes": 5})
    if library == "transformers":
        return load_model(name, options=_two_layers(rest))
    if "vit_" in rest and "maxvit" not in rest and "mvit" not in rest:
        return load_model(name, options={"image_size": side})
    return _regularized(load_model(name))


def _two_layers(name: str) -> dict[str, Any]:
    """Return how a transformers model is configured with two layers, where that is one number.

    None of them is dropped in training, so that sites can be told by counting.
    """
    import transformers

    config = getattr(transformers, name).config_class()
    if hasattr(config, "vision_config"):
        return {"vision_config": {"num_hidden_layers": 2}}
    if hasattr(config, "depths") or not hasattr(config, "num_hidden_layers"):
        return {}
    kept = {"layerdrop": 0.0} if hasattr(config, "layerdrop") else {}
    return {"num_hidden_layers": 2, **kept}


def _examples(model: nn.Module, side: int) -> Iterator[Example]:
    """Yield inputs with random numbers; images are cut to a side, where the model allows it."""
    if "optical_flow" in type(model).__module__:
        yield (torch.randn(2, 3, 128, 128), torch.randn(2, 3, 128, 128)), {}
        return

    def fill(item: Any) -> Any:
        if not item.is_floating_point():
            return item
        fixed = hasattr(model, "config")  # transformers fixes the sizes of images
        shape = item.shape if fixed or item.ndim < 4 else (*item.shape[:-2], side, side)
        return torch.randn(shape)

    for inputs in candidate_inputs(model):
        yield tuple(map(fill, inputs.args)), {k: fill(v) for k, v in inputs.kwargs.items()}


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
