"""Scikit-learn's handwritten digits, with a test split that never changes."""

from __future__ import annotations

from .._digits import GROUPS, load_digits
from ._image_set import ImageData, ImageSet


def digits() -> ImageData:
    """Return the 1,797 digits at 32×32: 1,198 images to train on and 599 to test on."""
    train, test = (ImageSet.of(part.images, part.digits) for part in load_digits(0))
    return ImageData("digits", train, test, tuple(map(str, range(10))), GROUPS)
