"""The papers' data sets, through torchvision's loaders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ._class_file import read_classes
from ._errors import DataError
from ._groups import CIFAR100_SUPERCLASSES, by_label
from ._image_set import ImageData, ImageSet

_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DOWNSTREAM = {
    "food101": ("Food101", {"split": "train"}, {"split": "test"}),
    "cars": ("StanfordCars", {"split": "train"}, {"split": "test"}),
    "aircraft": ("FGVCAircraft", {"split": "trainval"}, {"split": "test"}),
    "pets": ("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}),
    "flowers": ("Flowers102", {"split": "train"}, {"split": "test"}),
    "dtd": ("DTD", {"split": "train"}, {"split": "test"}),
}
"""Table 7's downstream data sets: torchvision's class, and the arguments of its two splits."""


def cifar(name: str, root: str | Path | None, augment: str) -> ImageData:
    """Return CIFAR10 or CIFAR100, with the random crops and flips of its long-tailed protocol.

    **Arguments:**

    - `name`: ``"cifar10"`` or ``"cifar100"``.
    - `root`: where torchvision has put it.
    - `augment`: ``"none"``, ``"crop"`` or ``"torchvision"``.

    **Raises:** `DataError` if it is not there.
    """
    from torchvision import datasets
    from torchvision.transforms import v2

    kind = getattr(datasets, name.upper())
    plain = _transform([], *_CIFAR)
    changes: dict[str, list[Any]] = {
        "none": [],
        "crop": [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()],
        "torchvision": [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.TrivialAugmentWide(),
        ],
    }
    after = [v2.RandomErasing(0.1)] if augment == "torchvision" else []
    train, augmented, test = (
        _open(kind, root, train=part, transform=change)
        for part, change in (
            (True, plain),
            (True, _transform(changes[augment], *_CIFAR, after)),
            (False, plain),
        )
    )
    groups = by_label(CIFAR100_SUPERCLASSES) if name == "cifar100" else {}
    return ImageData(
        name.upper(),
        ImageSet(train, _targets(train), augmented),
        ImageSet(test, _targets(test)),
        tuple(train.classes),
        groups,
        None if root is None else Path(root),
    )


def imagenet(
    root: str | Path | None, augment: str, classes: str | Path | None, size: int = 224
) -> ImageData:
    """Return ImageNet, or the subset that a class file names.

    **Arguments:**

    - `root`: a folder with ``train`` and ``val``, each with one folder a class.
    - `augment`: ``"none"`` or ``"torchvision"``.
    - `classes`: a class file, see `read_classes`.

    **Raises:** `DataError` if it is not there, or a class of the file is not.
    """
    from torchvision import datasets
    from torchvision.transforms import v2

    plain = downstream_transform(size)
    changes = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.TrivialAugmentWide()]
    mixed = _transform(changes, *_IMAGENET, [v2.RandomErasing(0.1)])
    folder = None if root is None else Path(root)
    sets = [
        _open(datasets.ImageFolder, None if folder is None else folder / part, transform=change)
        for part, change in (
            ("train", plain),
            ("train", mixed if augment == "torchvision" else plain),
            ("val", plain),
        )
    ]
    train = ImageSet(sets[0], _targets(sets[0]), sets[1])
    test = ImageSet(sets[2], _targets(sets[2]))
    names = tuple(sets[0].classes)
    if classes is None:
        return ImageData("ImageNet", train, test, names, root=folder)
    groups = read_classes(classes)
    wanted = [name for members in groups.values() for name in members]
    if missing := sorted(set(wanted) - set(names)):
        raise DataError(f"{folder} has no class folder {', '.join(missing)}, named in {classes}.")
    chosen = [names.index(name) for name in wanted]
    labels = {name: label for label, name in enumerate(wanted)}
    return ImageData(
        f"ImageNet ({Path(classes).stem})",
        train.of_classes(chosen),
        test.of_classes(chosen),
        tuple(wanted),
        {group: tuple(labels[name] for name in members) for group, members in groups.items()},
        folder,
    )


def downstream(name: str, root: str | Path | None, size: int = 224) -> tuple[Dataset[Any], ...]:
    """Return the two splits of one of table 7's data sets, prepared as in Appendix C.1.

    **Raises:** `DataError` if it is not there.
    """
    from torchvision import datasets

    kind, train, test = DOWNSTREAM[name]
    found = getattr(datasets, kind)
    transform = downstream_transform(size)
    return tuple(_open(found, root, transform=transform, **part) for part in (train, test))


def downstream_transform(size: int = 224) -> Callable[[Any], Tensor]:
    """Return Appendix C.1's preparation: shorter side to `size`, bicubic; center crop."""
    from torchvision.transforms import InterpolationMode, v2

    return _transform(
        [v2.Resize(size, interpolation=InterpolationMode.BICUBIC), v2.CenterCrop(size)], *_IMAGENET
    )


def _transform(
    changes: list[Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    after: list[Any] | None = None,
) -> Callable[[Any], Tensor]:
    from torchvision.transforms import v2

    steps = [v2.ToImage(), *changes, v2.ToDtype(torch.float32, scale=True)]
    found: Callable[[Any], Tensor] = v2.Compose(
        [*steps, v2.Normalize(list(mean), list(std)), *(after or []), v2.ToPureTensor()]
    )
    return found


def _open(kind: Any, root: str | Path | None, **arguments: Any) -> Any:
    name = kind.__name__
    if root is None:
        raise DataError(f"{name} has to be read from a folder: --data-root DIR.")
    try:
        return kind(str(root), **arguments)
    except (RuntimeError, FileNotFoundError) as error:
        raise DataError(
            f"torchvision finds no {name} in {root}: {error} Nothing is downloaded here; put it "
            f"there first, for example by torchvision.datasets.{name}({str(root)!r}, "
            "download=True), or give another --data-root."
        ) from error


def _targets(dataset: Any) -> Tensor:
    return torch.tensor(dataset.targets)
