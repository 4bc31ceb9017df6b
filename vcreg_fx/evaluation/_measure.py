"""All measurements of one representation."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from torch import Tensor

from ._classes import cdnv, nearest_center_accuracy
from ._covariance import (
    effective_rank,
    mean_correlation,
    mean_std,
    share_below,
    squared_correlation,
)
from ._gradient_probe import ADAMW_PROBE, PLACES_PROBE, SGD_PROBE, gradient_probe
from ._mutual_information import mutual_information
from ._probes import ProbeResult, knn_probe, logistic_probe, svm_probe

_Probe = Callable[..., ProbeResult]
PROBES: dict[str, _Probe] = {
    "logistic": logistic_probe,
    "adamw": partial(gradient_probe, settings=ADAMW_PROBE),
    "sgd": partial(gradient_probe, settings=SGD_PROBE),
    "sgd_steps": partial(gradient_probe, settings=PLACES_PROBE),
    "knn": lambda *data, **_: knn_probe(*data),
    "knn_200": lambda *data, **_: knn_probe(*data, k=200),
    "svm": svm_probe,
}
"""The probes by their names, as functions of features, labels and a ``seed``."""


def measure_features(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    probes: Collection[str] = tuple(PROBES),
    inputs: Tensor | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Judge a representation by all that this package measures.

    **Arguments:**

    - `train`, `test`: features (n, d) and labels (n,). Probes are trained on the first; every
      number is measured on the second.
    - `probes`: which of `PROBES` to train.
    - `inputs`: the test samples themselves, shape (m, …), to estimate their mutual information with
      the features; left out by default, because it takes longer than all else.
    - `seed`: of the probes and of the estimate.

    **Returns:** name → number: ``<probe>_accuracy``, ``<probe>_class_accuracy`` and
    ``<probe>_top5_accuracy`` as in `ProbeResult`, ``svm_precision`` (mean average precision),
    ``ncc_accuracy``, ``cdnv``, ``std``, ``share_below_1``, ``correlation``,
    ``squared_correlation``, ``effective_rank``, and ``mutual_information`` in nats.

    **Raises:** `ValueError` for an unknown probe, or for features no probe can be trained on.
    """
    if unknown := sorted(set(probes) - set(PROBES)):
        raise ValueError(f"There is no probe {', '.join(unknown)}; there are {', '.join(PROBES)}.")
    found: dict[str, float] = {}
    for name, probe in PROBES.items():
        if name in probes:
            result = probe(*train, *test, seed=seed)
            found[f"{name}_accuracy"] = result.accuracy
            found[f"{name}_class_accuracy"] = result.class_accuracy
            if result.top5_accuracy is not None:
                found[f"{name}_top5_accuracy"] = result.top5_accuracy
            if name == "svm":
                found["svm_precision"] = result.details["mean_average_precision"]
    features, labels = test
    found |= {
        "ncc_accuracy": nearest_center_accuracy(*train, features, labels),
        "cdnv": cdnv(features, labels),
        "std": mean_std(features),
        "share_below_1": share_below(features),
        "correlation": mean_correlation(features),
        "squared_correlation": squared_correlation(features),
        "effective_rank": effective_rank(features),
    }
    if inputs is not None:
        found["mutual_information"] = mutual_information(inputs, features, seed=seed)
    return found
