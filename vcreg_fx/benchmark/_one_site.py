"""One site alone: how its cost grows, and the bias and the variance of its estimates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from placement_rules import Layout

from ..gradient import VCRegConfig
from ..site import LiveSite
from ._step import Clock

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
    found = []
    for varied, fixed, sizes in (("n", _OF_SAMPLES, SAMPLES), ("d", _OF_CHANNELS, CHANNELS)):
        shapes = ((size, fixed) if varied == "n" else (fixed, size) for size in sizes)
        seconds = tuple(_site_seconds(n, d, device, rounds) for n, d in shapes)
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


DRAWS = 200
_SAMPLES, _CHANNELS = 8_192, 64
_ESTIMATES: dict[str, dict[str, Any]] = {
    "interval=8": {"interval": 8},
    "sample=256": {"sample": 256},
    "sample=256, delta=None, alpha=0": {"sample": 256, "delta": None, "alpha": 0.0},
    "sample=2048": {"sample": 2_048},
}


@dataclass(frozen=True)
class Bias:
    """How an estimate compares with the exact gradient g.

    **Attributes:**

    - `estimate`: its options.
    - `draws`: how many.
    - `projection`, `error`: mean of ⟨estimate, g⟩ / ⟨g, g⟩, and its standard error; 1 if unbiased
      along g.
    - `distance`: ‖mean of the estimates − g‖ / ‖g‖, which is its noise and its bias.
    - `noise`: the root of the mean of ‖estimate − g‖² / ‖g‖².
    """

    estimate: str
    draws: int
    projection: float
    error: float
    distance: float
    noise: float


def measure_bias() -> list[Bias]:
    """Draw estimates at one site, on correlated features of standard deviations 0.3 to 2."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn((_CHANNELS, _CHANNELS), generator=generator, dtype=torch.float64)
    z = torch.randn((_SAMPLES, _CHANNELS), generator=generator, dtype=torch.float64)
    z = z + 0.05 * z @ mixing
    z = z * torch.linspace(0.3, 2.0, _CHANNELS, dtype=torch.float64)
    return [_bias(name, z, options) for name, options in _ESTIMATES.items()]


def _bias(name: str, z: Tensor, options: dict[str, Any]) -> Bias:
    exact = next(_draws(z, 1, **{k: v for k, v in options.items() if k in {"alpha", "delta"}}))
    size = float(exact.square().sum())
    mean, projections, distances = torch.zeros_like(exact), [], []
    for found in _draws(z, DRAWS, **options):
        mean += found / DRAWS
        projections.append(float((found * exact).sum()) / size)
        distances.append(float((found - exact).square().sum()) / size)
    return Bias(
        name,
        DRAWS,
        statistics.mean(projections),
        statistics.stdev(projections) / math.sqrt(DRAWS),
        float((mean - exact).norm()) / math.sqrt(size),
        math.sqrt(statistics.mean(distances)),
    )


def _draws(z: Tensor, count: int, **options: Any) -> Iterator[Tensor]:
    config = VCRegConfig(**options)
    site = LiveSite("z", "", "output", Layout.parse("NC"), z.shape[1], config, clone=False)
    for _ in range(count):
        leaf = z.clone().requires_grad_()
        out = site.regularize(leaf, site.reference_mean(leaf))
        yield torch.autograd.grad(out, leaf, torch.zeros_like(out))[0]
