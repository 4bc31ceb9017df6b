"""The linear probe: how much of a labelling a linear classifier reads from frozen features."""

from __future__ import annotations

import torch
from torch import Tensor

from ._probe_result import ProbeResult, check_probe


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    *,
    max_iter: int = 2000,
) -> ProbeResult:
    """Train a linear classifier on frozen features and test it: quick, with nothing to choose.

    Features are standardized with the training features' mean and standard deviation; then
    scikit-learn's logistic regression with its default strength of regularization.

    **Arguments:**

    - `train_features`, `train_labels`: shapes (n, d) and (n,).
    - `features`, `labels`: of the test samples, shapes (m, d) and (m,).
    - `max_iter`: the most iterations of the solver.

    **Raises:** `ValueError` if shapes do not fit or values are not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    check_probe(train_features, train_labels, features, labels)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=max_iter))
    # Its matrices are so small that BLAS threads wait for each other longer than they compute.
    with threadpool_limits(limits=torch.get_num_threads()):
        probe.fit(train_features.cpu().double().numpy(), train_labels.cpu().numpy())
        predicted = torch.from_numpy(probe.predict(features.cpu().double().numpy()))
    return ProbeResult.of(predicted, labels)
