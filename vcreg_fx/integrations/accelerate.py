"""VCReg in loops of Accelerate: `follow`."""

from __future__ import annotations

import warnings
import weakref
from pathlib import Path
from typing import Any

from torch import nn

from .._errors import InsertionError
from ..site import LossScale, unwrapped
from ..surgery import sites
from ._follower import FILE, read_state, refuse_engine, restore_state, state_of, write_state

_followed: weakref.WeakKeyDictionary[Any, list[weakref.ref[nn.Module]]] = (
    weakref.WeakKeyDictionary()
)


def follow(model: nn.Module, accelerator: Any) -> None:
    """Scale VCReg as an ``Accelerator`` scales the loss that its ``backward`` is given.

    That divides by ``accelerator.gradient_accumulation_steps``, inside of ``accumulate`` and out
    of it, and multiplies by its scaler; both are read at every step. ``accelerator.save_state``
    then writes ``vcreg_fx.json`` beside the weights, and ``load_state`` restores coefficients and
    the steps of the sites.

    Call it once, before training; before or after ``prepare``.

    **Arguments:**

    - `model`: a model into which VCReg was inserted.
    - `accelerator`: the ``accelerate.Accelerator``.

    **Raises:** `InsertionError` if nothing was inserted, or with DeepSpeed and Megatron-LM, unless
    with ``ratio`` or ``mode="loss"``.
    """
    found = sites(model)
    if not found:
        raise InsertionError(
            "VCReg was not inserted into this model; there is nothing to follow. Insert first: "
            'vcreg_fx.insert(model, "blocks").'
        )
    engine = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if engine in {"DEEPSPEED", "MEGATRON_LM"}:
        refuse_engine(model, engine)
    scale = AcceleratorScale(accelerator)
    for site in found:
        site.loss_scale = scale
    _keep_in_checkpoints(unwrapped(model), accelerator)


class AcceleratorScale(LossScale):
    """The scale of an ``Accelerator``'s loss, whenever it is read."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    @property
    def scale(self) -> Any:  # type: ignore[override]
        """The scaler, if there is one."""
        scaler = self._accelerator.scaler
        return 1.0 if scaler is None else scaler

    @property
    def accumulation_steps(self) -> int:  # type: ignore[override]
        """By how much ``backward`` divides."""
        return int(self._accelerator.gradient_accumulation_steps)

    def __deepcopy__(self, memo: dict[int, Any]) -> AcceleratorScale:
        """Follow the same accelerator: a copied model is trained by the same loop."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Store the factor as it is now."""
        return LossScale, (self.scale_now(), self.accumulation_steps)


def _keep_in_checkpoints(model: nn.Module, accelerator: Any) -> None:
    models = _followed.setdefault(accelerator, [])
    if any(known() is model for known in models):
        return
    known = weakref.ref(model)
    file = FILE if not models else FILE.replace(".", f"_{len(models)}.")
    models.append(known)

    def save(_models: list[nn.Module], _weights: list[Any], output_dir: str) -> None:
        each = known()
        if each is not None and sites(each) and accelerator.is_main_process:
            write_state(Path(output_dir), state_of(each), file)

    def load(_models: list[nn.Module], input_dir: str) -> None:
        each = known()
        if each is None or not sites(each):
            return
        try:
            problem = restore_state(each, read_state(Path(input_dir), file))
        except FileNotFoundError as error:
            problem = str(error)
        if problem is not None:
            warnings.warn(f"{problem} This run's VCReg is used, from its beginning.", stacklevel=3)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
