"""Data sets by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from ._digits import digits
from ._errors import DataError
from ._fashion_mnist import fashion_mnist
from ._image_set import ImageData

DATA = ("digits", "fashion-mnist", "cifar10", "cifar100", "imagenet")
"""The data sets that experiments train on."""


def load_images(
    name: str,
    root: str | Path | None = None,
    *,
    augment: str = "none",
    classes: str | Path | None = None,
    size: int | None = None,
) -> ImageData:
    """Return a data set by its name.

    **Arguments:**

    - `name`: one of `DATA`.
    - `root`: its folder. The digits need none, Fashion-MNIST has a default.
    - `augment`: of the training images: ``"none"``, ``"crop"`` (CIFAR) or ``"torchvision"``, what
      torchvision's recipe does to an image.
    - `classes`: a class file for ImageNet, see `read_classes`.
    - `size`: the side of Fashion-MNIST's images, which are padded from 28, or of ImageNet's crops;
      the others have 32.

    **Raises:** `DataError` for an unknown name, or if the data is not there.
    """
    if classes is not None and name != "imagenet":
        raise DataError("A class file chooses among ImageNet's classes: --data imagenet.")
    if name == "digits":
        return digits()
    if name == "fashion-mnist":
        return fashion_mnist(root, size or 28)
    from ._torchvision import cifar, imagenet

    if name in {"cifar10", "cifar100"}:
        return cifar(name, root, augment)
    if name == "imagenet":
        return imagenet(root, augment, classes, size or 224)
    near = difflib.get_close_matches(name, DATA, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise DataError(f"There is no data set {name!r}.{hint} There are {', '.join(DATA)}.")
