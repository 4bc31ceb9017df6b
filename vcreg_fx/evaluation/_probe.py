"""The linear probe: how much of a labelling a linear classifier reads from frozen features."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_probe(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, max_iter: int = 2000
) -> Tensor:
    """Train a linear classifier on frozen features and return its predictions for others.

    Features are standardized with the training features' mean and standard deviation; then
    scikit-learn's logistic regression with its default strength of regularization.

    **Arguments:**

    - `train_features`: shape (n, d).
    - `train_labels`: shape (n,).
    - `test_features`: shape (m, d).
    - `max_iter`: the most iterations of the solver.

    **Returns:** predicted labels, shape (m,).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=max_iter))
    # Its matrices are so small that BLAS threads wait for each other longer than they compute.
    with threadpool_limits(limits=torch.get_num_threads()):
        probe.fit(train_features.cpu().double().numpy(), train_labels.cpu().numpy())
        return torch.from_numpy(probe.predict(test_features.cpu().double().numpy()))
