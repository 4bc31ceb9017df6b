"""What the calling frames tell of a training loop: its scaler, its loss, the library it is of.

For warnings only. What cannot be seen from here (a backward pass on a device has threads of its
own) is taken for a loop that scales its loss.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor

_NEAR = 14  # a scaler calls the optimizer directly, through a few wrappers
_DEPTH = 400
_HERE = os.path.dirname(os.path.dirname(__file__))
_INSIDE = (
    os.path.dirname(torch.__file__),
    *(os.path.join(_HERE, room) for room in ("gradient", "site", "surgery")),
    "<vcreg_fx",
)
_BACKWARD = torch.autograd.backward.__code__
# Scalar arithmetic through which a loss is followed to the terms that it sums.
_SUMS = (
    "AddBackward", "SubBackward", "NegBackward", "CloneBackward", "AliasBackward",
    "ToCopyBackward", "ViewBackward", "SqueezeBackward", "UnsqueezeBackward",
)  # fmt: skip
_SCALES = ("DivBackward", "MulBackward")
# What follows the loss in a trainer's loop; transformers' stands on Accelerate.
_INTEGRATIONS = {
    "transformers": "Trainer(…, callbacks=[vcreg_fx.integrations.transformers.VCRegCallback()])",
    "lightning": "Trainer(callbacks=[vcreg_fx.integrations.lightning.VCRegCallback()])",
    "pytorch_lightning": "Trainer(callbacks=[vcreg_fx.integrations.lightning.VCRegCallback()])",
    "accelerate": "vcreg_fx.integrations.accelerate.follow(model, accelerator)",
}


def calling_scaler() -> Any | None:
    """Return the enabled ``GradScaler`` whose ``step`` is running, if one is."""
    for frame in _frames(_NEAR):
        if frame.f_code.co_filename.endswith("grad_scaler.py"):
            scaler = frame.f_locals.get("self")
            if isinstance(scaler, torch.amp.GradScaler):
                return scaler if scaler.is_enabled() else None
    return None


def loss_may_be_scaled() -> bool:
    """Whether the running backward pass may have begun at a loss that was divided or multiplied.

    False only where its loss can be seen, and is a sum with a term that is a plain criterion: then
    backward passes add up to the gradient of a sum of losses, as VCReg's parts do.
    """
    roots: tuple[Any, ...] | None = None
    for frame in _frames(_DEPTH):  # the outermost: reentrant checkpointing has inner ones
        if frame.f_code is _BACKWARD:
            given = frame.f_locals.get("grad_tensors")
            plain = given is None or (
                isinstance(given, tuple) and all(grad is None for grad in given)
            )
            found = frame.f_locals.get("tensors")
            found = (found,) if isinstance(found, Tensor) else found
            roots = found if plain and isinstance(found, tuple) else None
    if not roots:
        return True
    return all(_is_scaled(root.grad_fn) for root in roots)


def what_follows() -> str:
    """Return a sentence that names what tells VCReg of the running trainer's scale, if any."""
    running = [str(frame.f_globals.get("__name__")).split(".")[:2] for frame in _frames(_DEPTH)]
    packages = {name[0] for name in running if name != ["transformers", "models"]}
    for package, call in _INTEGRATIONS.items():
        if package in packages:
            return f" Here this does it: {call}."
    return ""


def outside_torch() -> int:
    """Return the ``stacklevel`` with which the caller warns at the line that called torch."""
    for level, frame in enumerate(_frames(_DEPTH), start=1):
        if not frame.f_code.co_filename.startswith(_INSIDE):
            return level
    return 1


def _is_scaled(node: Any) -> bool:
    waiting, seen = [node], 0
    while waiting and (seen := seen + 1) < 64:
        each = waiting.pop()
        name = "" if each is None else each.name()
        if name.startswith(_SCALES):
            continue
        if name.startswith(_SUMS):
            waiting += [following for following, _ in each.next_functions if following is not None]
        elif name[-1:].isdigit():  # an operation of torch; Python's functions have no number
            return False
    return True


def _frames(most: int) -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    for _ in range(most):
        if frame is None:
            return
        yield frame
        frame = frame.f_back
