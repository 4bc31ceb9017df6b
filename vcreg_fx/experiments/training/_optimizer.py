"""Optimizer, schedule, and the mixing of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ._settings import TrainSettings


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


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


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
