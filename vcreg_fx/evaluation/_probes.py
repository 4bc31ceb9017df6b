"""Probes by scikit-learn: how much of a labelling is read from frozen features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ._classes import check_labelled


@dataclass(frozen=True)
class ProbeResult:
    """What a probe of frozen features found.

    **Attributes:**

    - `predictions`: labels of the test samples, shape (m,).
    - `accuracy`: the share of them that is right.
    - `class_accuracy`: that share within each class, averaged over the classes that were tested.
    - `top5_accuracy`: the share of samples whose label is among the five likeliest; None where the
      probe has not said which these are.
    - `details`: numbers that the kind of probe adds, such as the strength of regularization.
    """

    predictions: Tensor = field(repr=False)
    accuracy: float
    class_accuracy: float
    top5_accuracy: float | None = None
    details: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        predictions: Tensor,
        labels: Tensor,
        scores: tuple[Tensor, Tensor] | None = None,
        **details: float,
    ) -> ProbeResult:
        """Return the result of comparing predictions with the true labels.

        **Arguments:**

        - `predictions`, `labels`: shapes (m,).
        - `scores`: of each class, shape (m, classes), the likeliest highest; and the labels of
          these classes.
        """
        labels = labels.cpu()
        right = (predictions.cpu() == labels).double()
        _, of_class = labels.unique(return_inverse=True)
        shares = of_class.bincount(weights=right) / of_class.bincount()
        return cls(
            predictions,
            float(right.mean()),
            float(shares.mean()),
            None if scores is None else _top5_accuracy(*scores, labels),
            details,
        )


def _top5_accuracy(scores: Tensor, classes: Tensor, labels: Tensor) -> float:
    likeliest = classes.cpu()[scores.cpu().topk(min(5, scores.shape[1]), dim=1).indices]
    return float((likeliest == labels[:, None]).any(dim=1).double().mean())


def check_probe(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    classes: int = 2,
) -> None:
    """Refuse what a probe cannot be trained or tested on: it needs so many classes at least.

    **Raises:** `ValueError` with the shapes or the values that do not fit.
    """
    check_labelled(train_features, train_labels)
    check_labelled(features, labels)
    if train_features.shape[1] != features.shape[1]:
        raise ValueError(
            f"The probe is trained on {train_features.shape[1]} features and tested on "
            f"{features.shape[1]}; extract both at the same site."
        )
    if len(train_labels.unique()) < classes:
        raise ValueError("The training labels have one class only; a probe needs two.")
    for name, values in (("train_features", train_features), ("features", features)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} holds NaN or infinite values: the model has diverged.")


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

    check_probe(train_features, train_labels, features, labels)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=max_iter))
    with _few_threads():
        probe.fit(_array(train_features), train_labels.cpu().numpy())
        return _tested(probe, features, labels)


# 45 logarithmically spaced values between 0.00001 and 100000 (Appendix C.1)
STRENGTHS = tuple(float(value) for value in np.logspace(-5, 5, 45))


def logistic_probe(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    *,
    validation: float | tuple[Tensor, Tensor] = 0.2,
    strengths: Sequence[float] = STRENGTHS,
    criterion: Literal["accuracy", "class_accuracy"] = "accuracy",
    max_iter: int = 300,
    seed: int = 0,
) -> ProbeResult:
    """Train the linear probe of VCReg's Appendix C.1 and test it.

    L2-regularized multinomial logistic regression on frozen features: the sum of the
    cross-entropies plus λ/2 ‖W‖², by L-BFGS (scikit-learn). λ is the value that does best on the
    validation samples, the stronger one where several do; with it, the probe is trained once more
    on training and validation samples together. The features are taken as they are, because the
    paper names no scaling.

    **Arguments:** as for `linear_probe`, and

    - `validation`: the share of the training samples that chooses λ, equal for each class; or
      features and labels of validation samples.
    - `strengths`: the values of λ.
    - `criterion`: what λ is chosen by.
    - `max_iter`: the most iterations of L-BFGS for each λ.
    - `seed`: of the validation split.

    **Returns:** a `ProbeResult` whose details are ``l2`` (the λ chosen), ``validation_accuracy``
    (its criterion) and ``converged`` (1 if the last fit ended before `max_iter`).

    **Raises:** `ValueError` if shapes do not fit, values are not finite, λ is not positive, or a
    class is too small to be split.
    """
    from sklearn.linear_model import LogisticRegression

    check_probe(train_features, train_labels, features, labels)
    if not strengths or min(strengths) <= 0:
        raise ValueError("strengths must be positive numbers, one at least.")
    x, y = _array(train_features), train_labels.cpu().numpy()
    fit_x, fit_y, val_x, val_y = _split(x, y, validation, seed)
    with _few_threads(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="lbfgs failed to converge")  # `converged` says so
        model = LogisticRegression(max_iter=max_iter, warm_start=True)
        scores = {}
        for strength in sorted(strengths, reverse=True):  # each fit starts from the one before
            model.set_params(C=1 / strength).fit(fit_x, fit_y)
            tried = ProbeResult.of(torch.from_numpy(model.predict(val_x)), torch.from_numpy(val_y))
            scores[strength] = float(getattr(tried, criterion))
        best = max(scores, key=lambda strength: scores[strength])
        final = LogisticRegression(max_iter=max_iter, C=1 / best)
        final.fit(np.concatenate([fit_x, val_x]), np.concatenate([fit_y, val_y]))
        converged = float(final.n_iter_.max() < max_iter)
        details = {"validation_accuracy": scores[best], "converged": converged}
        return _tested(final, features, labels, l2=best, **details)


def _few_threads() -> Any:
    """Keep BLAS to torch's threads: matrices are so small that more wait longer than they work."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=torch.get_num_threads())


def _tested(model: Any, features: Tensor, labels: Tensor, **details: float) -> ProbeResult:
    """Return how well a fitted classifier of scikit-learn does."""
    x = _array(features)
    predicted, shares, classes = model.predict(x), model.predict_proba(x), model.classes_
    scores = torch.from_numpy(shares), torch.from_numpy(classes)
    return ProbeResult.of(torch.from_numpy(predicted), labels, scores, **details)


def _split(
    x: np.ndarray, y: np.ndarray, validation: float | tuple[Tensor, Tensor], seed: int
) -> list[np.ndarray]:
    if isinstance(validation, tuple):
        return [x, y, _array(validation[0]), validation[1].cpu().numpy()]
    from sklearn.model_selection import train_test_split

    try:
        fit_x, val_x, fit_y, val_y = train_test_split(
            x, y, test_size=validation, random_state=seed, stratify=y
        )
    except ValueError as error:
        raise ValueError(
            f"The training samples cannot be split for validation={validation}: {error} Give "
            "validation=(features, labels), or more samples."
        ) from error
    return [fit_x, fit_y, val_x, val_y]


def _array(features: Tensor) -> np.ndarray:
    array: np.ndarray = features.detach().cpu().double().numpy()
    return array


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

    **Arguments:** as for `linear_probe`, and

    - `k`: how many neighbors; all n where there are fewer.
    - `weights`: ``"uniform"`` gives every neighbor one vote.
    - `temperature`: τ.

    **Raises:** `ValueError` if shapes do not fit, values are not finite, or `k` is below 1.
    """
    from sklearn.neighbors import KNeighborsClassifier

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
    with _few_threads():
        classifier.fit(_array(train_features), train_labels.cpu().numpy())
        return _tested(classifier, features, labels, k=float(classifier.n_neighbors))


COSTS = (1e-3, 1e-2, 0.1, 1.0, 10.0)


def svm_probe(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    *,
    costs: Sequence[float] = COSTS,
    folds: int = 3,
    seed: int = 0,
) -> ProbeResult:
    """Train linear support vector machines, one a class, and rank the test samples by each.

    As VICReg's Appendix C.3 does for VOC07, by LIBLINEAR (scikit-learn), the cost C of each class
    chosen by cross-validation; VICReg does not say among which values. The features are taken as
    they are.

    **Arguments:**

    - `train_features`, `train_labels`: shapes (n, d) and (n,); or labels of shape (n, classes), not
      zero where a sample is of a class, for samples that may be of several.
    - `features`, `labels`: of the test samples, likewise.
    - `costs`: the values of C.
    - `folds`: of the cross-validation.
    - `seed`: of the folds.

    **Returns:** a `ProbeResult` whose detail is ``mean_average_precision``: how well the samples of
    a class are ranked above the others, averaged over the classes that have test samples. With
    several labels a sample, predictions have shape (m, classes), and each entry counts.

    **Raises:** `ValueError` if shapes do not fit, values are not finite, a cost is not positive, or
    a class has fewer samples than there are folds.
    """
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.svm import LinearSVC

    several = train_labels.ndim == 2
    kinds = [found.any(dim=1).long() if several else found for found in (train_labels, labels)]
    check_probe(train_features, kinds[0], features, kinds[1], classes=1 if several else 2)
    if not costs or min(costs) <= 0:
        raise ValueError("costs must be positive numbers, one at least.")
    classes = torch.arange(train_labels.shape[1]) if several else train_labels.cpu().unique()
    x, new = _array(train_features), _array(features)
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    scores, precisions = [], []
    with _few_threads(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Liblinear failed to converge")
        for label in classes:
            ours, theirs = (
                (found[:, label] != 0 if several else found == label).cpu().numpy()
                for found in (train_labels, labels)
            )
            if min(ours.sum(), (~ours).sum()) < folds:
                raise ValueError(
                    f"Class {int(label)} has {ours.sum()} of {len(ours)} training samples, too few "
                    f"or too many for {folds} folds."
                )
            by_cost = {
                cost: cross_val_score(
                    LinearSVC(C=cost, dual="auto"), x, ours, cv=splits, scoring="average_precision"
                ).mean()
                for cost in sorted(costs)
            }
            best = max(by_cost, key=lambda cost: by_cost[cost])
            found = LinearSVC(C=best, dual="auto").fit(x, ours).decision_function(new)
            scores.append(torch.from_numpy(found))
            if theirs.any():
                precisions.append(float(average_precision_score(theirs, found)))
    ranked = torch.stack(scores, dim=1)
    precision = sum(precisions) / len(precisions)
    if several:
        predicted, truth = (ranked > 0).long(), (labels.cpu() != 0).long()
        flat = ProbeResult.of(
            predicted.flatten(), truth.flatten(), mean_average_precision=precision
        )
        return replace(flat, predictions=predicted)
    predicted = classes[ranked.argmax(dim=1)]
    return ProbeResult.of(predicted, labels, (ranked, classes), mean_average_precision=precision)
