"""Labelled images, in memory or in files, and what is done with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from placement_rules import UserError


class DataError(UserError, ValueError):
    """Data is not there, or is not what was said; the message says where to get it."""


Pairs = Dataset[Any]


@dataclass(frozen=True)
class ImageSet:
    """Images with labels.

    **Attributes:**

    - `pairs`: (image, label) pairs; a ``TensorDataset`` where they lie in memory.
    - `labels`: shape (n,).
    - `augmented`: the same images with augmentation, to train on; by default, `pairs`.
    """

    pairs: Pairs
    labels: Tensor
    augmented: Pairs | None = None

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> ImageSet:
        """Return images in memory: shapes (n, channels, height, width) and (n,)."""
        return cls(TensorDataset(images, labels), labels)

    @property
    def training(self) -> Pairs:
        """What to train on."""
        return self.pairs if self.augmented is None else self.augmented

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def subset(self, indices: Tensor) -> ImageSet:
        """Return some of the images."""
        return self._map(lambda pairs: _subset(pairs, indices), self.labels[indices])

    def relabel(self, label_of: Tensor) -> ImageSet:
        """Return the same images with ``label_of[label]`` as labels."""
        return self._map(lambda pairs: _relabel(pairs, label_of), label_of[self.labels])

    def of_classes(self, classes: Sequence[int]) -> ImageSet:
        """Return the images of some classes, labelled by their place in `classes`."""
        chosen = torch.isin(self.labels, torch.tensor(classes)).nonzero().flatten()
        label_of = torch.full((int(self.labels.max()) + 1,), -1)
        for place, label in enumerate(classes):
            label_of[label] = place
        return self.subset(chosen).relabel(label_of)

    def _map(self, change: Callable[[Pairs], Pairs], labels: Tensor) -> ImageSet:
        augmented = None if self.augmented is None else change(self.augmented)
        return ImageSet(change(self.pairs), labels, augmented)


@dataclass(frozen=True)
class ImageData:
    """A data set.

    **Attributes:**

    - `name`: as it is shown.
    - `train`, `test`: its two splits. An experiment takes validation images from `train`.
    - `classes`: their names, by label.
    - `groups`: superclass → labels of its classes, where there are any.
    - `root`: the folder it was read from, in which other data sets may be.
    - `statistics`: the mean and the standard deviation, one number a channel, by which pictures in
      files are standardized; None where the images lie in memory.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    root: Path | None = None
    statistics: tuple[Sequence[float], Sequence[float]] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image: (channels, height, width)."""
        image, _ = self.train.pairs[0]
        return tuple(image.shape)

    @property
    def group_of(self) -> Tensor:
        """The index of each class's superclass, shape (classes,)."""
        found = torch.full((len(self.classes),), -1)
        for index, members in enumerate(self.groups.values()):
            found[list(members)] = index
        return found


class _Relabelled(Dataset[Any]):
    def __init__(self, pairs: Pairs, label_of: Tensor) -> None:
        self._pairs, self._label_of = pairs, label_of.tolist()

    def __len__(self) -> int:
        return len(self._pairs)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self._pairs[index]
        return image, self._label_of[int(label)]


def _subset(pairs: Pairs, indices: Tensor) -> Pairs:
    if isinstance(pairs, TensorDataset):
        return TensorDataset(*(tensor[indices] for tensor in pairs.tensors))
    return Subset(pairs, indices.tolist())


def _relabel(pairs: Pairs, label_of: Tensor) -> Pairs:
    if isinstance(pairs, TensorDataset):
        images, labels = pairs.tensors
        return TensorDataset(images, label_of[labels])
    return _Relabelled(pairs, label_of)
