"""k nearest neighbors (VICReg's Appendix D.3)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ._probe_result import ProbeResult, check_probe


def knn_probe(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    *,
    k: int = 20,
    weights: Literal["similarity", "uniform"] = "similarity",
    temperature: float = 0.07,
) -> ProbeResult:
    """Classify each sample by its nearest neighbors among the training samples.

    As in VICReg's table 11 (k = 20 and 200), which follows Wu et al. 2018: neighbors by cosine
    similarity s, each voting with weight exp(s / τ).

    **Arguments:**

    - `train_features`, `train_labels`: shapes (n, d) and (n,).
    - `features`, `labels`: of the test samples, shapes (m, d) and (m,).
    - `k`: how many neighbors; all n where there are fewer.
    - `weights`: ``"uniform"`` gives every neighbor one vote.
    - `temperature`: τ.

    **Raises:** `ValueError` if shapes do not fit, values are not finite, or `k` is below 1.
    """
    from sklearn.neighbors import KNeighborsClassifier
    from threadpoolctl import threadpool_limits

    check_probe(train_features, train_labels, features, labels)
    if k < 1 or not temperature > 0 or weights not in {"similarity", "uniform"}:
        raise ValueError(
            f"k={k}, temperature={temperature}, weights={weights!r}: k must be at least 1, the "
            'temperature positive, weights "similarity" or "uniform".'
        )

    def votes(distances: np.ndarray) -> np.ndarray:
        nearest = distances.min(axis=1, keepdims=True)  # a common factor, against overflow
        array: np.ndarray = np.exp((nearest - distances) / temperature)
        return array

    classifier = KNeighborsClassifier(
        n_neighbors=min(k, len(train_features)),
        metric="cosine",
        algorithm="brute",
        weights=votes if weights == "similarity" else "uniform",
    )
    with threadpool_limits(limits=torch.get_num_threads()):
        classifier.fit(train_features.detach().cpu().double().numpy(), train_labels.cpu().numpy())
        predicted = classifier.predict(features.detach().cpu().double().numpy())
    return ProbeResult.of(torch.from_numpy(predicted), labels, k=float(classifier.n_neighbors))
