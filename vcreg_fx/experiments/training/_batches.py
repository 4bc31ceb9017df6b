"""The batches of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ._distributed import Processes
from ._settings import TrainSettings

Pair = tuple[Tensor, Tensor]


def epoch_order(count: int, settings: TrainSettings, seed: int, epoch: int) -> list[Tensor]:
    """Return the indices of each step of an epoch, for all processes together.

    The order depends on seed and epoch alone. An incomplete last batch is left out, unless it is
    the only one.
    """
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order = torch.randperm(count, generator=generator)
    if settings.repeats > 1:
        order = order.repeat_interleave(settings.repeats)[:count]
    steps = steps_of(count, settings)
    return list(order[: max(steps * settings.batch_size, 1)].split(settings.batch_size))[:steps]


def steps_of(count: int, settings: TrainSettings) -> int:
    """Return the number of steps of an epoch."""
    return max(count // settings.batch_size, 1)


class Batches:
    """Batches of a data set of (image, label) pairs, on the device of this process."""

    def __init__(self, data: Dataset[Any], settings: TrainSettings, where: Processes) -> None:
        self._data, self._settings, self._where = data, settings, where
        self._count = len(data)  # type: ignore[arg-type]
        if self._count < 2:
            raise ValueError(f"The training data has {self._count} images; 2 are needed at least.")
        self.steps = steps_of(self._count, settings)

    def epoch(self, seed: int, epoch: int) -> Iterator[Pair]:
        """Yield images and labels of this process, step by step."""
        order = epoch_order(self._count, self._settings, seed, epoch)
        mine = [step[self._where.rank :: self._where.size] for step in order]
        for images, labels in _load(self._data, mine, self._settings.workers):
            yield (
                images.to(self._where.device, non_blocking=True),
                labels.to(self._where.device, non_blocking=True),
            )


def _load(data: Dataset[Any], order: list[Tensor], workers: int) -> Iterator[Pair]:
    if isinstance(data, TensorDataset):
        images, labels = data.tensors
        yield from ((images[step], labels[step]) for step in order)
        return
    yield from DataLoader(
        data,
        batch_sampler=[step.tolist() for step in order],
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
