"""How the cost at one site grows with the number of samples and of channels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from placement_rules import Layout

from ..gradient import VCRegConfig
from ..site import LiveSite
from ._clock import Clock

SAMPLES = (2_048, 4_096, 8_192, 16_384, 32_768, 65_536)
CHANNELS = (64, 128, 256, 512, 1_024)
_OF_SAMPLES, _OF_CHANNELS = 256, 4_096  # d while n varies, n while d varies


@dataclass(frozen=True)
class Scaling:
    """Cost against one size.

    **Attributes:**

    - `varied`: ``"n"`` or ``"d"``.
    - `fixed`: the other size.
    - `sizes`: the values of the varied one.
    - `seconds`: the median time of forward and backward of one site at each.
    - `exponent`: the slope of the fitted line through their logarithms.
    """

    varied: str
    fixed: int
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    exponent: float


def measure_scaling(device: torch.device, rounds: int = 7) -> list[Scaling]:
    """Time one site alone over n and over d, on float32 noise."""
    over_n = [(n, _OF_SAMPLES) for n in SAMPLES]
    over_d = [(_OF_CHANNELS, d) for d in CHANNELS]
    found = []
    for varied, fixed, shapes in (("n", _OF_SAMPLES, over_n), ("d", _OF_CHANNELS, over_d)):
        seconds = tuple(_site_seconds(n, d, device, rounds) for n, d in shapes)
        sizes = SAMPLES if varied == "n" else CHANNELS
        found.append(Scaling(varied, fixed, sizes, seconds, fit_exponent(sizes, seconds)))
    return found


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return k of the least-squares fit log(seconds) = k log(size) + constant."""
    slope, _ = statistics.linear_regression(
        [math.log(size) for size in sizes], [math.log(value) for value in seconds]
    )
    return slope


def _site_seconds(n: int, d: int, device: torch.device, rounds: int) -> float:
    site = LiveSite("z", "", "output", Layout.parse("NC"), d, VCRegConfig(), clone=False)
    z = torch.randn((n, d), device=device, requires_grad=True)
    grad = torch.randn((n, d), device=device)
    clock = Clock(device)

    def step() -> None:
        out = site.regularize(z, site.reference_mean(z))
        torch.autograd.grad(out, z, grad)

    step()
    return statistics.median(clock.of(step) for _ in range(rounds))
