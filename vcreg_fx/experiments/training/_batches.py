"""The batches of an epoch, and what a trained model says of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from placement_rules._torch import tree_leaves

from ..._shared.keeping import frozen, keeping_randomness, seed_all
from ._distributed import Processes
from ._settings import TrainSettings

Pair = tuple[Tensor, Tensor]
_SAMPLES = 32  # of data that is not all in memory


def epoch_order(count: int, settings: TrainSettings, seed: int, epoch: int) -> list[Tensor]:
    """Return the indices of each step of an epoch, for all processes together.

    The order depends on seed and epoch alone; the copies of `repeats` follow each other. An
    incomplete last batch is left out, unless it is the only one. A run of so many steps is one
    epoch, for which the images are shuffled again whenever they have all been seen.
    """
    single = settings.steps is not None
    generator = torch.Generator().manual_seed(seed if single else (seed << 20) + epoch)
    steps, size = steps_of(count, settings), min(settings.batch_size, count)
    found: list[Tensor] = []
    while len(found) < steps:
        order = torch.randperm(count, generator=generator)
        if settings.repeats > 1:
            order = order.repeat_interleave(settings.repeats)[:count]
        found += order[: count // size * size].split(size)
    return found[:steps]


def share_of(step: Tensor, settings: TrainSettings, where: Processes) -> Tensor:
    """Return what of a step belongs to this process: copies of an image in several, if there are.

    Those that one process gets are far apart, because mixup and cutmix mix neighbours.
    """
    mine = step[where.rank :: where.size]
    copies = -(-settings.repeats // where.size)  # of an image in this process, at the most
    return torch.cat([mine[first::copies] for first in range(copies)])


def steps_of(count: int, settings: TrainSettings) -> int:
    """Return the number of steps of an epoch."""
    return settings.steps or max(count // settings.batch_size, 1)


class Batches:
    """Batches of a data set of (image, label) pairs, on the device of this process."""

    def __init__(self, data: Dataset[Any], settings: TrainSettings, where: Processes) -> None:
        self._data, self._settings, self._where = data, settings, where
        self._count = len(data)  # type: ignore[arg-type]
        if self._count < 2:
            raise ValueError(f"The training data has {self._count} images; 2 are needed at least.")
        batch = min(settings.batch_size, self._count)
        if batch % where.size:
            raise ValueError(
                f"A batch of {batch} cannot be shared equally by {where.size} processes; take a "
                f"multiple of {where.size}."
            )
        self.steps = steps_of(self._count, settings)

    def epoch(self, seed: int, epoch: int) -> Iterator[Pair]:
        """Yield images and labels of this process, step by step."""
        order = epoch_order(self._count, self._settings, seed, epoch)
        mine = [share_of(step, self._settings, self._where) for step in order]
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


def fingerprint(data: Dataset[Any]) -> str:
    """Return what tells data of equal size apart: of tensors all, of other data some samples.

    Samples that are augmented at random are drawn as if by the seed 0. Where they come out
    differently all the same, as from a generator of their own, nothing can be told: ``"random"``.
    """
    if isinstance(data, TensorDataset):
        return digest(data.tensors)
    count = len(data)  # type: ignore[arg-type]
    some = range(0, count, max(count // _SAMPLES, 1))
    return digest_of_made(lambda: default_collate([data[i] for i in some]))


def digest_of_made(make: Callable[[], Any]) -> str:
    """Return a digest of what a function makes with the seed 0; ``"random"`` if that varies."""
    found = set()
    for _ in range(2):
        with keeping_randomness():
            seed_all(0)
            found.add(digest(make()))
    return found.pop() if len(found) == 1 else "random"


def digest(tensors: Any) -> str:
    """Return a digest of tensors, and of other leaves by what they print."""
    digest = hashlib.sha256()
    for leaf in tree_leaves(tensors):
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            plain = leaf.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(plain.numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


def predict(
    model: nn.Module, data: Dataset[Any], batch_size: int = 256, workers: int = 0
) -> Tensor:
    """Return the model's class for each image, on the CPU; its modes are left as they were."""
    with frozen(model) as device:
        found = [
            model(images.to(device)).argmax(dim=1).cpu()
            for images in _images(data, batch_size, workers)
        ]
    return torch.cat(found)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of labels that was predicted."""
    return float((predicted == labels).double().mean())


def _images(data: Dataset[Any], batch_size: int, workers: int) -> Iterator[Tensor]:
    if isinstance(data, TensorDataset):
        yield from data.tensors[0].split(batch_size)
        return
    for images, *_ in DataLoader(data, batch_size=batch_size, num_workers=workers):
        yield images
