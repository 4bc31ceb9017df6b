"""An inserted site, live: its coefficients can be set, its last numbers read."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from placement_rules import Layout, LayoutError

from ._config import VCRegConfig, check_coefficient
from ._loss_scale import LossScale
from .regularizers import (
    InjectGradient,
    Penalize,
    Penalty,
    Settings,
    Statistics,
    naive_penalty,
    working_dtype,
)

_UNREAD = 64  # penalties at one site that nobody reads: the training loop has forgotten them


def in_backward() -> bool:
    """Whether this runs inside a backward pass, as when checkpointing runs forward again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class LiveSite:
    """A site of a model into which VCReg was inserted.

    **Attributes:**

    - `name`, `path`, `position`, `layout`, `channels`: as in the plan.
    - `config`: the `VCRegConfig` it was inserted with.
    - `alpha`, `beta`: the coefficients now; assign to change them from the next step on.
    - `penalty`, `variance_loss`, `covariance_loss`: numbers of the last training step, None before
      the first. Reading them waits for the device.
    - `std`: √(C_ii + ε) of each feature in that step, shape (d,).
    """

    def __init__(
        self,
        name: str,
        path: str,
        position: str,
        layout: Layout,
        channels: int,
        config: VCRegConfig,
        clone: bool,
        penalize: Penalize | None = None,
    ) -> None:
        self.name = name
        self.path = path
        self.position = position
        self.layout = layout
        self.channels = channels
        self.config = config
        self.loss_scale: LossScale | None = None
        self.pending: list[Tensor] = []
        self._clone = clone
        self._penalize = penalize
        self._alpha = torch.tensor(config.alpha, dtype=torch.float64, device="cpu")
        self._beta = torch.tensor(config.beta, dtype=torch.float64, device="cpu")
        self._statistics: Statistics | None = None
        self._warned: set[str] = set()
        self._settings = self._make_settings()

    # What a user sees ----------------------------------------------------------------------

    @property
    def alpha(self) -> float:
        """The weight of the variance loss."""
        return float(self._alpha)

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._alpha.fill_(check_coefficient("alpha", value))

    @property
    def beta(self) -> float:
        """The weight of the covariance loss."""
        return float(self._beta)

    @beta.setter
    def beta(self, value: float) -> None:
        self._beta.fill_(check_coefficient("beta", value))

    @property
    def std(self) -> Tensor | None:
        """√(C_ii + ε) of each feature in the last step, shape (d,)."""
        return None if self._statistics is None else self._statistics.variances.sqrt()

    @property
    def variance_loss(self) -> float | None:
        """ℓ_var of the last step (Eq. 3)."""
        std = self.std
        return None if std is None else float(torch.relu(self.config.gamma - std).mean())

    @property
    def covariance_loss(self) -> float | None:
        """ℓ_cov of the last step (Eq. 4, or Eq. 10 if δ is given); None for a competitor."""
        if self._statistics is None or self._statistics.other is not None:
            return None
        return float(self._statistics.covariance_loss)

    @property
    def penalty(self) -> float | None:
        """α ℓ_var + β ℓ_cov of the last step (Eq. 5); α times a competitor's value."""
        if self._statistics is not None and self._statistics.other is not None:
            return self.alpha * float(self._statistics.other)
        variance, covariance = self.variance_loss, self.covariance_loss
        if variance is None or covariance is None:
            return None
        return self.alpha * variance + self.beta * covariance

    def __repr__(self) -> str:
        """Name the site and its coefficients."""
        return f"{self.name} ({self.layout}, d={self.channels}, α={self.alpha:g}, β={self.beta:g})"

    # What the demean and vcreg nodes call --------------------------------------------------

    def active(self, h: Tensor, training: bool) -> bool:
        """Whether anything is to be done: in training, where a gradient will be computed."""
        if not (training and torch.is_grad_enabled() and h.requires_grad):
            return False
        if h.ndim != self.layout.ndim:
            raise LayoutError(
                f"{self.name} was planned as {self.layout} and now gets a tensor of shape "
                f"{tuple(h.shape)}. Insert with example_inputs= of the shape that you train on."
            )
        if h.numel() >= 2 * h.shape[self.layout.axis]:
            return True
        self._warn_once(
            f"{self.name} got one sample (shape {tuple(h.shape)}): its features have no variance, "
            "so there is no penalty. Use batches of at least two."
        )
        return False

    def batch_mean(self, h: Tensor) -> Tensor:
        """Return the mean over samples, shape (d,), in float32 or float64."""
        return h.detach().mean(self.layout.sample_axes, dtype=working_dtype(h))

    def regularize(self, h: Tensor, mean: Tensor | None) -> Tensor:
        """Return the activation, with the penalty attached in the way `mode` says."""
        if torch.compiler.is_exporting():
            raise RuntimeError(
                "torch.export in train mode would lose VCReg's gradient without a word. Export in "
                "eval mode, where VCReg does nothing: model.eval()."
            )
        if self.config.mode == "gradient":
            self._check_half(h)
            scale = None if self.loss_scale is None else self.loss_scale.read()
            result: Tensor = InjectGradient.apply(
                h, mean, self._alpha, self._beta, scale, self._settings
            )
            return result
        if self.config.backend == "naive":
            penalty = naive_penalty(h, self._alpha, self._beta, self._settings)
        else:
            penalty = Penalty.apply(h, mean, self._alpha, self._beta, self._settings)[0]
        if in_backward():
            self._check_recomputation()
            return h.clone() if self._clone else h  # its penalty was counted in forward
        self.pending.append(penalty)
        if len(self.pending) > _UNREAD:
            self._warn_once(
                f'{self.name} holds {_UNREAD} penalties that nobody has read. With mode="loss", '
                'add vcreg_fx.penalty(model) to the loss of each step, or use mode="gradient".'
            )
        return h.clone() if self._clone else h

    def take_pending(self) -> list[Tensor]:
        """Return the penalties that were not read yet, and forget them."""
        pending, self.pending = self.pending, []
        return pending

    # ---------------------------------------------------------------------------------------

    def _check_half(self, h: Tensor) -> None:
        if self.loss_scale is not None:
            return
        device = h.device.type
        if h.dtype == torch.float16 or (
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        ):
            raise RuntimeError(
                f"{self.name} is trained in float16, where the loss is usually scaled, and the "
                "gradient that VCReg adds must be scaled with it. Call "
                "vcreg_fx.set_loss_scale(model, scaler) with your GradScaler (or with 1.0 if the "
                'loss is not scaled), or insert with mode="loss".'
            )

    def _check_recomputation(self) -> None:
        """Non-reentrant checkpointing recomputes under hooks of its own; reentrant does not."""
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
            raise RuntimeError(
                f"{self.name} lies in a part of the model under reentrant activation "
                'checkpointing, whose forward runs without gradients, so that mode="loss" cannot '
                'see the penalty. Use use_reentrant=False, or insert with mode="gradient".'
            )

    def _warn_once(self, message: str) -> None:
        if message[:60] not in self._warned:
            self._warned.add(message[:60])
            warnings.warn(message, stacklevel=2)

    def _record(self, statistics: Statistics) -> None:
        self._statistics = statistics

    def _make_settings(self) -> Settings:
        return Settings(self.layout, self.config, self._clone, self._record, self._penalize)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a step in flight."""
        state = {**self.__dict__, "pending": [], "_statistics": None}
        del state["_settings"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or loaded site."""
        self.__dict__.update(state)
        self._settings = self._make_settings()
