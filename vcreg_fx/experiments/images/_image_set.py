"""Labelled images, in memory or in files: what is done with them, and which are for what."""

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

    def split(self, number: int) -> ImageData:
        """Return a split by its number, where several are published."""
        return self

    def hold_out(self, share: float | int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return the indices of images to train on, and of those held out: see `split_indices`."""
        return split_indices(self.train.labels, share, seed)

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


# Which images are for what: balanced and long-tailed subsets, and what is held out --------------


def balanced_indices(labels: Tensor, count: int, seed: int) -> Tensor:
    """Return indices of about `count` images, equally many of each class (fewer where they lack).

    **Raises:** `DataError` if there are fewer images than classes are asked for.
    """
    classes = labels.unique()
    each = count // len(classes)
    if each < 1:
        raise DataError(f"{count} images are too few for {len(classes)} classes.")
    return _drawn(labels, {int(label): each for label in classes}, seed)


def _drawn(labels: Tensor, counts: Mapping[int, int], seed: int) -> Tensor:
    """Return the indices of so many images of each class, in increasing order."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for label, count in counts.items():
        members = (labels == label).nonzero().flatten()
        found.append(members[torch.randperm(len(members), generator=generator)][:count])
    return torch.cat(found).sort().values


def split_indices(labels: Tensor, held_out: float | int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the indices to train on and those held out, with equal shares of each class.

    **Arguments:**

    - `held_out`: a share of the images, or how many.
    - `seed`: decides which.

    **Raises:** `DataError` if a class is too small to be split.
    """
    from sklearn.model_selection import train_test_split

    try:
        kept, held = train_test_split(
            range(len(labels)), test_size=held_out, random_state=seed, stratify=labels.numpy()
        )
    except ValueError as error:
        raise DataError(f"The images cannot be split: {error}") from error
    return torch.tensor(sorted(kept)), torch.tensor(sorted(held))


def long_tail_counts(classes: int, largest: int, imbalance: float) -> list[int]:
    """Return how many images each class has, the most frequent first.

    Class i of C has ``largest · imbalance^(−i / (C − 1))`` images, rounded down: the profile of
    CIFAR10-LT and CIFAR100-LT (Cui et al. 2019, Cao et al. 2019), 5000 … 50 and 500 … 5.

    **Arguments:**

    - `classes`: C, at least 2.
    - `largest`: images of the first class.
    - `imbalance`: how many times as many images the first class has as the last.

    **Raises:** `DataError` if a class would have no image.
    """
    if classes < 2 or imbalance < 1 or largest < imbalance:
        raise DataError(
            f"{classes} classes from {largest} images down, with an imbalance of {imbalance:g}: "
            "there must be 2 classes, an imbalance of 1 and one image in the last class at least."
        )
    # 1e-6: 500 · 100^(−1) is 5 and must not be rounded down to 4 by its last digit.
    return [int(largest * imbalance ** (-i / (classes - 1)) + 1e-6) for i in range(classes)]


def long_tail_indices(labels: Tensor, counts: Sequence[int], seed: int = 0) -> Tensor:
    """Return the indices of a long-tailed subset, in increasing order.

    **Arguments:**

    - `labels`: of the balanced data set, shape (n,).
    - `counts`: images of each class.
    - `seed`: decides which images are taken. The images of a larger `counts` contain those of a
      smaller one.

    **Raises:** `DataError` if a class has too few images.
    """
    for label, count in enumerate(counts):
        if (there := int((labels == label).sum())) < count:
            raise DataError(f"Class {label} has {there} images, fewer than {count}.")
    return _drawn(labels, dict(enumerate(counts)), seed)


def shot_groups(
    counts: Sequence[int], thresholds: tuple[int, int] | None = None
) -> dict[str, list[int]]:
    """Return the many-shot, medium-shot and few-shot classes.

    **Arguments:**

    - `counts`: training images of each class.
    - `thresholds`: (100, 20) calls classes of more than 100 images many-shot and those of less than
      20 few-shot, as Liu et al. 2019 do; None takes thirds of the classes by rank, the medium ones
      being more where they cannot be equal.
    """
    order = sorted(range(len(counts)), key=lambda label: -counts[label])
    if thresholds is None:
        third = len(order) // 3
        return {
            "many": sorted(order[:third]),
            "medium": sorted(order[third : len(order) - third]),
            "few": sorted(order[len(order) - third :]),
        }
    many, few = thresholds
    return {
        "many": [i for i, count in enumerate(counts) if count > many],
        "medium": [i for i, count in enumerate(counts) if few <= count <= many],
        "few": [i for i, count in enumerate(counts) if count < few],
    }
