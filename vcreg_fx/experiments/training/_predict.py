"""What a trained model says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


def predict(
    model: nn.Module, data: Dataset[Any], batch_size: int = 256, workers: int = 0
) -> Tensor:
    """Return the model's class for each image, on the CPU; its mode is left as it was."""
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found = [
                model(images.to(device)).argmax(dim=1).cpu()
                for images in _images(data, batch_size, workers)
            ]
    finally:
        model.train(training)
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
