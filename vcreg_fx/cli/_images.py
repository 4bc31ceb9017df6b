"""The images that the command line names, as batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._console import say
from ._errors import OptionError

Batches = Any  # a DataLoader, or a list of pairs
_BATCH = 128
_TEST = ("val", "test", "validation")
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_data(name: str, model: nn.Module, size: int | None, seed: int) -> tuple[Batches, Batches]:
    """Return batches of images and labels, to train probes on and to test on.

    **Arguments:**

    - `name`: ``"digits"``, or a folder with one folder a class; or one with two such folders,
      ``train`` and ``val`` (or ``test``). Without those, a third of each class is for testing.
    - `model`: whose size and normalization the images get, where it says.

    **Raises:** `OptionError` if there is no such folder, or no image in it.
    """
    if name == "digits":
        return _digits(seed, size, _channels(model))
    folder = Path(name)
    if not folder.is_dir():
        raise OptionError("--data", f'{name} is no folder; nor is it "digits".')
    transform = _transform(model, size)
    tests = [folder / part for part in _TEST if (folder / part).is_dir()]
    if (folder / "train").is_dir() and tests:
        train, test = _folder(folder / "train", transform), _folder(tests[0], transform)
        if train.classes != test.classes:
            raise OptionError(
                "--data",
                f"The classes of train and {tests[0].name} differ in "
                f"{', '.join(sorted(set(train.classes) ^ set(test.classes)))}.",
            )
        return _loader(train), _loader(test)
    from ..experiments.images import split_indices

    every = _folder(folder, transform)
    parts = split_indices(torch.tensor(every.targets), 1 / 3, seed)
    train, test = (_loader(torch.utils.data.Subset(every, part.tolist())) for part in parts)
    return train, test


def _channels(model: nn.Module) -> int:
    """Return how many channels a model's images have, by its first convolution; else 1."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return 1 if first is None else first.in_channels


def _digits(seed: int, size: int | None, channels: int) -> tuple[Batches, Batches]:
    """Return the digits; the same gray in each channel."""
    from ..experiments import load_digits

    given = "one channel" if channels == 1 else f"the same in all {channels} channels"
    say(f"The digits are gray: the model is given {given}.", err=True)

    def batches(images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        if size is not None:
            images = nn.functional.interpolate(images, size=(size, size), mode="bilinear")
        images = images.expand(-1, channels, -1, -1)
        return list(zip(images.split(_BATCH), labels.split(_BATCH), strict=True))

    train, test = load_digits(seed)
    return batches(train.images, train.digits), batches(test.images, test.digits)


def _folder(path: Path, transform: Any) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(path, transform)
    except FileNotFoundError as error:
        message = f"{path} holds no images in one folder a class: {error}"
        raise OptionError("--data", message) from error


def _transform(model: nn.Module, size: int | None) -> Any:
    """Resize the shorter side by bicubic resampling and crop the center (VCReg, Appendix C.1)."""
    from torchvision import transforms

    config = getattr(model, "pretrained_cfg", None) or {}
    shape = config.get("input_size", (3, 224, 224))
    side = size or int(shape[-1])
    mean, std = config.get("mean", _IMAGENET[0]), config.get("std", _IMAGENET[1])
    return transforms.Compose([
        transforms.Resize(side, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(side),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ])  # fmt: skip


def _loader(dataset: Any) -> Batches:
    return torch.utils.data.DataLoader(dataset, batch_size=_BATCH)
