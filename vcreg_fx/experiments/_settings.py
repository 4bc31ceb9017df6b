"""What the demo does, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does.

    **Arguments:**

    - `seed`: of the split, of the initial weights, and of the order of the images.
    - `steps`: training steps of each model, at least 3: up, at the top, and down again.
    - `batch_size`: images in a step.
    - `learning_rate`: the largest of a one-cycle schedule of AdamW.
    - `weight_decay`: AdamW's.
    - `rule`: where VCReg is inserted. By default at the blocks, where the paper settles on, and at
      the head's input, because the features are measured there.
    - `alpha`, `beta`: the coefficients; by default those of `VCRegConfig`, not tuned for this data.
    - `check_images`: images in the batch on which gradients are compared.
    - `threads`: CPU threads. With one, the numbers do not depend on the number of cores, and small
      images gain little from more.
    """

    seed: int = 0
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    rule: str = "blocks | head"
    alpha: float = 0.64
    beta: float = 0.08
    check_images: int = 32
    threads: int = 1

    def __post_init__(self) -> None:
        """Check what would fail late."""
        least = {"steps": 3, "batch_size": 2, "check_images": 2, "threads": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {bound}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return asdict(self)
