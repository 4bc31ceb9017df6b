"""Transfer: one training, many downstream tasks (VCReg's table 1)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, random_split

from ..._shared.keeping import seeded
from ...ablation import Trial
from ...evaluation import STRENGTHS, ProbeResult, gradient_probe, logistic_probe
from ...surgery import sites
from ..images import DataError, ImageSet, split_indices
from ..images._downstream import DOWNSTREAM, Downstream, load_downstream
from ..training import TrainSettings, fit, predict, processes
from ._experiment import (
    ALPHAS,
    BETAS,
    DEFAULTS,
    LARGE,
    QUICK,
    SCALES,
    Arm,
    Experiment,
    Metric,
    Paper,
    Preset,
    ReproductionError,
    baseline_and_vcreg,
    shared_grid,
    small_glyphs,
)
from ._image_task import ImageTask, Roles, with_new_head
from ._pictures import draw_scatter
from ._study import VALIDATION

_HELD_OUT = 0.2  # of another data set's training images, in the search and to choose λ


class TransferTask(ImageTask):
    """Trains on some classes; then other tasks tell what the network has learned.

    Options of the preset:

    - `seen`: how many classes it is trained on; None for all.
    - `probes`: the tasks: names for `load_downstream`, or ``"unseen"`` and ``"all"``, classes of
      its own data.
    - `images`: of a task in memory, the most to train on.
    - `protocol`: ``"probe"``, linear probes on frozen features; ``"finetune"``, all weights.
    - `strengths`: the values of λ of the probes.
    - `finetune`: settings of `TrainSettings` for the second protocol.
    - `weights`: a file with a state dict for models without VCReg, which are not trained then.
    """

    def check(self) -> None:
        """Refuse options that would only fail after a training."""
        protocol, weights = self.preset["protocol"], self.preset["weights"]
        if protocol not in {"probe", "finetune"}:
            raise ReproductionError(f'protocol={protocol!r} must be "probe" or "finetune".')
        if protocol == "finetune" and processes(self.preset.training.device).size > 1:
            raise ReproductionError('protocol="finetune" takes one process.')
        self.check_tasks()
        if weights is not None:
            if not Path(weights).is_file():
                raise ReproductionError(f"{weights} is no file; weights are a state dict in one.")
            with seeded(0):
                model = self.build()
            try:
                self._take(model)
            except (RuntimeError, AttributeError, TypeError, UnpicklingError) as error:
                raise ReproductionError(
                    f"{weights} holds no weights of {self.preset.network} for {self.outputs} "
                    f"classes: {error}"
                ) from error

    def check_tasks(self) -> None:
        """Refuse classes and tasks that there are not, or that are too small for a probe."""
        seen, probes, classes = self.preset["seen"], self.preset["probes"], len(self.data.classes)
        if seen is not None and seen not in range(2, classes + 1):
            raise ReproductionError(
                f"seen={seen!r} must be from 2 to {classes}, the classes of {self.data.name}, or "
                "null for all."
            )
        if not isinstance(probes, list | tuple):
            raise ReproductionError(f'probes={probes!r} must be a list, such as ["digits"].')
        if "unseen" in probes and classes - len(self.seen) < 2:
            raise ReproductionError(
                f"Of the {classes} classes of {self.data.name}, seen={seen} leave "
                f"{classes - len(self.seen)} for the probe of unseen ones, which needs 2."
            )
        for name in probes:
            task, own = self._task(name, Roles(self.data.train, self.data.train))
            labels = self.trained if own else getattr(task.train, "labels", None)
            if labels is None or task.probe is not None or self.preset["protocol"] == "finetune":
                continue
            if name == "unseen":
                labels = labels[labels >= len(self.seen)]
            try:
                if not own:  # as the search does
                    labels = labels[split_indices(labels, _HELD_OUT)[0]]
                split_indices(labels, _HELD_OUT)
            except DataError as error:
                raise ReproductionError(
                    f"The probe {name!r} has {len(labels)} training images of "
                    f"{len(labels.unique())} classes, too few to hold out a fifth. {error}"
                ) from error

    def others(self) -> dict[str, Dataset[Any]]:
        """Return the tasks that are of other data."""
        found: dict[str, Dataset[Any]] = {}
        for name in self.preset["probes"]:
            task, own = self._task(name, Roles(self.data.train, self.data.train))
            if not own:
                found |= {f"images of {name}": task.train, f"test images of {name}": task.test}
        return found

    @property
    def seen(self) -> list[int]:
        """The classes that the network is trained on."""
        return list(range(len(self.data.classes)))[: self.preset["seen"]]

    @property
    def outputs(self) -> int:
        """The number of classes that the network is trained on."""
        return len(self.seen)

    def labelled(self, images: ImageSet) -> ImageSet:
        """Return the images of the classes that the network is trained on."""
        every = len(self.seen) == len(self.data.classes)
        return images if every else images.of_classes(self.seen)

    def train(self, model: nn.Module, trial: Trial) -> None:
        """Train it, or take over weights where there are some for it."""
        weights = self.preset["weights"]
        if weights is None or trial.rule is not None:
            return super().train(model, trial)
        self.history = []
        self._take(model.to(processes(self.preset.training.device).device))
        return None

    def _take(self, model: nn.Module) -> None:
        found = torch.load(self.preset["weights"], map_location="cpu", weights_only=True)
        model.load_state_dict(found)

    def score(self, model: nn.Module, roles: Roles, trial: Trial) -> dict[str, float]:
        """Return what each task's protocol reports, the mean of it, and the network's own."""
        found = {}
        for name in self.preset["probes"]:
            task, own = self._task(name, roles)
            split = trial["split"] == VALIDATION and not own
            measured = self._measured(model, task, split, trial.seed)
            found[name] = float(getattr(measured, task.criterion))
        mean = {"mean": sum(found.values()) / len(found)} if found else {}
        return {**found, **mean, "own": self.own(model, roles, trial)}

    def own(self, model: nn.Module, roles: Roles, trial: Trial) -> float:
        """Return the accuracy on what the network was trained for."""
        return self.accuracy(model, roles.measure)

    def _task(self, name: str, roles: Roles) -> tuple[Downstream, bool]:
        """Return a task, and whether it is of the network's own data, which `roles` has split."""
        if name not in {"unseen", "all"}:
            root, images = self.data.root, self.preset["images"]
            return load_downstream(name, root, self.data.shape, images), False
        classes = list(range(len(self.data.classes)))
        if name == "unseen":
            classes = classes[len(self.seen) :]
        parts = [part.of_classes(classes).pairs for part in (roles.train, roles.measure)]
        return Downstream(parts[0], parts[1], len(classes)), True

    def _measured(self, model: nn.Module, task: Downstream, split: bool, seed: int) -> ProbeResult:
        """Return how well a task is learned.

        **Arguments:**

        - `split`: whether to measure on a fifth of the training images, and not to touch the test
          images.
        """
        if self.preset["protocol"] == "finetune":
            return self._finetuned(model, task, split, seed)
        known = self.features(model, task.train)
        held_out = None if task.validation is None else self.features(model, task.validation)
        if split:
            if held_out is not None:
                known, held_out = (torch.cat([known[0], held_out[0]]),
                                   torch.cat([known[1], held_out[1]])), None  # fmt: skip
            known, new = (
                (known[0][part], known[1][part]) for part in split_indices(known[1], _HELD_OUT)
            )
        else:
            new = self.features(model, task.test)
        if task.probe is not None:
            return gradient_probe(*known, *new, task.probe, seed=seed)
        return logistic_probe(
            *known,
            *new,
            validation=_HELD_OUT if held_out is None else held_out,
            strengths=self.preset["strengths"],
            criterion=task.criterion,
            seed=seed,
        )

    def _finetuned(self, model: nn.Module, task: Downstream, split: bool, seed: int) -> ProbeResult:
        train: Dataset[Any] = task.train
        if task.validation is not None:
            train = ConcatDataset([task.train, task.validation])
        test = task.test
        if split:
            fixed = torch.Generator().manual_seed(0)
            train, test = random_split(train, [1 - _HELD_OUT, _HELD_OUT], fixed)
        tuned = with_new_head(model, task.classes, self.data.shape, seed)
        for site in sites(tuned):  # without the penalty; a mean removal layer stays
            site.alpha = site.beta = 0.0
        fit(tuned, train, TrainSettings(**self.preset["finetune"]), seed=seed, progress=False)
        workers = self.preset.training.workers
        labels = [labels for _, labels in DataLoader(test, 256, num_workers=workers)]
        return ProbeResult.of(predict(tuned, test, workers=workers), torch.cat(labels))


# Its presets -----------------------------------------------------------------------------------

_RESNET_50 = TrainSettings(
    epochs=600, batch_size=1024, optimizer="sgd", learning_rate=0.5, weight_decay=2e-5,
    warmup_epochs=5, label_smoothing=0.1, mixup=0.2, cutmix=1.0, repeats=4, ema_decay=0.99998,
    workers=16, amp="bfloat16",
)  # fmt: skip
_CONVNEXT_T = replace(_RESNET_50, optimizer="adamw", learning_rate=1e-3, weight_decay=0.05)
_VIT_B_32 = TrainSettings(
    epochs=300, batch_size=4096, learning_rate=3e-3, weight_decay=0.3, norm_weight_decay=None,
    warmup_epochs=30, warmup_start=0.033, label_smoothing=0.11, mixup=0.2, cutmix=1.0, repeats=3,
    ema_decay=0.99998, clip_norm=1.0, workers=16, amp="bfloat16",
)  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "torchvision/resnet50": {"training": _RESNET_50, "augment": "torchvision"},
    "torchvision/convnext_tiny": {"training": _CONVNEXT_T, "augment": "torchvision"},
    "torchvision/vit_b_32": {"training": _VIT_B_32, "augment": "autoaugment"},
}
"""torchvision's recipes for table 1's networks; for ResNet-50, that of its second weights."""

_TASKS = ("glyphs-unseen", "glyphs-face", "glyphs-slant", "glyphs-weight")
OPTIONS = {
    "seen": None, "protocol": "probe", "weights": None, "images": None,
    "finetune": {"epochs": 4, "batch_size": 64, "learning_rate": 1e-3},
}  # fmt: skip


def presets(scale: str, data: str | None) -> Preset:
    """Return the preset of a scale."""
    if scale == "paper":
        finetune = {"steps": 20_000, "batch_size": 256, "optimizer": "sgd", "learning_rate": 0.01}
        return Preset(
            data or "imagenet",
            "torchvision/resnet50",
            **RECIPES["torchvision/resnet50"],
            grid={"alpha": ALPHAS, "beta": BETAS},
            seeds=3,
            options={
                **OPTIONS, "probes": DOWNSTREAM, "strengths": STRENGTHS, "finetune": finetune,
            },
        )  # fmt: skip
    embedded = {**OPTIONS, "images": 1_500, "strengths": (0.01, 1.0, 100.0)}
    if scale == "large":
        options = {**embedded, "probes": (*_TASKS, "digits")}
        return Preset(data or "glyphs-200k", **{**LARGE, "seeds": 2}, options=options)
    if scale == "quick":
        return quick(data)
    return Preset(
        data or "glyphs",
        "resnet14-half",
        TrainSettings(epochs=6, batch_size=64),
        train_images=900 if data == "digits" else 4_000,
        validation=290 if data == "digits" else 4_000,
        grid=DEFAULTS,
        size=small_glyphs(data) or 32,
        options={**embedded, "probes": (*_TASKS, "digits", "fashion-mnist")},
    )


def quick(data: str | None) -> Preset:
    """Return the preset ``"quick"``."""
    return Preset(
        data or "digits",
        **{**QUICK, "grid": DEFAULTS},
        training=TrainSettings(epochs=3, batch_size=64),
        seeds=2,
        options={**OPTIONS, "seen": 6, "probes": ("unseen", "all"), "strengths": (0.01, 1.0)},
    )


def baseline(preset: Preset) -> list[Arm]:
    """Return no VCReg, which has nothing to search where it has weights, and VCReg's arms."""
    none, *others = baseline_and_vcreg(preset)
    return [none if preset["weights"] is None else Arm(none.name), *others]


def arms(preset: Preset) -> list[Arm]:
    """Return what is compared: other regularizers, VCReg's parts at the blocks, and elsewhere.

    SIGReg and Radial-VCReg came after the paper. The first grows with the number of samples, and
    the weights of the second's terms are large, so that their α are small.
    """
    none, *at_blocks = baseline(preset)
    others = {"alpha": (0.1, 0.01, 0.001)} if preset.grid["alpha"][1:] else {"alpha": (0.01,)}
    later = {"alpha": (0.01, 0.001, 0.0001)} if preset.grid["alpha"][1:] else {"alpha": (0.001,)}
    shared = shared_grid(preset.grid)
    elsewhere = ("VCReg1", "VCReg3", "VCReg4")
    return [
        none,
        Arm("DeCov", "head", {"regularizer": "decov"}, {**shared, **others}),
        Arm("WLD-Reg", "head", {"regularizer": "wld"}, {**shared, **others}),
        Arm("SIGReg", "head", {"regularizer": "sigreg"}, {**shared, **later}),
        Arm("Radial-VCReg", "head", {"regularizer": "radial"}, {**shared, **later}),
        *at_blocks,
        *(Arm(rule, rule, {"convention": "exact"}, preset.grid) for rule in elsewhere),
    ]


_TITLES = {
    "inat18": "iNat18", "places205": "Places", "food101": "Food", "cars": "Cars",
    "aircraft": "Aircraft", "pets": "Pets", "flowers": "Flowers", "dtd": "DTD",
    "unseen": "unseen classes", "all": "all classes", "glyphs-unseen": "unseen alphabets",
    "glyphs-face": "face", "glyphs-slant": "slant", "glyphs-weight": "weight",
    "glyphs-color": "color", "digits": "digits", "fashion-mnist": "Fashion-MNIST",
}  # fmt: skip


def tasks(preset: Preset) -> tuple[Metric, ...]:
    """Return what is reported of the tasks of a preset."""
    found = sorted(dict.fromkeys(preset["probes"]), key=[*_TITLES, *preset["probes"]].index)
    mean = [Metric("mean", "mean of tasks", percent=True)] if found else []
    return (*mean, *(Metric(name, _TITLES.get(name, name), percent=True) for name in found))


def metrics(preset: Preset) -> tuple[Metric, ...]:
    """Return what is reported."""
    return (*tasks(preset), Metric("own", "own classes", percent=True))


def draw_tasks(report: dict[str, Any], path: Path) -> None:
    """Draw the differences in the mean of all tasks, and in each."""
    probes = report["preset"]["options"]["probes"]
    draw_scatter(report, path, ["mean", *probes] if probes else ["own"])


TRANSFER = Experiment(
    name="transfer",
    title="Transfer",
    summary="one training, many downstream tasks",
    presets=presets,
    scales=SCALES,
    recipes=RECIPES,
    arms=arms,
    task=TransferTask,
    metrics=metrics,
    criterion="mean",
    headline=("mean", "own"),
    paper=Paper(
        where="table 1",
        columns=("iNat18", "Places", "Food", "Cars", "Aircraft", "Pets", "Flowers", "DTD",
                 "Average"),
        rows={
            "ResNet-50": (42.8, 50.6, 69.1, 43.6, 54.8, 91.9, 77.1, 68.7, 62.33),
            "ResNet-50 (DeCov)": (43.1, 50.4, 69.0, 45.7, 55.5, 90.6, 79.2, 69.1, 62.83),
            "ResNet-50 (WLD-Reg)": (43.9, 51.2, 70.2, 43.9, 58.7, 91.4, 80.7, 69.0, 63.63),
            "ResNet-50 (VCReg)": (45.3, 51.2, 71.7, 54.1, 70.5, 92.1, 88.0, 70.8, 67.96),
            "ConvNeXt-T": (51.6, 53.8, 78.4, 62.9, 74.7, 93.9, 91.3, 72.9, 72.44),
            "ConvNeXt-T (VCReg)": (52.3, 54.7, 79.6, 64.2, 76.3, 94.1, 92.7, 73.3, 73.40),
            "ViT-Base-32": (39.1, 47.9, 70.6, 51.2, 63.8, 90.3, 84.6, 66.1, 64.20),
            "ViT-Base-32 (VCReg)": (40.6, 48.1, 70.9, 52.0, 65.8, 91.0, 86.6, 66.5, 65.19),
        },
        unit="accuracy of linear probes in %",
        protocol="ImageNet by torchvision's recipes, the baselines with downloaded weights; then "
        "logistic regression on frozen features, for iNat18 and Places a linear classifier by SGD.",
    ),
    draw=draw_tasks,
)  # fmt: skip
