"""The embedded ablation: ConvNeXt-Atto on scikit-learn's digits, in the form of table 7."""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from torch.utils.data import TensorDataset

from ..ablation import Trial
from ..evaluation import (
    cdnv,
    effective_rank,
    head_features,
    knn_probe,
    logistic_probe,
    mean_correlation,
)
from .images._digits import GROUPS, load_digits
from .training import TrainSettings, accuracy, fit, predict

STEPS = 300
TRAINING = TrainSettings(
    steps=STEPS,
    batch_size=64,
    learning_rate=4e-3,
    weight_decay=0.05,
    norm_weight_decay=None,
    device="cpu",
)
PERCENT = ("coarse", "linear", "knn")
HIGHER_IS_BETTER = PERCENT
LOWER_IS_BETTER = ("correlation",)
TITLE = "ConvNeXt-Atto"

# The grid of Appendix C.1 has 45 strengths; every fourth of them is enough to rank ten trials.
_STRENGTHS = tuple(10.0**power for power in range(-5, 6))


def build() -> nn.Module:
    """Return a ConvNeXt-Atto for 32×32 digits in three coarse classes."""
    import timm

    model: nn.Module = timm.create_model(
        "convnext_atto", pretrained=False, in_chans=1, num_classes=len(GROUPS)
    )
    return model


def train(model: nn.Module, trial: Trial) -> None:
    """Train on the coarse labels; the trial's seed decides on the split and on the order."""
    images, _ = load_digits(trial.seed)
    settings = replace(TRAINING, steps=trial.params.get("steps", TRAINING.steps))
    data = TensorDataset(images.images, images.groups)
    fit(model, data, settings, seed=trial.seed, progress=False)


def evaluate(model: nn.Module, trial: Trial) -> dict[str, float]:
    """Measure on test images what the head's input knows of all ten digits.

    **Returns:** accuracy on the coarse labels (``coarse``), of the linear probe of Appendix C.1
    (``linear``) and of 20 nearest neighbors (``knn``) on the ten digits; and of the features on the
    test images, with the digits as classes, ``correlation``, ``rank`` and ``cdnv``.
    """
    training, test = load_digits(trial.seed)
    predicted = predict(model, TensorDataset(test.images, test.groups))
    known = head_features(model, training.images), training.digits
    new = head_features(model, test.images), test.digits
    return {
        "linear": logistic_probe(*known, *new, strengths=_STRENGTHS, seed=trial.seed).accuracy,
        "knn": knn_probe(*known, *new).accuracy,
        "coarse": accuracy(predicted, test.groups),
        "correlation": mean_correlation(new[0]),
        "rank": effective_rank(new[0]),
        "cdnv": cdnv(*new),
    }
