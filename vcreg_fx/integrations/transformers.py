"""VCReg in the Trainer of transformers: `VCRegCallback`; and from its checkpoints: `restore`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .._errors import InsertionError
from ._follower import read_state, restore_state

if TYPE_CHECKING:
    from ._transformers import VCRegCallback  # noqa: F401 (found by __getattr__)


def restore(
    model: nn.Module,
    checkpoint: str | Path,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Insert what a model had when a checkpoint was written, which ``from_pretrained`` loses.

    `VCRegCallback` writes ``vcreg_fx.json`` into each checkpoint. This reads it: rule,
    configuration, the coefficients of every site, the steps of estimated ones, and the running
    means of ``demean="activations"``.

    **Arguments:**

    - `model`: the model that was loaded, without VCReg; or with what the checkpoint names.
    - `checkpoint`: the checkpoint's folder.
    - `example_inputs`, `example_kwargs`: as for `vcreg_fx.insert`.

    **Returns:** the same model.

    **Raises:** `FileNotFoundError` where the folder has no such file; `InsertionError` if the model
    has VCReg of other sites or with another configuration.
    """
    state = read_state(Path(checkpoint))
    problem = restore_state(model, state, example_inputs, example_kwargs)
    if problem is not None:
        raise InsertionError(f"{problem} Use vcreg_fx.remove(model) before restore.")
    return model


def __getattr__(name: str) -> Any:
    """Import the callback, and with it transformers, when it is first asked for."""
    if name == "VCRegCallback":
        from ._transformers import VCRegCallback

        return VCRegCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
