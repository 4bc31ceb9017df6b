"""Batches of any kind of data in one form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset


@dataclass(frozen=True)
class Batch:
    """The arguments of one forward pass.

    **Attributes:**

    - `args`, `kwargs`: of the model.
    - `labels`: shape (n,), if the data has them.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor | None

    @property
    def size(self) -> int:
        """How many samples there are."""
        tensors = [v for v in (*self.args, *self.kwargs.values()) if isinstance(v, Tensor)]
        return len(tensors[0])

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its arguments on a device; labels stay where they are."""

        def move(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        kwargs = {name: move(value) for name, value in self.kwargs.items()}
        return Batch(tuple(move(value) for value in self.args), kwargs, self.labels)


def batches(data: Tensor | Iterable[Any], batch_size: int, progress: bool) -> Iterator[Batch]:
    """Yield the batches of a tensor, a data set or an iterable; see `extract_features`."""
    parts: Iterable[Any] = data
    if isinstance(data, Tensor):
        parts = data.split(batch_size)
    elif isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        parts = DataLoader(data, batch_size)
    if progress:
        from rich.progress import track

        total = len(parts) if isinstance(parts, Sized) else None
        parts = track(parts, "extracting features", total=total)
    for part in parts:
        yield _batch(part)


def _batch(part: Any) -> Batch:
    if isinstance(part, Tensor):
        return Batch((part,), {}, None)
    if isinstance(part, Mapping):
        kwargs = {name: value for name, value in part.items() if name != "labels"}
        if any(isinstance(value, Tensor) for value in kwargs.values()):
            return Batch((), kwargs, part.get("labels"))
    if isinstance(part, (tuple, list)) and 1 <= len(part) <= 2:
        inputs, *labels = part
        if isinstance(inputs, Tensor):
            return Batch((inputs,), {}, torch.as_tensor(labels[0]) if labels else None)
    raise TypeError(
        f"A batch is a {type(part).__name__}. Give tensors, pairs (tensor, labels), or "
        "dictionaries of the model's named arguments."
    )
