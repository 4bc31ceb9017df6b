"""The demo's result in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..evaluation import sign_test

if TYPE_CHECKING:
    from ._demo import DemoResult


def probe_counts(result: DemoResult) -> tuple[int, int]:
    """Return the test images on which only one probe is right: VCReg's, the other's."""
    ours, theirs = result.vcreg.probe_right, result.plain.probe_right
    return int((ours & ~theirs).sum()), int((theirs & ~ours).sum())


def conclusions(result: DemoResult) -> list[str]:
    """Return sentences on what was measured, whichever way it went."""
    plain, vcreg = result.plain, result.vcreg
    wins, losses = probe_counts(result)
    chance = sign_test(wins, losses)
    gain = 100 * (vcreg.probe_accuracy - plain.probe_accuracy)
    if abs(gain) < 0.005:
        probe = "The linear probe on all ten digits is equally accurate with and without VCReg."
    else:
        word = "more" if gain > 0 else "less"
        probe = (
            f"The linear probe on all ten digits is {abs(gain):.1f} points {word} accurate with "
            f"VCReg ({vcreg.probe_accuracy:.1%} against {plain.probe_accuracy:.1%})."
        )
    verdict = (
        "that is unlikely to be chance"
        if chance < 0.05
        else "that may well be chance, so the probe shows no clear difference in this run"
    )
    paired = (
        f"Of {len(vcreg.probe_right)} test images, {wins} are read correctly only with VCReg and "
        f"{losses} only without (sign test: p = {chance:.2g}): {verdict}."
    )
    return [
        probe,
        paired,
        _coarse(result),
        _change(
            "share of features with a standard deviation below 1",
            plain.low_spread,
            vcreg.low_spread,
            ".1%",
        ),
        _change(
            "mean absolute correlation between features",
            plain.correlation,
            vcreg.correlation,
            ".3f",
        ),
        "This is one seed, one small data set and coefficients that were not tuned for it.",
    ]


def _coarse(result: DemoResult) -> str:
    plain, vcreg = result.plain.coarse_accuracy, result.vcreg.coarse_accuracy
    if plain == vcreg:
        return f"On the coarse labels, both models are right for {plain:.1%} of the images."
    word = "higher" if vcreg > plain else "lower"
    return (
        f"Accuracy on the coarse labels, which both were trained on, is {word} with VCReg "
        f"({vcreg:.1%} against {plain:.1%})."
    )


def _change(name: str, plain: float, vcreg: float, form: str) -> str:
    if round(plain, 3) == round(vcreg, 3):
        return f"The {name} is the same ({plain:{form}})."
    word = "falls" if vcreg < plain else "rises"
    aim = "as VCReg intends" if vcreg < plain else "against what VCReg intends"
    return f"The {name} {word} from {plain:{form}} to {vcreg:{form}}, {aim}."
