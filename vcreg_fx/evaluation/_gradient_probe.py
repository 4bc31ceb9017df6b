"""Linear probes trained by gradient descent: AdamW (VCReg, C.3) and SGD (VICReg, Appendix C)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from .._shared.keeping import seeded
from ._probes import ProbeResult, check_probe


@dataclass(frozen=True)
class ProbeSettings:
    """How a linear classifier is trained.

    **Arguments:**

    - `optimizer`: ``"adamw"`` or ``"sgd"``.
    - `learning_rate`, `weight_decay`, `momentum` (of SGD), `batch_size`, `epochs`.
    - `milestones`: epochs, also fractions of them, after which the learning rate is divided by 10;
      without any, it follows a cosine down to 0.
    """

    optimizer: Literal["adamw", "sgd"]
    learning_rate: float
    weight_decay: float
    momentum: float = 0.0
    batch_size: int = 256
    epochs: int = 100
    milestones: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check what would fail late."""
        if self.optimizer not in {"adamw", "sgd"}:
            raise ValueError(f'optimizer={self.optimizer!r} must be "adamw" or "sgd".')
        if self.batch_size < 1 or self.epochs < 1 or not self.learning_rate > 0:
            raise ValueError("batch_size, epochs and learning_rate must be positive.")


ADAMW_PROBE = ProbeSettings("adamw", 0.016, 0.05)
"""VCReg's Appendix C.3: 100 epochs of AdamW, cosine, batches of 256."""

SGD_PROBE = ProbeSettings("sgd", 0.02, 1e-6, momentum=0.9)
"""VICReg's Appendix C.2: 100 epochs, cosine. Its text names no momentum; 0.9 is that of its C.3."""

PLACES_PROBE = ProbeSettings(
    "sgd", 0.01, 5e-4, momentum=0.9, epochs=14, milestones=(14 / 3, 28 / 3)
)
"""Barlow Twins' (Zbontar et al. 2021) for Places205, which VCReg's Appendix C.1 and C.5 follow: the
learning rate is divided by 10 at two equally spaced points."""

INATURALIST_PROBE = replace(PLACES_PROBE, epochs=84, milestones=(28, 56))
"""The same for iNaturalist 2018, with 84 epochs."""

VICREG_PLACES_PROBE = ProbeSettings(
    "sgd", 0.003, 1e-4, momentum=0.9, epochs=28, milestones=(4, 8, 12)
)
"""VICReg's Appendix C.3 for Places205: the learning rate is divided by 10 in steps."""

VICREG_INATURALIST_PROBE = ProbeSettings(
    "sgd", 0.005, 1e-4, momentum=0.9, epochs=84, milestones=(24, 48, 72)
)
"""VICReg's Appendix C.3 for iNaturalist 2018."""


def gradient_probe(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    settings: ProbeSettings = ADAMW_PROBE,
    *,
    seed: int = 0,
) -> ProbeResult:
    """Train a linear classifier on frozen features by gradient descent and test it.

    Trains where `train_features` are. The features are taken as they are.

    **Arguments:**

    - `train_features`, `train_labels`: shapes (n, d) and (n,).
    - `features`, `labels`: of the test samples, shapes (m, d) and (m,).
    - `settings`: `ADAMW_PROBE`, `SGD_PROBE`, `PLACES_PROBE`, another of these, or your own.
    - `seed`: of the weights and of the order of the samples.

    **Returns:** a `ProbeResult` whose detail is ``train_loss``, the mean over the last epoch.

    **Raises:** `ValueError` if shapes do not fit or values are not finite.
    """
    check_probe(train_features, train_labels, features, labels)
    classes, targets = train_labels.to(train_features.device).unique(return_inverse=True)
    x = train_features.detach().float()
    steps = -(-len(x) // settings.batch_size)
    with seeded(seed, x.device), torch.enable_grad():
        probe = nn.Linear(x.shape[1], len(classes)).to(x.device)
        optimizer = _optimizer(probe, settings)
        schedule = _schedule(optimizer, settings, steps)
        for _ in range(settings.epochs):
            total = torch.zeros((), device=x.device)
            for chosen in torch.randperm(len(x)).to(x.device).split(settings.batch_size):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(probe(x[chosen]), targets[chosen])
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach() * len(chosen)
    with torch.no_grad():
        logits = probe(features.to(x))
    predicted = classes[logits.argmax(dim=1)]
    return ProbeResult.of(predicted, labels, (logits, classes), train_loss=float(total) / len(x))


def _optimizer(probe: nn.Module, settings: ProbeSettings) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(probe.parameters(), lr=rate, weight_decay=decay)
    return torch.optim.SGD(
        probe.parameters(), lr=rate, weight_decay=decay, momentum=settings.momentum
    )


def _schedule(
    optimizer: torch.optim.Optimizer, settings: ProbeSettings, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if settings.milestones:
        return torch.optim.lr_scheduler.MultiStepLR(
            optimizer, [round(epoch * steps) for epoch in settings.milestones], gamma=0.1
        )
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * steps)
