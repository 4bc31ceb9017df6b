"""The demo's measurements as rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._demo import DemoResult
    from ._measure import Measurements

COLUMNS = ("on the test images", "without VCReg", "with VCReg")


def rows(result: DemoResult) -> list[tuple[str, str, str]]:
    """Return what was measured: name, without VCReg, with VCReg."""

    def row(name: str, attribute: str, form: str) -> tuple[str, str, str]:
        def text(measurements: Measurements) -> str:
            return format(getattr(measurements, attribute), form)

        return name, text(result.plain), text(result.vcreg)

    return [
        row("accuracy, coarse labels", "coarse_accuracy", ".2%"),
        row("accuracy, linear probe on ten digits", "probe_accuracy", ".2%"),
        row("features with std below 1", "low_spread", ".1%"),
        row("mean absolute off-diagonal correlation", "correlation", ".3f"),
        row("effective rank of the covariance", "rank", ".1f"),
        row("classification loss, last training step", "train_loss", ".4f"),
        row("seconds of training and measuring", "seconds", ".1f")[:3],
    ]
