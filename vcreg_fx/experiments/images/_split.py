"""Which images are for what."""

from __future__ import annotations

import torch
from torch import Tensor

from ._errors import DataError


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
