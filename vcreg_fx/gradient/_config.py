"""What is applied at a site: coefficients and variants of VCReg."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import torch

from .._shared.names import name_of, named_function
from ._ranks import as_data, check_sync


@dataclass(frozen=True)
class VCRegConfig:
    """Coefficients and variants of VCReg (arXiv 2306.13292).

    **Arguments:**

    - `alpha`: weight of the variance loss (Eq. 5).
    - `beta`: weight of the covariance loss (Eq. 5).
    - `delta`: where the covariance loss turns from squares to linear (Eq. 10); None for squares
      throughout (Eq. 4).
    - `gamma`: the standard deviation below which a feature is penalized (VICReg's Eq. 1).
    - `eps`: added to variances under the square root (VICReg's Eq. 2).
    - `demean`: ``"statistics"`` computes the batch mean and lets the activation flow on unchanged;
      ``"activations"`` subtracts it from the activation (VCReg, Appendix A), and a running mean in
      eval mode.
    - `mode`: ``"gradient"`` adds the penalty's gradient during backward; ``"loss"`` leaves the
      penalty to be added to the loss: ``loss + vcreg_fx.penalty(model)``.
    - `backend`: ``"fast"`` computes that gradient in closed form; ``"naive"`` by autograd.
    - `convention`: ``"exact"`` is the gradient of the loss as written; ``"algorithm1"`` reproduces
      the pseudo-code of Appendix B (no 1/(n−1) in the covariance term, no δ, no centring).
    - `sync`: ``True`` takes the statistics over the batches of all ranks, so that the gradient that
      DistributedDataParallel averages is that of the whole batch; a process group, over its ranks;
      ``False`` over each rank's own batch, as in the papers. A group is not stored with a model or
      a configuration: to train on in several processes, it has to be given again.
    - `interval`: k > 1 adds the gradient in one of every k training steps, drawn at random, and k
      times: an unbiased estimate at 1/k of the cost, with k − 1 times the squared gradient as
      variance.
    - `sample`: m estimates the gradient from m samples at sites that have more: half of them give
      the covariance, the others receive the gradient. Unbiased in the covariance term with
      ``delta=None``; else with a bias of order 1/m.
    - `ratio`: how long the gradient that is added is, relative to the one that arrives at the site
      (‖·‖ over the batch), at every step; shorter where the penalty is nearly satisfied. α and β
      then say how the two terms relate, and nothing has to know how the loss is scaled. None adds
      the penalty's own gradient. What arrives holds the VCReg of the sites behind this one.
    - `calls`: what several calls of a site in one backward pass add up to, as two views through one
      backbone make them: ``"sum"``, each call's penalty is a term of the loss (Eq. 8 knows no
      calls); ``"mean"``, their mean. With ``mode="loss"`` the calls are those whose penalties one
      `vcreg_fx.penalty` reads.
    - `mask`: which positions are samples. ``"auto"``: where the model is called with a mask of
      padding, those it does not mask, at the sites at which that is certain; elsewhere all, with
      one warning. A name: that argument of the model, a mask of (batch, length) that is not zero
      at samples; ``"~name"``, one that is zero there. A function, or its name
      ``"module:function"``: takes the arguments of a call, a dictionary, and returns such a mask
      (not zero at samples) or None. None: every position.
    - `skip_tokens`: how many leading positions are no samples, as class and register tokens.

    **Raises:** `ValueError` for values outside their range and combinations that do not exist.
    """

    alpha: float = 0.64
    beta: float = 0.08
    delta: float | None = 1.0
    gamma: float = 1.0
    eps: float = 1e-4
    demean: Literal["statistics", "activations"] = "statistics"
    mode: Literal["gradient", "loss"] = "gradient"
    backend: Literal["fast", "naive"] = "fast"
    convention: Literal["exact", "algorithm1"] = "exact"
    sync: bool | Any = False
    interval: int = 1
    sample: int | None = None
    ratio: float | None = None
    calls: Literal["sum", "mean"] = "sum"
    mask: str | Callable[[Any], Any] | None = "auto"
    skip_tokens: int = 0

    _texts: ClassVar[dict[str, str]]  # of each configuration: its numbers, written

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("alpha", "beta", "delta", "gamma", "eps", "ratio"):
            value = getattr(self, name)
            if not isinstance(value, Real) and not (value is None and name in {"delta", "ratio"}):
                kind = type(value).__name__
                raise ValueError(f"{name}={value!r} must be a number, such as 0.1, not {kind}.")
        for name in ("alpha", "beta", "gamma"):
            check_coefficient(name, getattr(self, name))
        if self.delta is not None and not self.delta > 0:
            raise ValueError(f"delta={self.delta!r} must be positive, or None for Eq. 4.")
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"eps={self.eps!r} must be positive: √ has no slope at zero.")
        check_sync(self.sync)
        hints = get_type_hints(type(self))
        for item in fields(self):
            choices = [choice for choice in get_args(hints[item.name]) if isinstance(choice, str)]
            if choices and getattr(self, item.name) not in choices:
                raise ValueError(
                    f"{item.name}={getattr(self, item.name)!r} must be one of {choices}."
                )
        if self.convention == "algorithm1" and (self.mode, self.backend) != ("gradient", "fast"):
            raise ValueError(
                'convention="algorithm1" is a way to write the injected gradient, and the '
                'gradient of no loss: use it with mode="gradient" and backend="fast".'
            )
        self._check_estimates()
        self._check_ratio()
        self._check_samples()
        self._write_texts()

    def _check_estimates(self) -> None:
        if not isinstance(self.interval, int) or self.interval < 1:
            raise ValueError(f"interval={self.interval!r} must be a whole number of steps, ≥ 1.")
        if self.sample is not None and (not isinstance(self.sample, int) or self.sample < 4):
            raise ValueError(f"sample={self.sample!r} must be a number of samples, ≥ 4, or None.")
        if not self.estimates:
            return
        if (self.mode, self.backend) != ("gradient", "fast"):
            raise ValueError(
                "interval and sample estimate the injected gradient: use them with "
                'mode="gradient" and backend="fast".'
            )
        if self.sample is not None and (self.convention != "exact" or self.sync is not False):
            raise ValueError(
                "sample estimates the exact gradient of each process: use it with sync=False and "
                'convention="exact".'
            )

    def _check_ratio(self) -> None:
        if self.ratio is None:
            return
        if not (math.isfinite(self.ratio) and self.ratio > 0):
            raise ValueError(
                f"ratio={self.ratio!r} must be a finite number > 0, or None for α and β as they "
                "are."
            )
        if self.mode != "gradient":
            raise ValueError(
                "ratio compares the gradient that is added with the one that arrives, and "
                'mode="loss" adds none: use it with mode="gradient", or find α and β by '
                "vcreg_fx.calibrate."
            )
        if self.calls == "mean":
            raise ValueError(
                "ratio measures what each call adds by the gradient that arrives at it, and "
                'calls="mean" by the number of calls: use one of them.'
            )

    def number(self, name: str) -> Any:
        """Return a field that is a number or None; compiled code takes it as a constant.

        The compiler makes an input of its graph of every float that it reads from an object, with
        ``dynamic=True`` at once, and cannot pass one into an autograd node. A text is a constant.
        """
        if not torch.compiler.is_compiling():
            return getattr(self, name)
        text = self._texts[name]
        return None if text == "None" else float(text)

    def _write_texts(self) -> None:
        names = ("alpha", "beta", "delta", "gamma", "eps", "ratio")
        texts = {
            name: str(value if (value := getattr(self, name)) is None else float(value))
            for name in names
        }
        object.__setattr__(self, "_texts", texts)

    def _check_samples(self) -> None:
        if not (self.mask is None or isinstance(self.mask, str) or callable(self.mask)):
            raise ValueError(
                f'mask={self.mask!r} must be "auto", the name of an argument of the model, a '
                "function, or None."
            )
        if (
            isinstance(self.mask, str)
            and self.mask.endswith("padding_mask")
            and self.mask[0] != "~"
        ):
            raise ValueError(
                f"mask={self.mask!r} would take padding for samples, if the mask is true at "
                f'padding, as those of torch.nn are. Write mask="~{self.mask}" then; if it is true '
                f"at samples, a function: mask=lambda arguments: arguments[{self.mask!r}]."
            )
        if not isinstance(self.skip_tokens, int) or self.skip_tokens < 0:
            raise ValueError(f"skip_tokens={self.skip_tokens!r} must be a number of tokens, ≥ 0.")
        if self.mask_function is None and ":" in str(self.mask):
            raise ValueError(f'mask={self.mask!r} names no function, as "module:function" does.')

    @property
    def mask_function(self) -> Callable[[Any], Any] | None:
        """The function that `mask` is, or names."""
        if not isinstance(self.mask, str):
            return self.mask
        return named_function(self.mask)

    @property
    def estimates(self) -> bool:
        """Whether the gradient is an estimate."""
        return self.interval > 1 or self.sample is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data; a process group as words, ``process group of ranks …``.

        One process can go on with those. Several are told to make the group anew: an error where a
        configuration is made of them, or at the first training step of a model that was loaded.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        mask = name_of(self.mask) if callable(self.mask) else self.mask
        return {**values, "sync": as_data(self.sync), "mask": mask}

    def __deepcopy__(self, memo: dict[int, Any]) -> VCRegConfig:
        """Return the config itself: it cannot change, and a process group cannot be copied."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Store plain data."""
        return self.to_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a stored config."""
        for name, value in state.items():
            object.__setattr__(self, name, value)
        self._write_texts()


def check_coefficient(name: str, value: float) -> float:
    """Return a coefficient, which must be a finite number ≥ 0."""
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name}={value!r} must be a finite number ≥ 0.")
    return number
