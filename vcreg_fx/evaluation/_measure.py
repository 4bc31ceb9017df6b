"""All measurements of one representation."""

from __future__ import annotations

from collections.abc import Collection

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
from ._probes import knn_probe, logistic_probe

PROBES = ("logistic", "adamw", "sgd", "sgd_steps", "knn")


def measure_features(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    probes: Collection[str] = PROBES,
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

    **Returns:** name → number: accuracies ``<probe>_accuracy`` and ``ncc_accuracy``, ``cdnv``,
    ``std``, ``share_below_1``, ``correlation``, ``squared_correlation``, ``effective_rank``, and
    ``mutual_information`` in nats.

    **Raises:** `ValueError` for an unknown probe, or for features no probe can be trained on.
    """
    if unknown := sorted(set(probes) - set(PROBES)):
        raise ValueError(f"There is no probe {', '.join(unknown)}; there are {', '.join(PROBES)}.")
    by_descent = {"adamw": ADAMW_PROBE, "sgd": SGD_PROBE, "sgd_steps": PLACES_PROBE}
    found: dict[str, float] = {}
    if "logistic" in probes:
        found["logistic_accuracy"] = logistic_probe(*train, *test, seed=seed).accuracy
    for name, settings in by_descent.items():
        if name in probes:
            result = gradient_probe(*train, *test, settings, seed=seed)
            found[f"{name}_accuracy"] = result.accuracy
    if "knn" in probes:
        found["knn_accuracy"] = knn_probe(*train, *test).accuracy
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
