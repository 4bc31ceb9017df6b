"""Example inputs worked out from a model: from its own configuration, or its first layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import tree_map
from ._tree import leaves

_BATCH = 2
_LENGTH = 16  # tokens, where the model fixes no number
_CLIPS = ((16, 112), (16, 224), (32, 224), (8, 224))  # frames and pixels
_SIDES = (224, 256, 299, 32)  # pixels, where the model fixes no number


@dataclass(frozen=True)
class Inputs:
    """Arguments of one forward call, and what they were worked out from."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    origin: str = ""


def candidate_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Yield inputs the model may accept, the most trustworthy first."""
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "model_type"):
        yield from _from_transformers(model, config)
        return
    yield from _from_timm(model)
    yield from _from_first_layer(model)


def _from_timm(model: nn.Module) -> Iterator[Inputs]:
    cfg = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    sizes = {}
    if (built_for := getattr(getattr(model, "patch_embed", None), "img_size", None)) is not None:
        sizes["patch_embed.img_size"] = _pair(built_for)
    if "input_size" in cfg:
        sizes["pretrained_cfg['input_size']"] = _pair(cfg["input_size"])
    first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    given = cfg["input_size"][0] if "input_size" in cfg else 3
    # in_chans= changes the first convolution; a space-to-depth stem hides the image's channels
    for channels in dict.fromkeys([given, first or given]):
        for origin, size in sizes.items():
            image = _floats(model, (_BATCH, channels, *size))
            yield Inputs((image,), {}, f"{origin} with {channels} channels")


def _from_first_layer(model: nn.Module) -> Iterator[Inputs]:
    """Read the first layer that fixes what goes in; torchvision's and home-made models."""
    for module in model.modules():
        match module:
            case nn.Conv2d() | nn.ConvTranspose2d():
                for size in _sides(getattr(model, "image_size", None)):
                    image = _floats(model, (_BATCH, module.in_channels, *size))
                    yield Inputs((image,), {}, f"a {size[0]} × {size[1]} image")
            case nn.Conv3d():
                for frames, side in _CLIPS:
                    clip = (_BATCH, module.in_channels, frames, side, side)
                    yield Inputs((_floats(model, clip),), {}, f"a clip of shape {clip}")
            case nn.Conv1d():
                signal = (_BATCH, module.in_channels, 4096)
                yield Inputs((_floats(model, signal),), {}, f"a signal of shape {signal}")
            case nn.Linear():
                for middle in ((), (_LENGTH,)):
                    shape = (_BATCH, *middle, module.in_features)
                    yield Inputs((_floats(model, shape),), {}, f"features of shape {shape}")
            case nn.Embedding() | nn.EmbeddingBag():
                yield Inputs((_tokens(model),), {}, "token numbers")
            case _:
                continue
        return


def _from_transformers(model: nn.Module, config: Any) -> Iterator[Inputs]:
    name = getattr(model, "main_input_name", "pixel_values")
    origin = f"the {config.model_type} configuration"
    vision = getattr(config, "vision_config", config)
    if name in {"pixel_values", "pixel_values_videos"}:
        channels = getattr(vision, "num_channels", 3)
        frames = getattr(vision, "num_frames", None)
        lead = (_BATCH,) if frames is None else (_BATCH, frames)
        side = getattr(vision, "image_size", None) or getattr(vision, "crop_size", None)
        for size in _sides(side):
            kwargs = {name: _floats(model, (*lead, channels, *size))}
            if hasattr(vision, "tubelet_size") and "ForPreTraining" in type(model).__name__:
                kwargs["bool_masked_pos"] = _half_masked(model, vision, size)
            yield Inputs((), kwargs, origin)
    elif name == "input_values":
        yield Inputs((), {name: _floats(model, (_BATCH, 4096))}, origin)
    elif name == "input_features":
        bins = getattr(config, "num_mel_bins", 80)
        yield Inputs((), {name: _floats(model, (_BATCH, bins, 3000))}, origin)
    else:
        yield Inputs((), {name: _tokens(model)}, origin)


def _half_masked(model: nn.Module, config: Any, size: tuple[int, int]) -> Tensor:
    """VideoMAE's pre-training needs to be told which tubes are masked: half of them here."""
    patch = _pair(config.patch_size)
    count = config.num_frames // config.tubelet_size
    count *= (size[0] // patch[0]) * (size[1] // patch[1])
    mask = torch.arange(count, device=_device(model)) % 2 == 0
    return mask.expand(_BATCH, count)


def _sides(side: Any) -> list[tuple[int, int]]:
    """Return the size that a model fixes; some that are common where it fixes none."""
    return [(s, s) for s in _SIDES] if side is None else [_pair(side)]


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[-2]), int(size[-1]))


def _device(model: nn.Module) -> torch.device:
    first = next(iter(model.parameters()), None)
    return torch.device("cpu") if first is None else first.device


def _tokens(model: nn.Module) -> Tensor:
    return torch.zeros((_BATCH, _LENGTH), dtype=torch.long, device=_device(model))


def _floats(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    dtype = dtypes[0] if dtypes else torch.get_default_dtype()
    return torch.zeros(shape, dtype=dtype, device=_device(model))


# The same inputs in other sizes ------------------------------------------------------------


def other_sizes(inputs: Inputs) -> Iterator[Inputs]:
    """Yield inputs with more, or fewer, places and examples, the most telling first.

    Which axes hold places is not known, so that a model may refuse some of them. Tensors beside
    the one with the most axes follow it where their sizes are the same.
    """
    tensors = [tensor for _, tensor in leaves((inputs.args, inputs.kwargs)) if tensor.ndim]
    if not tensors:
        return
    main = max(tensors, key=lambda tensor: tensor.ndim)
    choices = _places(main)
    for batch in (main.shape[0] + 1, main.shape[0]):
        for places in choices:
            for factor in (2.0, 0.5):
                shape = [batch, *main.shape[1:]]
                for axis in places:
                    shape[axis] = int(shape[axis] * factor)
                if all(shape):
                    yield _resized(inputs, main, shape)
    yield _resized(inputs, main, [main.shape[0] + 1, *main.shape[1:]])


def _places(tensor: Tensor) -> list[Sequence[int]]:
    """Return which axes may be places: those behind the channels, or between batch and channels."""
    ndim = tensor.ndim
    if ndim == 2:
        return [] if tensor.is_floating_point() else [(1,)]
    return [range(2, ndim), range(1, ndim - 1)] if ndim > 2 else []


def _resized(inputs: Inputs, main: Tensor, shape: Sequence[int]) -> Inputs:
    changed = dict(zip(main.shape[1:], shape[1:], strict=True))
    batch = {main.shape[0]: shape[0]}

    def resize(item: Any) -> Any:
        if not isinstance(item, Tensor) or not item.ndim:
            return item
        wanted = [(changed if axis else batch).get(n, n) for axis, n in enumerate(item.shape)]
        for axis, size in enumerate(shape if item is main else wanted):
            item = _of_size(item, axis, size)
        return item

    with torch.no_grad():
        args, kwargs = tree_map(resize, (inputs.args, inputs.kwargs))
    return Inputs(args, kwargs, f"{inputs.origin}, of another size")


def _of_size(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Cut a tensor along an axis, or repeat what it holds: numbers of tokens stay what they are."""
    if size > tensor.shape[axis]:
        tensor = torch.cat([tensor] * -(-size // tensor.shape[axis]), dim=axis)
    return tensor.narrow(axis, 0, size)
