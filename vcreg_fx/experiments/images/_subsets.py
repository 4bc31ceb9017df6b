"""Which images are for what: balanced and long-tailed subsets, and what is held out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._image_set import DataError


def balanced_indices(labels: Tensor, count: int, seed: int) -> Tensor:
    """Return indices of about `count` images, equally many of each class (fewer where they lack).

    **Raises:** `DataError` if there are fewer images than classes are asked for.
    """
    classes = labels.unique()
    each = count // len(classes)
    if each < 1:
        raise DataError(f"{count} images are too few for {len(classes)} classes.")
    generator = torch.Generator().manual_seed(seed)
    found = []
    for label in classes:
        members = (labels == label).nonzero().flatten()
        found.append(members[torch.randperm(len(members), generator=generator)][:each])
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
    generator = torch.Generator().manual_seed(seed)
    found = []
    for label, count in enumerate(counts):
        members = (labels == label).nonzero().flatten()
        if len(members) < count:
            raise DataError(f"Class {label} has {len(members)} images, fewer than {count}.")
        found.append(members[torch.randperm(len(members), generator=generator)][:count])
    return torch.cat(found).sort().values


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
