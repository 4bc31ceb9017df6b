"""One training step of a model, in the types that the user chose."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from placement_rules import leaves

from ._clock import Clock
from ._variants import added_loss

DTYPES = ("float32", "tf32", "bf16", "amp")


class Step:
    """Forward, loss and backward of one variant, on one batch of noise.

    **Arguments:**

    - `variant`: its name.
    - `model`: the model, or its compiled form.
    - `inner`: the model itself, which holds the penalties.
    - `inputs`: the batch.
    - `dtype`: of `DTYPES`; ``"amp"`` is autocast in bfloat16.
    """

    def __init__(
        self, variant: str, model: Any, inner: nn.Module, inputs: Tensor, dtype: str
    ) -> None:
        self.variant = variant
        self.model = model
        self.inner = inner
        self.inputs = inputs
        self.dtype = dtype

    def forward(self) -> Tensor:
        """Return the loss: cross-entropy against fixed labels."""
        device = self.inputs.device.type
        autocast: Any = contextlib.nullcontext()
        if self.dtype == "amp":
            autocast = torch.autocast(device, torch.bfloat16)
        with autocast:
            output = self.model(self.inputs)
        logits = max((t for _, t in leaves(output)), key=Tensor.numel).flatten(1).float()
        labels = torch.arange(len(logits), device=logits.device) % logits.shape[1]
        return nn.functional.cross_entropy(logits, labels) + added_loss(self.variant, self.inner)

    def run(self) -> None:
        """Do one step."""
        self.forward().backward()
        self.clear()

    def clear(self) -> None:
        """Free the gradients."""
        for parameter in self.inner.parameters():
            parameter.grad = None

    def timed(self, clock: Clock) -> tuple[float, float]:
        """Return how long forward and backward take, in seconds."""
        start = clock.read()
        loss = self.forward()
        middle = clock.read()
        loss.backward()
        end = clock.read()
        self.clear()
        return middle - start, end - middle
