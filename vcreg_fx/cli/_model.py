"""Build the model that the command line names, without weights and without downloads."""

from __future__ import annotations

import difflib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ._errors import ModelError
from ._factory import build_from_factory

FORMS = "timm/NAME, torchvision/NAME, transformers/CLASS or package.module:factory"


def load_model(
    name: str, *, meta: bool = False, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return the model that ``name`` stands for, with random weights.

    **Arguments:**

    - `name`: ``timm/NAME``, ``torchvision/NAME``, ``transformers/CLASS`` (from its default
      configuration), or ``package.module:factory`` (any callable that returns a module).
    - `meta`: build the library's models on the meta device, without weights at all.
    - `options`: arguments of the model's builder, such as ``num_classes``.

    **Raises:** `ModelError` for an unknown name, with close ones, or a model that cannot be built;
    `ModuleNotFoundError` if the library is not installed.
    """
    library, slash, rest = name.partition("/")
    sources: dict[str, Callable[[str], Callable[..., Any]]] = {
        "timm": _timm,
        "torchvision": _torchvision,
        "transformers": _transformers,
    }
    if slash and library in sources:
        build = functools.partial(sources[library](rest), **(options or {}))
        return _build(name, build, torch.device("meta" if meta else "cpu"))
    if ":" in name:
        return build_from_factory(name, options)
    if not slash and name in sources:
        raise ModelError(f"{name!r} names a library and no model. Write {name}/NAME.")
    raise ModelError(f"{name!r} is not a model. Write {FORMS}, such as timm/convnext_atto.")


def _timm(name: str) -> Callable[..., Any]:
    import timm

    if ":" in name or not timm.is_model(name):
        raise _unknown(name, "timm", timm.list_models())
    return functools.partial(timm.create_model, name, pretrained=False)


def _torchvision(name: str) -> Callable[..., Any]:
    from torchvision import models

    if name not in models.list_models():
        raise _unknown(name, "torchvision", models.list_models())
    options: dict[str, Any] = {"weights": None}
    # Segmentation and detection models would otherwise download their backbone's weights.
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None
    return functools.partial(models.get_model, name, **options)


def _transformers(name: str) -> Callable[..., Any]:
    import transformers

    found = getattr(transformers, name, None) if name.isidentifier() else None
    if found is None:
        raise _unknown(name, "transformers", dir(transformers))
    config_class = getattr(found, "config_class", None)
    if not (isinstance(found, type) and issubclass(found, nn.Module) and config_class):
        raise ModelError(
            f"transformers/{name} is no model class with a configuration of its own. Name one, "
            "such as transformers/ViTForImageClassification."
        )
    return lambda **options: found(config_class(**options))


def _build(name: str, build: Callable[[], Any], device: torch.device) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights that are not wanted here
        try:
            with device:
                model = build()
        except Exception as error:
            if device.type == "meta":  # some models compute with values while they are built
                return _build(name, build, torch.device("cpu"))
            raise ModelError(f"{name} cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} gave a {type(model).__name__}, not a torch.nn.Module.")
    return model


def _unknown(name: str, library: str, known: Iterable[str]) -> ModelError:
    lower = {other.lower(): other for other in known}
    close = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=4)]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return ModelError(f"{library} has no model {name!r}.{hint}")
