"""Fashion-MNIST from its idx files, as Debian's package and torchvision store them."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ._image_set import DataError, ImageData, ImageSet

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

FASHION_GROUPS: Mapping[str, tuple[int, ...]] = {
    "tops": (0, 2, 4, 6),
    "long": (1, 3),
    "shoes": (5, 7, 9),
    "bags": (8,),
}
"""Fashion-MNIST's ten classes in four superclasses."""

_PACKAGED = Path("/usr/share/datasets/fashion-mnist")
_MEAN, _STD = 0.2860, 0.3530  # of the training images


def fashion_mnist(root: str | Path | None = None, size: int = 28) -> ImageData:
    """Return Fashion-MNIST: 60,000 images to train on and 10,000 to test on, standardized.

    **Arguments:**

    - `root`: a folder with the idx files, or one in which torchvision has put them; by default
      that of Debian's package ``dataset-fashion-mnist``.
    - `size`: the images' sides; what is more than 28 is padded with background.

    **Raises:** `DataError` that says where to get it.
    """
    folder = _find(root)
    sets = []
    for part in ("train", "t10k"):
        pixels = _read(folder, f"{part}-images-idx3-ubyte", 16).view(-1, 1, 28, 28)
        labels = _read(folder, f"{part}-labels-idx1-ubyte", 8)
        if len(pixels) != len(labels):
            raise DataError(f"{folder} has {len(pixels)} {part} images, {len(labels)} labels.")
        before = (size - 28) // 2
        after = size - 28 - before
        padded = torch.nn.functional.pad(pixels, (before, after, before, after))
        sets.append(ImageSet.of((padded.float() / 255 - _MEAN) / _STD, labels.long()))
    return ImageData("Fashion-MNIST", sets[0], sets[1], FASHION_CLASSES, FASHION_GROUPS)


def _find(root: str | Path | None) -> Path:
    places = [_PACKAGED] if root is None else [Path(root), Path(root) / "FashionMNIST" / "raw"]
    for place in places:
        if any(place.glob("train-images-idx3-ubyte*")):
            return place
    raise DataError(
        f"Fashion-MNIST is not in {' or '.join(map(str, places))}. Install Debian's package "
        "(apt install dataset-fashion-mnist), or give the folder of its idx files with "
        "--data-root, or take --data digits, which needs nothing."
    )


def _read(folder: Path, name: str, header: int) -> Tensor:
    packed = folder / f"{name}.gz"
    plain = folder / name
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes()
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy())
