"""VCReg in Lightning's Trainer, of `lightning` or `pytorch_lightning`: `VCRegCallback`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._lightning import VCRegCallback  # noqa: F401 (found by __getattr__)


def __getattr__(name: str) -> Any:
    """Import the callback, and with it Lightning, when it is first asked for."""
    if name == "VCRegCallback":
        from ._lightning import VCRegCallback

        return VCRegCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
