"""The model that the command line names: built without downloads, its weights, noise for it."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from placement_rules import RecordingError, record

from .._shared.progress import Progress
from ..surgery import Plan, plan
from ._console import say
from ._errors import ModelError, OptionError
from ._options import FORMS, Settings

_INSIDE = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights
# What DistributedDataParallel and torch.compile put before the names of weights.
_PREFIXES = r"^(module\.)?(_orig_mod\.)?(module\.)?(_orig_mod\.)?"
_SHOWN = 4


def load_model(
    name: str, *, meta: bool = False, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return the model that ``name`` stands for, with random weights.

    **Arguments:**

    - `name`: one of `FORMS`; a class of transformers gets its default configuration.
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
    if slash:
        raise ModelError(_of_the_hub(name, rest))
    return load_model(_full_name(name), meta=meta, options=options)


def _full_name(name: str) -> str:
    """Return the full name of a model of timm, if no other library has one of that name.

    **Raises:** `ModelError` with the spellings there are.
    """
    import timm

    known = {"timm": timm.list_models()}
    with suppress(ModuleNotFoundError):
        from torchvision import models

        known["torchvision"] = models.list_models()
    found = [f"{library}/{name}" for library, names in known.items() if name in names]
    if found == [f"timm/{name}"]:
        return found[0]
    if found:
        several = "is in several libraries" if found[1:] else "is no model of timm's"
        raise ModelError(f"{name!r} {several}. Write {' or '.join(found)}.")
    hint = _hint(name, [other for names in known.values() for other in names])
    raise ModelError(f"{name!r} is not a model. Write {FORMS}, such as timm/convnext_atto.{hint}")


def _of_the_hub(name: str, rest: str) -> str:
    """Say how a checkpoint of the Hugging Face hub, ``organization/name``, is written here."""
    such = "ViTForImageClassification"
    with suppress(ModuleNotFoundError):
        from transformers.models.auto import modeling_auto

        classes = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        plain = re.sub(r"[-_.]", "", rest.lower())
        kinds = [kind for kind in classes if plain.startswith(re.sub(r"[-_]", "", kind))]
        if kinds:
            found = classes[max(kinds, key=len)]
            such = found if isinstance(found, str) else found[0]
    return (
        f"{name!r} is not a model. If it is a checkpoint of the Hugging Face hub: nothing is "
        f"downloaded here; name its class, such as transformers/{such}, or a function of your own "
        "that loads it, as package.module:factory or file.py:factory."
    )


def device_of(name: str) -> torch.device:
    """Return a device on which something can be computed.

    **Raises:** `OptionError` if torch knows no such device, or it is not here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError("--device", f"{name!r} cannot be used: {reason}") from error
    return device


def plan_named(
    name: str, rule: str, layout: str | None, size: tuple[int, ...] | None, settings: Settings
) -> Plan:
    """Plan on the meta device, where no weights are made, if the model can be recorded there."""
    options = dict(settings or ())
    with Progress("planning", passing=True):
        model = load_model(name, meta=True, options=options)
        try:
            return plan(model, rule, example_inputs=example_of(model, size), layout=layout)
        except RecordingError:
            if not any(parameter.is_meta for parameter in model.parameters()):
                raise
        model = load_model(name, options=options)
        return plan(model, rule, example_inputs=example_of(model, size), layout=layout)


def example_of(model: nn.Module, size: tuple[int, ...] | None) -> tuple[Tensor, ...] | None:
    """Return a batch of two examples of a size for the model; None if no size is given."""
    if size is None:
        return None
    parameter = next(iter(model.parameters()), torch.zeros(()))
    return (torch.zeros((2, *size), dtype=parameter.dtype, device=parameter.device),)


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
    return ModelError(f"{library} has no model {name!r}.{_hint(name, known)}")


def _hint(name: str, known: Iterable[str]) -> str:
    lower = {other.lower(): other for other in known}
    close = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=4)]
    return f" Did you mean {' or '.join(close)}?" if close else ""


# A user's own factory -------------------------------------------------------------------------


def build_from_factory(name: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Return what the factory ``package.module:factory`` returns, or the module that it names.

    **Raises:** `ModelError` that says which part of the name, or what in the factory, is wrong.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ModelError(f"{name!r} is not package.module:factory; a part is missing.")
    found = import_module(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = _hint(part, dir(found))
            raise ModelError(f"{module_name} has no {attribute!r}.{hint}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ModelError(f"{name} is a {type(found).__name__}, neither callable nor a module.")
    try:
        model = found(**(options or {}))
    except Exception as error:
        raise ModelError(
            f"{name}() raised {type(error).__name__}: {error}. A factory is called without "
            "arguments, or with those of --set."
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name}() returned a {type(model).__name__}, not a torch.nn.Module.")
    return model


def import_module(name: str) -> Any:
    """Import a user's module; the current directory is searched first.

    **Raises:** `ModelError` if it does not exist or raises.
    """
    if name.endswith(".py"):
        return _import_file(Path(name))
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModelError(
                f"There is no module {error.name!r}, neither in {here} nor among the installed "
                "packages."
            ) from error
        raise
    except Exception as error:
        raise ModelError(f"Importing {name} raised {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> Any:
    """Import a file under its own name, as other processes will, which are told of ``sys.path``."""
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    if not path.stem.isidentifier():
        raise ModelError(f"{path} cannot be imported: {path.stem!r} is no name in Python.")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    found = import_module(path.stem)
    if (file := getattr(found, "__file__", None)) is None or not path.samefile(file):
        raise ModelError(
            f"{path} cannot be imported: {path.stem!r} is also the name of {file or 'a module'}. "
            "Rename the file."
        )
    return found


# Weights --------------------------------------------------------------------------------------


def load_checkpoint_if_any(model: nn.Module, path: Path | None) -> None:
    """Load weights, or say on stderr that they are random."""
    if path is None:
        say("The weights are random; --checkpoint FILE loads trained ones.", err=True)
    else:
        load_checkpoint(model, path)


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load weights that ``torch.save`` or safetensors wrote, every one of them.

    A state dict, or a dictionary that holds one as ``state_dict``, ``model_state_dict`` or
    ``model``. Nothing in the file is executed.

    **Raises:** `ModelError` that says what does not fit; `OSError` if the file cannot be read.
    """
    found = _read(path)
    for key in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in found.items()
    ):
        raise ModelError(
            f"{path} holds no state dict, neither itself nor as {', '.join(_INSIDE)}. Save one: "
            "torch.save(model.state_dict(), path)."
        )
    state = {re.sub(_PREFIXES, "", key): tensor for key, tensor in found.items()}
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    unknown = [key for key in state if key not in wanted]
    other = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = [
        f"{what} {_some(keys)}"
        for what, keys in (("lacks", missing), ("has besides", unknown), ("has", other))
        if keys
    ]
    if problems:
        raise ModelError(
            f"{path} does not fit the model: it {'; it '.join(problems)}. Name the model that it "
            "was saved from, with --set num_classes=10 and the like as it was built; "
            "package.module:factory builds one of your own."
        )
    model.load_state_dict(state)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        import safetensors
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except safetensors.SafetensorError as error:
            raise _unreadable(path, error) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what is no checkpoint may make the reader raise anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ModelError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return ModelError(
        f"{path} cannot be read as weights: {reason} Save a state dict alone: "
        "torch.save(model.state_dict(), path)."
    )


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


# Noise ----------------------------------------------------------------------------------------


def noise_for(
    model: nn.Module, batch: int, instead: str, example: tuple[Tensor, ...] | None = None
) -> Tensor:
    """Return normal noise of the shape on which the model is recorded, ``batch`` examples.

    `instead` is what to call in Python with another batch.

    **Raises:** `ModelError` if the model takes several tensors, or whole numbers.
    """
    shapes = [(path, node.meta["val"]) for path, node in record(model, example).root.inputs]
    if len(shapes) != 1 or not shapes[0][1].is_floating_point():
        raise ModelError(
            f"{type(model).__name__} takes {len(shapes)} tensors or whole numbers, for which noise "
            f"is no input. Call {instead} with your own."
        )
    value = shapes[0][1]
    return torch.randn((batch, *value.shape[1:]), dtype=value.dtype)
