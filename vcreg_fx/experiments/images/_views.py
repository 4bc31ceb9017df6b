"""Two views of an image, by lightly's transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ..._shared.keeping import keeping_randomness, seed_all
from ._image_set import DataError, ImageData, ImageSet

VIEWS = ("vicreg", "vcreg", "byol", "simsiam")
"""How views are made: VICReg's C.1, VCReg's C.5 (that without solarization), BYOL's, SimSiam's."""


class Views(Dataset[Any]):
    """Two views of each image beside its label: (shape (2, channels, height, width), label).

    **Arguments:**

    - `images`: tensors in memory, or pictures in files as ``augment="pictures"`` leaves them.
    - `data`: what they are part of, whose range or statistics the views have.
    - `recipe`: one of `VIEWS`.
    - `crop`: the smallest share of an image that a view has; by default that of the recipe, 0.08 or
      SimSiam's 0.2.
    - `drawn`: so many views of each image are drawn beforehand and kept in memory, of which two
      different ones are taken; by default every view is a new one.
    - `seed`: of those views.

    **Raises:** `DataError` for images that were augmented otherwise, or an unknown recipe;
    `ModuleNotFoundError` without lightly.
    """

    def __init__(
        self,
        images: ImageSet,
        data: ImageData,
        recipe: str = "vicreg",
        crop: float | None = None,
        drawn: int | None = None,
        seed: int = 0,
    ) -> None:
        self._pairs, self._labels = images.training, images.labels
        self._pictures = not isinstance(self._pairs, TensorDataset)
        if self._pictures and isinstance(self._pairs[0][0], Tensor):
            raise DataError(f'{data.name} is augmented already; views take augment="pictures".')
        if drawn is not None and drawn < 2:
            raise DataError(f"drawn={drawn} must be 2 at least: two views are taken.")
        self._transform = _transform(recipe, data.shape[-1], crop)
        if data.statistics is not None:
            self._shift, self._scale = (_column(values) for values in data.statistics)
        elif isinstance(data.train.pairs, TensorDataset):
            low, high = data.train.pairs.tensors[0].aminmax()
            self._shift, self._scale = -low / (high - low), 1 / (high - low)
        else:
            raise DataError(f"{data.name} does not say by which statistics it is standardized.")
        self._kept: Tensor | None = None
        if drawn is not None:
            with keeping_randomness():
                seed_all(seed)
                found = [self._views(i) for _ in range(-(-drawn // 2)) for i in range(len(self))]
            parts = torch.stack(found).unflatten(0, (-1, len(self)))
            self._kept = parts.transpose(0, 1).flatten(1, 2)[:, :drawn]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return two views and the label."""
        views = self._views(index) if self._kept is None else self._two(self._kept[index])
        return views, int(self._labels[index])

    def _views(self, index: int) -> Tensor:
        picture = self._pairs[index][0]
        if isinstance(picture, Tensor):
            from torchvision.transforms.v2.functional import to_pil_image

            picture = to_pil_image((picture * self._scale + self._shift).clamp(0, 1))
        views = torch.stack(self._transform(picture))
        return (views - self._shift) / self._scale

    @staticmethod
    def _two(views: Tensor) -> Tensor:
        first, second = torch.randint(len(views), ()), torch.randint(len(views) - 1, ())
        return torch.stack([views[first], views[second + (second >= first)]])


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def _transform(recipe: str, size: int, crop: float | None) -> Callable[[Any], list[Tensor]]:
    from lightly import transforms

    plain: dict[str, Any] = {"input_size": size, "normalize": None}
    if crop is not None:
        plain["min_scale"] = crop
    found: Callable[[Any], list[Tensor]]
    if recipe in {"vicreg", "vcreg"}:
        solarized = 0.1 if recipe == "vicreg" else 0.0
        found = transforms.VICRegTransform(**plain, solarize_prob=solarized)
    elif recipe == "byol":
        views = transforms.BYOLView1Transform(**plain), transforms.BYOLView2Transform(**plain)
        found = transforms.BYOLTransform(*views)
    elif recipe == "simsiam":
        found = transforms.SimSiamTransform(**plain)
    else:
        raise DataError(f"There are no views {recipe!r}; there are {', '.join(VIEWS)}.")
    return found
