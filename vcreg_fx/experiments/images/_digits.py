"""Scikit-learn's handwritten digits as images for a ConvNeXt, with a coarse labelling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._image_set import ImageData, ImageSet

# What the strokes of a digit look like, and nothing about its value: closed loops (0, 6, 8, 9),
# straight lines (1, 4, 7), open curves (2, 3, 5). A model can learn these three groups well and
# still forget which digit of a group it saw, and that is what the probe on ten digits measures.
GROUPS = {"loops": (0, 6, 8, 9), "lines": (1, 4, 7), "curves": (2, 3, 5)}

_SIDE = 32
_TEST_SHARE = 1 / 3


@dataclass(frozen=True)
class Split:
    """Images with both labellings.

    **Attributes:**

    - `images`: shape (n, 1, 32, 32), values from −1 to 1.
    - `digits`: shape (n,), 0 to 9.
    - `groups`: shape (n,), the index in `GROUPS`.
    """

    images: Tensor
    digits: Tensor

    @property
    def groups(self) -> Tensor:
        """The coarse labels, shape (n,)."""
        group_of = {digit: k for k, members in enumerate(GROUPS.values()) for digit in members}
        return torch.tensor([group_of[digit] for digit in range(10)])[self.digits]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.digits)


def load_digits(seed: int = 0) -> tuple[Split, Split]:
    """Return 1,198 images to train on and 599 to test on, with equal shares of each digit.

    The 8×8 images are enlarged to 32×32, because a ConvNeXt halves its resolution five times.

    **Arguments:**

    - `seed`: decides which image goes where.
    """
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    pixels, labels = load(return_X_y=True)
    small = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 8 - 1
    images = torch.nn.functional.interpolate(small, size=(_SIDE, _SIDE), mode="bilinear")
    digits = torch.from_numpy(labels).long()
    indices = train_test_split(
        range(len(digits)), test_size=_TEST_SHARE, random_state=seed, stratify=labels
    )
    train, test = (torch.tensor(part) for part in indices)
    return Split(images[train], digits[train]), Split(images[test], digits[test])


def digits() -> ImageData:
    """Return the 1,797 digits at 32×32: 1,198 images to train on and 599 to test on."""
    train, test = (ImageSet.of(part.images, part.digits) for part in load_digits(0))
    return ImageData("digits", train, test, tuple(map(str, range(10))), GROUPS)
