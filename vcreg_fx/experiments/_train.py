"""A short training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    on_step: Callable[[float], object] = lambda _: None,
) -> float:
    """Train a classifier in place, with AdamW and a one-cycle learning rate.

    VCReg needs nothing here: what was inserted adds its gradient in ``backward``.

    **Arguments:**

    - `images`, `labels`: shapes (n, channels, height, width) and (n,).
    - `steps`: at least 3, which the schedule needs.
    - `seed`: of the order of the images.
    - `on_step`: called with the loss of each step.

    **Returns:** the loss of the last step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=max(0.2, 2 / steps)
    )
    model.train()
    last = float("nan")
    for indices in _batches(len(labels), batch_size, steps, seed):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[indices]), labels[indices])
        loss.backward()
        optimizer.step()
        schedule.step()
        last = loss.item()
        on_step(last)
    return last


def _batches(count: int, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Yield the indices of each step's images: epoch after epoch, each in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, count)
    order = torch.randperm(count, generator=generator)
    for _ in range(steps):
        if len(order) < batch_size:
            order = torch.randperm(count, generator=generator)
        yield order[:batch_size]
        order = order[batch_size:]
