"""What trained networks are put to: table 1's data sets, and those that need no download."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...evaluation import INATURALIST_PROBE, PLACES_PROBE, ProbeSettings
from ._datasets import DATA, GLYPHS, IMAGENET_STATISTICS, load_images, open_data, prepare
from ._glyphs import glyphs
from ._image_set import DataError, ImageSet, balanced_indices

Criterion = Literal["accuracy", "class_accuracy"]


class _Splits(NamedTuple):
    """A data set of torchvision: the name of its class, and of its splits."""

    kind: str
    train: str
    validation: str | None = None
    criterion: Criterion = "accuracy"


TORCHVISION = {
    "food101": _Splits("Food101", "train"),
    "cars": _Splits("StanfordCars", "train"),
    "aircraft": _Splits("FGVCAircraft", "train", "val", "class_accuracy"),
    "pets": _Splits("OxfordIIITPet", "trainval", criterion="class_accuracy"),
    "flowers": _Splits("Flowers102", "train", "val", "class_accuracy"),
    "dtd": _Splits("DTD", "train", "val"),
}
"""The small data sets of tables 1 and 7, with their test split ``"test"``."""

DOWNSTREAM = ("inat18", "places205", *TORCHVISION)
"""Table 1's data sets."""


@dataclass(frozen=True)
class Downstream:
    """A task for a trained network.

    **Attributes:**

    - `train`, `test`: (image, label) pairs.
    - `classes`: how many there are.
    - `validation`: more pairs, where the data set has a split of them: they choose the strength of
      a probe, which then trains on them, too.
    - `criterion`: what its protocol reports.
    - `probe`: of its linear probe by gradient descent; None for logistic regression.
    """

    train: Dataset[Any]
    test: Dataset[Any]
    classes: int
    validation: Dataset[Any] | None = None
    criterion: Criterion = "accuracy"
    probe: ProbeSettings | None = None


def load_downstream(
    name: str, root: str | Path | None, shape: tuple[int, ...], images: int | None = None
) -> Downstream:
    """Return a task by its name.

    **Arguments:**

    - `name`: one of `DOWNSTREAM`, or of what `load_images` has in memory.
    - `root`: the folder of the data.
    - `shape`: of an image for the network. Table 1's are prepared as Appendix C.1 says, for this
      size; those in memory are brought to it, a gray one by repeating it.
    - `images`: of a data set in memory, the most to train on; half as many to test on.

    **Raises:** `DataError` for an unknown name, or if it is not there.
    """
    if name in DOWNSTREAM:
        transform = downstream_transform(shape[-1])
        if name in TORCHVISION:
            return _from_torchvision(TORCHVISION[name], root, transform)
        return _places205(root, transform) if name == "places205" else _inat18(root, transform)
    if name in {"cifar10", "cifar100", "imagenet"} or name not in {*DATA, *GLYPHS}:
        raise DataError(
            f"There is no downstream task {name!r}. There are {', '.join(DOWNSTREAM)}; digits, "
            f"fashion-mnist; {', '.join(GLYPHS)}."
        )
    if name in GLYPHS and images is not None:
        data = glyphs(name, images, images // 2, shape[-1], root=root)
    else:
        data = load_images(name, root)
    train = _Fitted(data.train, shape, images)
    test = _Fitted(data.test, shape, None if images is None else images // 2)
    return Downstream(train, test, len(data.classes))


class _Fitted(Dataset[Any]):
    """So many images at the most, brought to a shape when they are asked for."""

    def __init__(self, part: ImageSet, shape: tuple[int, ...], most: int | None) -> None:
        self._pairs, self._shape = part.pairs, shape
        self._chosen = torch.arange(len(part))
        if most is not None and most < len(part):
            self._chosen = balanced_indices(part.labels, most, 0)
        self.labels = part.labels[self._chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._pairs[int(self._chosen[index])]
        channels, *size = self._shape
        if list(image.shape[1:]) != size:
            image = torch.nn.functional.interpolate(image[None], size=size, mode="bilinear")[0]
        if len(image) != channels:
            image = image.mean(dim=0, keepdim=True).expand(channels, -1, -1)
        return image, int(label)


def downstream_transform(size: int = 224) -> Callable[[Any], Tensor]:
    """Return Appendix C.1's preparation: shorter side to `size`, bicubic; center crop."""
    from torchvision.transforms import v2

    resize = v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC)
    return prepare([resize, v2.CenterCrop(size)], *IMAGENET_STATISTICS)


def _from_torchvision(
    splits: _Splits, root: str | Path | None, transform: Callable[[Any], Tensor]
) -> Downstream:
    from torchvision import datasets

    kind = getattr(datasets, splits.kind)
    train, test, *validation = (
        open_data(kind, root, transform=transform, split=part)
        for part in (splits.train, "test", *filter(None, [splits.validation]))
    )
    return Downstream(
        train, test, len(train.classes), next(iter(validation), None), splits.criterion
    )


def _places205(root: str | Path | None, transform: Callable[[Any], Tensor]) -> Downstream:
    """Return Places205 from the folders ``places205/train`` and ``places205/val``."""
    from torchvision.datasets import ImageFolder

    train, test = (
        open_data(
            ImageFolder,
            None if root is None else Path(root) / "places205" / part,
            transform=transform,
        )
        for part in ("train", "val")
    )
    return Downstream(train, test, len(train.classes), probe=PLACES_PROBE)


class _Files(Dataset[Any]):
    """Pictures in files, with labels."""

    def __init__(
        self, files: list[Path], labels: list[int], transform: Callable[[Any], Tensor]
    ) -> None:
        self._files, self._labels, self._transform = files, labels, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        with Image.open(self._files[index]) as picture:
            return self._transform(picture.convert("RGB")), self._labels[index]


def _inat18(root: str | Path | None, transform: Callable[[Any], Tensor]) -> Downstream:
    """Return iNaturalist 2018 by its ``train2018.json`` and ``val2018.json``."""
    if root is None:
        raise DataError("iNaturalist 2018 has to be read from a folder: --data-root DIR.")
    folder, parts, classes = Path(root) / "inat18", [], 0
    for name in ("train2018.json", "val2018.json"):
        try:
            found = json.loads((folder / name).read_text("utf-8"))
        except FileNotFoundError as error:
            raise DataError(
                f"{folder / name} is not there. iNaturalist 2018 is read from {folder}: its "
                "train2018.json, val2018.json, and the pictures below train_val2018."
            ) from error
        label_of = {item["image_id"]: item["category_id"] for item in found["annotations"]}
        files = [folder / item["file_name"] for item in found["images"]]
        labels = [label_of[item["id"]] for item in found["images"]]
        classes = max(classes, len(found["categories"]))
        parts.append(_Files(files, labels, transform))
    return Downstream(parts[0], parts[1], classes, probe=INATURALIST_PROBE)
