"""Probes trained by gradient descent: AdamW (VCReg, C.3) and SGD (VICReg, Appendix C).

The linear ones on frozen features, and the semi-supervised one, which trains the network, too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from .._shared.keeping import seeded
from ..site import live_sites
from ..surgery import plan, remove
from ._probes import ProbeResult, check_probe


@dataclass(frozen=True)
class ProbeSettings:
    """How a linear classifier is trained.

    **Arguments:**

    - `optimizer`: ``"adamw"`` or ``"sgd"``.
    - `learning_rate`, `weight_decay`, `momentum` (of SGD), `batch_size`, `epochs`.
    - `milestones`: epochs, also fractions of them, after which the learning rate is divided by 10;
      without any, it follows a cosine down to 0.
    - `encoder_rate`: the learning rate of the network, where it is trained as well.
    """

    optimizer: Literal["adamw", "sgd"]
    learning_rate: float
    weight_decay: float
    momentum: float = 0.0
    batch_size: int = 256
    epochs: int = 100
    milestones: tuple[float, ...] = ()
    encoder_rate: float | None = None

    def __post_init__(self) -> None:
        """Check what would fail late."""
        if self.optimizer not in {"adamw", "sgd"}:
            raise ValueError(f'optimizer={self.optimizer!r} must be "adamw" or "sgd".')
        if self.batch_size < 1 or self.epochs < 1 or not self.learning_rate > 0:
            raise ValueError("batch_size, epochs and learning_rate must be positive.")


ADAMW_PROBE = ProbeSettings("adamw", 0.016, 0.05)
"""VCReg's Appendix C.3: 100 epochs of AdamW, cosine, batches of 256."""

SGD_PROBE = ProbeSettings("sgd", 0.02, 1e-6, momentum=0.9)
"""VICReg's Appendix C.2: 100 epochs, cosine. Its text names no momentum; 0.9 is that of its C.3."""

PLACES_PROBE = ProbeSettings(
    "sgd", 0.01, 5e-4, momentum=0.9, epochs=14, milestones=(14 / 3, 28 / 3)
)
"""Barlow Twins' (Zbontar et al. 2021) for Places205, which VCReg's Appendix C.1 and C.5 follow: the
learning rate is divided by 10 at two equally spaced points."""

INATURALIST_PROBE = replace(PLACES_PROBE, epochs=84, milestones=(28, 56))
"""The same for iNaturalist 2018, with 84 epochs."""

VICREG_PLACES_PROBE = ProbeSettings(
    "sgd", 0.003, 1e-4, momentum=0.9, epochs=28, milestones=(4, 8, 12)
)
"""VICReg's Appendix C.3 for Places205: the learning rate is divided by 10 in steps."""

VICREG_INATURALIST_PROBE = ProbeSettings(
    "sgd", 0.005, 1e-4, momentum=0.9, epochs=84, milestones=(24, 48, 72)
)
"""VICReg's Appendix C.3 for iNaturalist 2018."""

SEMI_SUPERVISED: Mapping[float, ProbeSettings] = MappingProxyType(
    {
        0.01: ProbeSettings("sgd", 0.08, 0.0, momentum=0.9, epochs=20, encoder_rate=0.03),
        0.1: ProbeSettings("sgd", 0.1, 0.0, momentum=0.9, epochs=20, encoder_rate=0.01),
    }
)
"""VICReg's Appendix C.2, by the share of the labels: the head's learning rate and the encoder's.
The text names no momentum; 0.9 is that of its C.3."""


def gradient_probe(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    settings: ProbeSettings = ADAMW_PROBE,
    *,
    seed: int = 0,
) -> ProbeResult:
    """Train a linear classifier on frozen features by gradient descent and test it.

    Trains where `train_features` are. The features are taken as they are.

    **Arguments:**

    - `train_features`, `train_labels`: shapes (n, d) and (n,).
    - `features`, `labels`: of the test samples, shapes (m, d) and (m,).
    - `settings`: `ADAMW_PROBE`, `SGD_PROBE`, `PLACES_PROBE`, another of these, or your own.
    - `seed`: of the weights and of the order of the samples.

    **Returns:** a `ProbeResult` whose detail is ``train_loss``, the mean over the last epoch.

    **Raises:** `ValueError` if shapes do not fit, values are not finite, or the settings are for
    training the network as well.
    """
    check_probe(train_features, train_labels, features, labels)
    if settings.encoder_rate is not None:
        raise ValueError("These features are frozen, and encoder_rate would train what makes them.")
    classes, targets = train_labels.to(train_features.device).unique(return_inverse=True)
    x = train_features.detach().float()
    with seeded(seed, x.device):
        probe = nn.Linear(x.shape[1], len(classes)).to(x.device)

        def epoch() -> Iterable[tuple[Tensor, Tensor]]:
            for chosen in torch.randperm(len(x)).to(x.device).split(settings.batch_size):
                yield x[chosen], targets[chosen]

        loss = _descend(probe, [{"params": probe.parameters()}], epoch, len(x), settings)
    with torch.no_grad():
        logits = probe(features.to(x))
    predicted = classes[logits.argmax(dim=1)]
    return ProbeResult.of(predicted, labels, (logits, classes), train_loss=loss)


def semi_supervised_probe(
    model: nn.Module,
    train: Dataset[Any] | tuple[Tensor, Tensor],
    test: Dataset[Any] | tuple[Tensor, Tensor],
    share: float = 0.1,
    settings: ProbeSettings | None = None,
    *,
    labels: Tensor | None = None,
    classifier: bool = True,
    seed: int = 0,
    device: str | torch.device | None = None,
    workers: int = 0,
) -> ProbeResult:
    """Train a network and a new classifier on few of the labels, and test them (VICReg, C.2).

    A copy is trained; the model is left as it is. VCReg adds no penalty to it, but a mean removal
    layer stays. An encoder that is frozen as a whole is trained all the same; of one that is frozen
    in part, that part stays as it is.

    **Arguments:**

    - `model`: a network with one linear classifier, which is replaced; with ``classifier=False``,
      one that returns features, shape (n, d).
    - `train`, `test`: (image, label) pairs, with the augmentation that they are to have; or images
      and labels, shapes (n, …) and (n,).
    - `share`: of each class's training images that are labelled, one image at least.
    - `settings`: with an `encoder_rate`; by default those of `SEMI_SUPERVISED`, for shares of 0.01
      and 0.1.
    - `labels`: of the training images, shape (n,), where reading them image by image takes long.
    - `seed`: of the choice of images, of their order and of the classifier's weights.
    - `device`: where to train; by default where the model is.
    - `workers`: processes that load images.

    **Returns:** a `ProbeResult`, top-1 and top-5 accuracy among its numbers, with the details
    ``train_loss``, the mean over the last epoch, and ``labelled``, the number of images.

    **Raises:** `ValueError` for a share that is none, or that needs settings; for one class only;
    for a network without such a classifier.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r} must be a share of the labels: above 0, 1 at the most.")
    settings = settings or SEMI_SUPERVISED.get(share)
    if settings is None or settings.encoder_rate is None:
        raise ValueError(
            f"share={share:g} needs settings=ProbeSettings(…, encoder_rate=…): VICReg's Appendix "
            f"C.2 has learning rates for {' and '.join(map(str, SEMI_SUPERVISED))} alone."
        )
    known: Any = TensorDataset(*train) if isinstance(train, tuple) else train
    new: Any = TensorDataset(*test) if isinstance(test, tuple) else test
    if labels is None:
        labels = torch.tensor([int(known[i][1]) for i in range(len(known))])
    classes = labels.unique()
    if len(classes) < 2:
        raise ValueError("The training labels have one class only; a probe needs two.")
    parameter = next(model.parameters(), None)
    where = torch.device(device or (parameter.device if parameter is not None else "cpu"))
    with seeded(seed, where):
        few = _some_of_each(labels, share)
        image = known[0][0].to(where)
        tuned = copy.deepcopy(model).to(where)
        tuned, encoder, head = _with_classifier(tuned, image, len(classes), classifier)
        tuned.train()
        size = settings.batch_size
        alone = len(few) > size and len(few) % size == 1  # which a batch norm could not normalize
        loader = DataLoader(
            Subset(known, few.tolist()), size, shuffle=True, drop_last=alone, num_workers=workers
        )

        def epoch() -> Iterable[tuple[Tensor, Tensor]]:
            for images, found in loader:
                yield images.to(where), torch.searchsorted(classes, found).to(where)

        groups: list[dict[str, Any]] = [
            {"params": encoder, "lr": settings.encoder_rate},
            {"params": head},
        ]
        loss = _descend(tuned, groups, epoch, len(few) - alone, settings)
        tuned.eval()
        with torch.no_grad():
            batches = [
                (tuned(images.to(where)).cpu(), found)
                for images, found in DataLoader(new, size, num_workers=workers)
            ]
    logits, truth = (torch.cat(parts) for parts in zip(*batches, strict=True))
    details = {"train_loss": loss, "labelled": float(len(few))}
    return ProbeResult.of(classes[logits.argmax(dim=1)], truth, (logits, classes), **details)


def _with_classifier(
    tuned: nn.Module, image: Tensor, classes: int, has_one: bool
) -> tuple[nn.Module, list[nn.Parameter], list[nn.Parameter]]:
    """Give a network a new classifier; return it with its encoder's and classifier's parameters."""
    leave_out_penalties(tuned)
    example = image.expand(2, *image.shape)
    if has_one:
        head = replace_classifier(tuned, example, classes)
    else:
        with torch.no_grad():
            features = copy.deepcopy(tuned).eval()(example)
        head = nn.Linear(features.shape[1], classes).to(features.device)
        tuned = nn.Sequential(tuned, head)
    own = {id(parameter) for parameter in head.parameters()}
    encoder = [p for p in tuned.parameters() if id(p) not in own]
    if not any(parameter.requires_grad for parameter in encoder):
        for parameter in encoder:
            parameter.requires_grad_(parameter.is_floating_point())
    return tuned, encoder, list(head.parameters())


def leave_out_penalties(model: nn.Module) -> None:
    """Take VCReg out of a model; where it removes means, its sites do so alone from now on."""
    found = live_sites(model)
    if all(site.config.demean == "statistics" for site in found):
        remove(model)
    for site in found:
        site.alpha = site.beta = 0.0


def replace_classifier(model: nn.Module, example: Tensor, classes: int) -> nn.Linear:
    """Give a model a new linear classifier, in place, and return it.

    **Arguments:**

    - `example`: a few inputs.
    - `classes`: of the classifier.

    **Raises:** `ValueError` if it has none, several, or one that is not linear.
    """
    _, head = linear_classifier(model, example, "Fine-tuning")
    fresh = nn.Linear(head.in_features, classes).to(head.weight)
    head.weight, head.bias, head.out_features = fresh.weight, fresh.bias, classes
    return head


def linear_classifier(model: nn.Module, example: Tensor, purpose: str) -> tuple[str, nn.Linear]:
    """Return the path of a model's only classifier, and the layer.

    **Raises:** `ValueError` that names the purpose, if there are several, or it is not linear.
    """
    path, *others = {site.path for site in plan(model, "head", example_inputs=(example,)).sites}
    head = model.get_submodule(path)
    if others or not isinstance(head, nn.Linear):
        raise ValueError(f"{purpose} needs a network with one linear classifier.")
    return path, head


def _some_of_each(labels: Tensor, share: float) -> Tensor:
    """Return the indices of a share of each class's samples, drawn at random, one at least."""
    parts = []
    for label in labels.unique():
        places = (labels == label).nonzero()[:, 0]
        count = max(round(share * len(places)), 1)
        parts.append(places[torch.randperm(len(places))[:count]])
    return torch.cat(parts)


def _descend(
    model: nn.Module,
    groups: list[dict[str, Any]],
    epoch: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    count: int,
    settings: ProbeSettings,
) -> float:
    """Train on the batches of each epoch, `count` samples; return the last one's mean loss."""
    optimizer = _optimizer(groups, settings)
    schedule = _schedule(optimizer, settings, -(-count // settings.batch_size))
    with torch.enable_grad():
        for _ in range(settings.epochs):
            losses = []
            for x, targets in epoch():
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), targets)
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.detach() * len(targets))
    return float(torch.stack(losses).sum()) / count


def _optimizer(groups: list[dict[str, Any]], settings: ProbeSettings) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay)
    return torch.optim.SGD(groups, lr=rate, weight_decay=decay, momentum=settings.momentum)


def _schedule(
    optimizer: torch.optim.Optimizer, settings: ProbeSettings, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if settings.milestones:
        return torch.optim.lr_scheduler.MultiStepLR(
            optimizer, [round(epoch * steps) for epoch in settings.milestones], gamma=0.1
        )
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * steps)
