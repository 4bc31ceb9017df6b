"""The picture of covariance spectra."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

_COLORS = ("#5b6470", "#d1495b", "#2e7d8c", "#8a63a6")
_LINES = ("-", "--", ":", "-.")


def draw_spectra(spectra: Mapping[str, Tensor], path: str | Path, title: str) -> None:
    """Draw eigenvalues by index, one curve a model, on a logarithmic scale.

    **Arguments:**

    - `spectra`: label → eigenvalues, the largest first.
    - `path`: where the picture goes; its ending says in which format.
    - `title`: stands above.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    largest = max((float(values[0]) for values in spectra.values()), default=1.0)
    smallest = largest
    styles = ((color, line) for line in itertools.cycle(_LINES) for color in _COLORS)
    for (label, values), (color, line) in zip(spectra.items(), styles, strict=False):
        # What lies below the precision of float32 features is rounding, not signal.
        shown = values[values > largest * 1e-9]
        smallest = min(smallest, float(shown[-1])) if len(shown) else smallest
        places = range(1, len(shown) + 1)
        axes.plot(places, shown.tolist(), line, color=color, linewidth=2, label=label)
    axes.set_yscale("log")
    axes.set_ylim(smallest / 2, largest * 2)
    axes.set_xlim(left=0)
    axes.set_xlabel("index of the eigenvalue, the largest first")
    axes.set_ylabel("eigenvalue of the covariance")
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=10 if len(spectra) <= 6 else 7)
    figure.savefig(Path(path), dpi=150)
