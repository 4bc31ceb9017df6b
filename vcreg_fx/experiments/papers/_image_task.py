"""Train a classifier of images and measure it: what most experiments share."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ..._shared.files import replacing
from ..._shared.keeping import keeping_randomness, seeded
from ...ablation import Trial
from ...evaluation import extract_features, replace_classifier
from ...site import calibrate
from ..images import DataError, ImageData, ImageSet, balanced_indices
from ..training import accuracy, fit, predict, processes
from ..training._batches import digest, fingerprint
from ..training._resume import set_aside_if_damaged
from ._experiment import Preset, ReproductionError
from ._networks import Factory
from ._study import VALIDATION

Loss = Callable[[Tensor, Tensor], Tensor]
CALIBRATED = "calibrated"  # the parameter of a trial
_FIRST = 256  # images at the most, on which that is found


@dataclass(frozen=True)
class Roles:
    """Which images a trial uses for what: to train on, and to measure on."""

    train: ImageSet
    measure: ImageSet


@dataclass
class ImageTask:
    """A task of the ablation engine: a classifier of images.

    An experiment derives from it and overrides `labelled`, `roles` or `score`.

    **Arguments:**

    - `preset`: what to do.
    - `data`: the images.
    - `factory`: builds the network for (shape of an image, number of classes).
    - `folder`: where checkpoints and logs go.
    - `tensorboard`: write logs.
    - `announce`: called with each trial before it is trained.
    """

    preset: Preset
    data: ImageData
    factory: Factory
    folder: Path
    tensorboard: bool = False
    announce: Callable[[Trial], None] | None = None
    first = _FIRST

    def __post_init__(self) -> None:
        """Check what would fail late."""
        self.trained = self._trained()
        self.check()

    def _trained(self) -> Tensor:
        """Return the labels of what the first run trains on; refuse data that is too small."""
        labels, preset = self.data.train.labels, self.preset
        few = preset.train_images
        if few is None and not preset.searched:
            return labels
        try:
            kept, _ = self.data.hold_out(preset.validation)
            chosen = torch.arange(len(labels))
            if few is not None:
                chosen = kept[balanced_indices(labels[kept], few, 0)]
                if len(kept) < 0.9 * few:
                    raise DataError(f"{len(kept)} are left to train on.")
        except DataError as error:
            raise ReproductionError(
                f"{self.data.name} does not fit this preset: of its {len(labels)} training images "
                f"of {len(labels.unique())} classes, {preset.validation} are to be held out and "
                f"{few or 'the others'} trained on. {error} Take other data, or from Python a "
                "preset with other numbers: presets(…).but(train_images=…, validation=…)."
            ) from error
        return labels[chosen]

    # What an experiment changes -------------------------------------------------------------

    def check(self) -> None:
        """Refuse data that the experiment cannot use."""

    @property
    def outputs(self) -> int:
        """The number of classes of the network's head."""
        return len(self.data.classes)

    def labelled(self, images: ImageSet) -> ImageSet:
        """Return images with the labels that the network is trained on."""
        return images

    def roles(self, trial: Trial) -> Roles:
        """Return the images to train on and to measure on, with the labels of the data set.

        For the search, the validation images are held out of the training images, always the same;
        the test split is not touched. Else the test split is measured. Of data with several
        published splits, the trial's seed decides which.
        """
        data = self.data.split(trial.seed)
        pool, measure = data.train, data.test
        searching = trial["split"] == VALIDATION
        if searching or self.preset.train_images is not None:
            kept, held = data.hold_out(self.preset.validation)
            measure = pool.subset(held) if searching else measure
            pool = pool.subset(kept)
        if self.preset.train_images is not None:
            pool = pool.subset(balanced_indices(pool.labels, self.preset.train_images, trial.seed))
        return Roles(pool, measure)

    def score(self, model: nn.Module, roles: Roles, trial: Trial) -> dict[str, float]:
        """Return what is measured of a trained model."""
        raise NotImplementedError

    def on_epoch(
        self, model: nn.Module, epoch: int, roles: Roles, trial: Trial
    ) -> Mapping[str, float] | None:
        """Return what is measured after an epoch, if anything."""

    # What the ablation engine calls ---------------------------------------------------------

    def build(self) -> nn.Module:
        """Return a new model."""
        return self.factory(self.data.shape, self.outputs)

    def train(self, model: nn.Module, trial: Trial) -> None:
        """Train it; a run that was stopped goes on after its last whole epoch."""
        if self.announce is not None:
            self.announce(trial)
        self.learn(model, self.roles(trial), trial, trial.id)

    def learn(self, model: nn.Module, roles: Roles, trial: Trial, name: str) -> None:
        """Train a model on the images of its roles; `name` is that of its checkpoint."""
        images = self.labelled(roles.train)
        if CALIBRATED in trial.params:
            count = min(self.first, len(images))
            spread = torch.arange(count) * len(images) // count
            few = images.subset(spread).pairs  # of all classes, also where they follow each other
            loader = DataLoader(few, count, generator=torch.Generator())
            calibrate_as(trial, model, *next(iter(loader)))
        self.history = fit(
            model,
            images.training,
            self.preset.training_with(trial.params),
            classes=self.outputs,
            seed=trial.seed,
            checkpoint=self.checkpoint(name),
            log=self.log(name),
            on_epoch=lambda model, epoch: self.on_epoch(model, epoch, roles, trial),
        )

    def evaluate(self, model: nn.Module, trial: Trial) -> dict[str, float]:
        """Measure it."""
        found = self.score(model, self.roles(trial), trial)
        return {**found, "loss": self.history[-1]["loss"]} if self.history else found

    # What helps -----------------------------------------------------------------------------

    def others(self) -> dict[str, Dataset[Any]]:
        """Return other data that is trained or measured on, by what it is called."""
        return {}

    def identity(self) -> dict[str, str]:
        """Return what tells the data from other data of its name: part → digest.

        Of images in files a few are read; of weights and labels, all.
        """
        data = self.data
        splits = getattr(data, "splits", ()) or [data]
        parts = {"training images": data.train.pairs, "test images": data.test.pairs}
        found = {name: fingerprint(pairs) for name, pairs in {**parts, **self.others()}.items()}
        found["labels"] = digest([(each.train.labels, each.test.labels) for each in splits])
        found["classes"] = digest([data.classes, *sorted(data.groups.items())])
        if (weights := self.preset.options.get("weights")) is not None:
            found["weights"] = _digest_of_files(Path(weights))
        return found

    def checkpoint(self, trial: str) -> Path:
        """Return where the checkpoint of a trial lies while it is trained."""
        return self.folder / "checkpoints" / f"{trial}.pt"

    def log(self, name: str) -> Path | None:
        """Return where the numbers of a training go, if they are asked for."""
        return self.folder / "logs" / name if self.tensorboard else None

    def kept(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return weights that all trials begin with; the first trial makes and keeps them."""
        path = self.folder / f"{name}.pt"
        where = processes(self.preset.training.device)
        if where.leads:
            set_aside_if_damaged(path)
        where.wait()
        if not path.exists():
            with seeded(0):
                made = make()
            if where.leads:
                with replacing(path) as new:
                    torch.save(dict(made), new)
            where.wait()
        found: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return found

    def features(self, model: nn.Module, pairs: Dataset[Any]) -> tuple[Tensor, Tensor]:
        """Return the input of the head for each image, on the CPU, and the images' labels."""
        workers = 0 if isinstance(pairs, TensorDataset) else self.preset.training.workers
        found = extract_features(model, DataLoader(pairs, batch_size=256, num_workers=workers))
        if found.labels is None:
            raise ReproductionError("There are no labels beside the images.")
        return found.only, found.labels

    def accuracy(self, model: nn.Module, images: ImageSet) -> float:
        """Return the accuracy on the labels that the network is trained on."""
        labelled = self.labelled(images)
        return accuracy(self.predictions(model, labelled), labelled.labels)

    def predictions(self, model: nn.Module, images: ImageSet) -> Tensor:
        """Return the network's class of each image."""
        return predict(model, images.pairs, workers=self.preset.training.workers)


def _digest_of_files(path: Path) -> str:
    """Return a digest of a file, or of all files below a folder."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    found = hashlib.sha256()
    for each in files:
        with each.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                found.update(block)
    return found.hexdigest()


def calibrate_as(
    trial: Trial, model: nn.Module, images: Tensor, labels: Tensor, loss: Loss = cross_entropy
) -> None:
    """Set α and β of a model that has not been trained, if the trial says to which ratio.

    They are found on the first of the images, and so they are the same when a trial goes on.
    """
    if (ratio := trial.params.get(CALIBRATED)) is not None:
        few = labels[:_FIRST]
        with keeping_randomness():  # what follows is random as in other arms
            calibrate(model, images[:_FIRST], lambda output: loss(output, few), ratio)


def with_new_head(
    model: nn.Module,
    classes: int,
    shape: tuple[int, ...],
    seed: int,
    weights: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Return a copy of a network with a new classifier, and with VCReg where the network has it.

    **Arguments:**

    - `classes`: of the classifier.
    - `shape`: of an image.
    - `seed`: of the classifier's weights.
    - `weights`: a state dict for the network as it was before, without VCReg.

    **Raises:** `ReproductionError` if it has not one linear classifier.
    """
    tuned = copy.deepcopy(model)
    if weights is not None:
        tuned.load_state_dict({**tuned.state_dict(), **weights})
    try:
        with seeded(seed):
            replace_classifier(tuned, torch.zeros(2, *shape), classes)
    except ValueError as error:
        raise ReproductionError(str(error)) from error
    return tuned
