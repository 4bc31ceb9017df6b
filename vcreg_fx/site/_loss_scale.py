"""How a training loop scales its loss, which an injected gradient cannot see by itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from placement_rules._torch import scale_of


class LossScale:
    """The factor between the loss of the equations and the loss that ``backward`` is called on.

    **Arguments:**

    - `scale`: a number, a 0-d tensor, or a ``torch.amp.GradScaler``, which is read at each step.
    - `accumulation_steps`: by how much the loop divides its loss.
    """

    def __init__(self, scale: float | Tensor | Any = 1.0, accumulation_steps: int = 1) -> None:
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps={accumulation_steps!r} must be at least 1.")
        if isinstance(scale, Tensor) and scale.numel() != 1:
            raise ValueError(f"A loss scale is one number, not a tensor of shape {scale.shape}.")
        if not (isinstance(scale, (int, float, Tensor)) or hasattr(scale, "get_scale")):
            raise TypeError(
                f"scale must be a number, a tensor or a GradScaler, not {type(scale).__name__}."
            )
        if isinstance(scale, (int, float)) and not 0 < scale < math.inf:
            raise ValueError(f"A loss scale of {scale} is none; it must be positive and finite.")
        self.scale = scale
        self.accumulation_steps = accumulation_steps

    def read(self) -> Tensor:
        """Return the factor now, as a 0-d tensor: compiled code would freeze a number."""
        scale = self.scale
        if not isinstance(scale, (int, float, Tensor)):
            tensor = scale_of(scale)
            scale = tensor if tensor is not None else scale.get_scale()
        if isinstance(scale, Tensor):
            return scale.detach().reshape(()) / self.accumulation_steps
        return torch.tensor(scale / self.accumulation_steps, dtype=torch.float64)

    def __deepcopy__(self, memo: dict[int, Any]) -> LossScale:
        """Share the scaler: a copied model is trained by the same loop."""
        return LossScale(self.scale, self.accumulation_steps)

    def __getstate__(self) -> dict[str, Any]:
        """Store the factor as it is now; a loaded model gets a scaler of its own loop."""
        return {"scale": float(self.scale_now()), "accumulation_steps": self.accumulation_steps}

    def scale_now(self) -> float:
        """Return the scale as a number."""
        scale = self.scale
        return float(scale if isinstance(scale, (int, float, Tensor)) else scale.get_scale())
