"""A batch of noise for a model that the command line names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from placement_rules import record

from ._errors import ModelError


def noise_for(
    model: nn.Module, batch: int, instead: str, example: tuple[Tensor, ...] | None = None
) -> Tensor:
    """Return normal noise of the shape on which the model is recorded, ``batch`` examples.

    **Arguments:**

    - `model`, `batch`: the model, and how many examples.
    - `example`: arguments to record on; else worked out from the model.
    - `instead`: what to call in Python with another batch.

    **Raises:** `ModelError` if the model takes several tensors, or whole numbers.
    """
    shapes = [(path, node.meta["val"]) for path, node in record(model, example).root.inputs]
    if len(shapes) != 1 or not shapes[0][1].is_floating_point():
        raise ModelError(
            f"{type(model).__name__} takes {len(shapes)} tensors or whole numbers, for which noise "
            f"is no input. Call {instead} with your own."
        )
    value = shapes[0][1]
    return torch.randn((batch, *value.shape[1:]), dtype=value.dtype)
