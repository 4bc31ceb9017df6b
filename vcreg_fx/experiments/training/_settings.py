"""How a model is trained, in numbers; and the optimizer, schedule and average that they ask for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained. The names follow torchvision's training reference.

    **Arguments:**

    - `epochs`, `batch_size`: the batch is that of all processes together.
    - `steps`: of a short run: so many steps instead of epochs, at least 3, on torch's one-cycle
      schedule instead of warm-up and cosine.
    - `optimizer`: ``"adamw"`` or ``"sgd"``.
    - `learning_rate`: at the end of the warm-up; then it follows a cosine down to 0.
    - `weight_decay`; `norm_weight_decay`: that of norm layers and biases, where it is not None.
    - `momentum`: of SGD.
    - `warmup_epochs`: the learning rate rises linearly from `warmup_start` of itself.
    - `label_smoothing`: of the cross-entropy.
    - `mixup`, `cutmix`: the α of each; 0 leaves it out. With both, each batch gets one of them.
    - `repeats`: how often an image occurs in an epoch (repeated augmentation); the epoch is as long
      as with 1.
    - `ema_decay`: of a moving average of the weights, which the model has at the end; 0 for none.
    - `ema_every`: steps between updates of that average.
    - `clip_norm`: the largest norm of the gradient.
    - `amp`: ``"none"``, ``"bfloat16"`` or ``"float16"`` (with a gradient scaler).
    - `workers`: processes of the data loader. Data that lies in memory needs none.
    - `device`: by default the GPU of this process, else the CPU.
    """

    epochs: int = 6
    batch_size: int = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    norm_weight_decay: float | None = 0.0
    momentum: float = 0.9
    warmup_epochs: float = 1.0
    warmup_start: float = 0.01
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1
    ema_decay: float = 0.0
    ema_every: int = 32
    clip_norm: float | None = None
    amp: Literal["none", "bfloat16", "float16"] = "none"
    workers: int = 0
    device: str | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        """Check what would fail late."""
        hints = get_type_hints(type(self))
        for item in fields(self):
            choices = get_args(hints[item.name])
            if isinstance(item.default, str) and getattr(self, item.name) not in choices:
                raise ValueError(
                    f"{item.name}={getattr(self, item.name)!r} must be one of {choices}."
                )
        for name, least in {"epochs": 1, "batch_size": 2, "repeats": 1, "ema_every": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        if self.steps is not None and self.steps < 3:
            raise ValueError(f"steps={self.steps} must be at least 3: up, at the top, down again.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive.")
        for name in ("label_smoothing", "ema_decay", "warmup_start"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be from 0 to below 1.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return asdict(self)


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimizer; norm layers and biases have a weight decay of their own."""
    rate, decay = settings.learning_rate, settings.weight_decay
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if settings.norm_weight_decay is not None:
        trained = [p for p in model.parameters() if p.requires_grad]
        vectors = [p for p in trained if p.ndim <= 1]
        others = [p for p in trained if p.ndim > 1]
        groups = [
            {"params": others},
            {"params": vectors, "weight_decay": settings.norm_weight_decay},
        ]
        groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, rate, momentum=settings.momentum, weight_decay=decay)
    return torch.optim.AdamW(groups, rate, weight_decay=decay)


def rate_factor(step: int, steps: int, settings: TrainSettings) -> float:
    """Return what the learning rate is multiplied by at a step of all.

    Linear from `warmup_start` over the warm-up, then a cosine down to 0 (Appendix A).
    """
    warmup = min(settings.warmup_epochs / settings.epochs, 1.0) * steps
    if step < warmup:
        return settings.warmup_start + (1 - settings.warmup_start) * step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def make_schedule(
    optimizer: torch.optim.Optimizer, steps: int, settings: TrainSettings
) -> LRScheduler:
    """Return the schedule of the learning rate over all steps."""
    if settings.steps is None:
        return LambdaLR(optimizer, lambda step: rate_factor(step, steps, settings))
    rise = max(0.2, 2 / steps)
    return OneCycleLR(optimizer, settings.learning_rate, total_steps=steps, pct_start=rise)


def make_mixing(
    settings: TrainSettings, classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Return mixup, cutmix, or a random choice of both; None where neither is asked for."""
    if not settings.mixup and not settings.cutmix:
        return None
    from torchvision.transforms import v2

    found = []
    if settings.mixup:
        found.append(v2.MixUp(alpha=settings.mixup, num_classes=classes))
    if settings.cutmix:
        found.append(v2.CutMix(alpha=settings.cutmix, num_classes=classes))
    mixing: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = v2.RandomChoice(found)
    return mixing


class Average:
    """The exponential moving average of weights and buffers; with ``ema_decay=0``, nothing.

    torch's `AveragedModel` would be a copy of the model, begin at the first update instead of the
    first weights, and average the counts of batch norms.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self._model, self._every, self._decay = model, settings.ema_every, settings.ema_decay
        self._kept = {name: value.clone() for name, value in self._live()}

    def _live(self) -> list[tuple[str, torch.Tensor]]:
        return list(self._model.state_dict().items()) if self._decay else []

    def update(self, step: int) -> None:
        """Move the average towards the weights, every few steps."""
        if self._decay and step % self._every == 0:
            for name, value in self._live():
                if value.is_floating_point():
                    self._kept[name].lerp_(value, 1 - self._decay)
                else:
                    self._kept[name].copy_(value)

    def apply(self) -> None:
        """Give the model the averaged weights."""
        if self._decay:
            self._model.load_state_dict(self._kept)

    def state(self) -> dict[str, Any]:
        """Return the average, for a checkpoint."""
        return self._kept

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the average of a checkpoint."""
        for name, value in state.items():
            self._kept[name].copy_(value)
