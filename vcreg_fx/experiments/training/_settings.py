"""How a model is trained, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained. The names follow torchvision's training reference.

    **Arguments:**

    - `epochs`, `batch_size`: the batch is that of all processes together.
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
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive.")
        for name in ("label_smoothing", "ema_decay", "warmup_start"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be from 0 to below 1.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return asdict(self)
