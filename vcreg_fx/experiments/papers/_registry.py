"""The experiments by name."""

from __future__ import annotations

import difflib

from ._collapse import COLLAPSE
from ._errors import ReproductionError
from ._experiment import Experiment
from ._hierarchy import HIERARCHY
from ._long_tail import LONG_TAIL
from ._placement import PLACEMENT
from ._timing import TIMING
from ._two_moons import TWO_MOONS

EXPERIMENTS: dict[str, Experiment] = {
    found.name: found for found in (PLACEMENT, HIERARCHY, LONG_TAIL, TWO_MOONS, COLLAPSE)
}
"""Every experiment that ``vcreg-fx reproduce`` knows; another one is added here."""

NAMES = (*EXPERIMENTS, TIMING)
"""With ``timing``, which is the benchmark."""


def find_experiment(name: str) -> Experiment:
    """Return an experiment.

    **Raises:** `ReproductionError` for an unknown name, with near ones.
    """
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]
    near = difflib.get_close_matches(name, NAMES, 2)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ReproductionError(f"There is no experiment {name!r}.{hint} There are {', '.join(NAMES)}.")
