"""Self-supervised learning with and without VCReg at the blocks (VCReg's table 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..._shared.keeping import seeded
from ...ablation import Trial
from ...evaluation import (
    ADAMW_PROBE,
    SEMI_SUPERVISED,
    SGD_PROBE,
    STRENGTHS,
    semi_supervised_probe,
)
from ...evaluation._gradient_probe import linear_classifier
from ...surgery import insert
from ..images import ImageSet
from ..images._downstream import DOWNSTREAM, Downstream
from ..images._views import Views
from ..training import TrainSettings, fit, processes
from ..training._distributed import synchronized
from ..training._self_supervised import Method, Objective, Siamese
from ._experiment import (
    ALPHAS,
    BETAS,
    DEFAULTS,
    SCALES,
    Arm,
    Experiment,
    Metric,
    Paper,
    Preset,
    ReproductionError,
    vcreg_arms,
)
from ._image_task import Roles
from ._networks import find_network
from ._transfer import TransferTask, draw_tasks, tasks

_MEASURES = {"std_z", "std_y", "corr_z", "corr_y"}
_PROBES = {"sgd": SGD_PROBE, "adamw": ADAMW_PROBE, "logistic": None}


class SelfSupervisedTask(TransferTask):
    """Trains an encoder on two views of each image, without labels; then linear probes.

    The encoder is the network without its classifier. Of `TransferTask`'s options it has `probes`,
    `images` and `strengths`, and these:

    - `methods`: name → a `Method`, or its fields. A trial names one, and may change its fields, or
      the `width` of all layers of its expander.
    - `probe`: of the classes of its own data: ``"sgd"`` (VICReg's C.2), ``"adamw"`` (VCReg's C.3)
      or ``"logistic"``.
    - `views`: one of `VIEWS`, where a trial does not say which.
    - `crop`, `drawn`: of `Views`.
    - `labelled`: shares of the labels with which a copy is fine-tuned as well (VICReg's C.2), where
      there is such an option.
    - `rates`: method → what its arms have of `TrainSettings`.
    """

    def check(self) -> None:
        """Refuse what would only fail after a training, and look for lightly."""
        if self.preset["protocol"] != "probe":
            raise ReproductionError('Without labels, protocol="probe" is the only one.')
        if self.preset["probe"] not in _PROBES:
            raise ReproductionError(
                f"probe={self.preset['probe']!r} must be {' or '.join(_PROBES)}."
            )
        self._drawn: dict[tuple[Any, ...], Dataset[Any]] = {}
        Views(self.data.train, self.data, self.preset["views"])
        self.check_tasks()
        labelled = self.preset.options.get("labelled", ())
        if not isinstance(labelled, list | tuple) or not {*labelled} <= {*SEMI_SUPERVISED}:
            raise ReproductionError(
                f"labelled={labelled!r} must be a list of shares for which C.2 has learning rates: "
                f"{', '.join(map(str, SEMI_SUPERVISED))}."
            )

    def build(self) -> nn.Module:
        """Return a new encoder."""
        encoder, self._width = without_head(super().build(), self.data.shape)
        return encoder

    def method(self, trial: Trial) -> Method:
        """Return how a trial learns."""
        found = self.preset["methods"][trial["method"]]
        method = found if isinstance(found, Method) else Method(**found)
        params = dict(trial.params)
        if (width := params.get("width")) is not None:
            params["expander"] = (width,) * len(method.expander)
        return method.changed_by(params)

    def second(self, trial: Trial) -> tuple[nn.Module, int] | None:
        """Return the encoder of the second view, where it has one of its own, and its width.

        It has VCReg where the first one has.
        """
        if self.method(trial).branches == "shared":
            return None
        factory = self.factory
        if (name := trial.params.get("network")) is not None:
            factory = find_network(name)
        with seeded(trial.seed + (1 << 20)):  # weights of its own
            network, width = without_head(factory(self.data.shape, self.outputs), self.data.shape)
        if trial.rule is not None:
            example = (torch.zeros(2, *self.data.shape),)
            insert(network, trial.rule, example_inputs=example, **trial.config)
        return network, width

    def train(self, model: nn.Module, trial: Trial) -> None:
        """Train it; a run that was stopped goes on after its last whole epoch."""
        if self.announce is not None:
            self.announce(trial)
        method = self.method(trial)
        objective = Objective(method)
        settings = self.preset.training_with(trial.params)
        where = processes(settings.device)
        siamese = Siamese(model, self._width, method, self.second(trial)).to(where.device)
        with synchronized(siamese, where):
            self.history = fit(
                siamese,
                self.views(self.labelled(self.roles(trial).train), trial),
                settings,
                loss=objective,
                seed=trial.seed,
                checkpoint=self.checkpoint(trial.id),
                log=self.log(trial.id),
                on_epoch=lambda *_: objective.measures(),
                on_update=siamese.follow,
            )

    def views(self, images: ImageSet, trial: Trial) -> Dataset[Any]:
        """Return two views of each image; those of one seed are drawn once for all arms."""
        recipe, drawn = trial.params.get("views", self.preset["views"]), self.preset["drawn"]
        given = images, self.data, recipe, self.preset["crop"], drawn, trial.seed
        if drawn is None:
            return Views(*given)
        key = (trial["split"], trial.seed, recipe)
        if key not in self._drawn:
            self._drawn = {key: Views(*given)}
        return self._drawn[key]

    def features(self, model: nn.Module, pairs: Dataset[Any]) -> tuple[Tensor, Tensor]:
        """Return the representation of each image, on the CPU, and the images' labels."""
        where = next(model.parameters(), torch.empty(0)).device
        head = nn.Linear(self._width, 1, device=where)
        return super().features(nn.Sequential(model, head), pairs)

    def score(self, model: nn.Module, roles: Roles, trial: Trial) -> dict[str, float]:
        """Return what each probe reports, their mean, the own classes', and what was measured."""
        found = super().score(model, roles, trial)
        for share in self.preset.options.get("labelled", ()):
            probed = semi_supervised_probe(
                model, roles.train.pairs, roles.measure.pairs, share, labels=roles.train.labels,
                classifier=False, seed=trial.seed, workers=self.preset.training.workers,
            )  # fmt: skip
            found[f"labels_{share:g}"] = probed.accuracy
            found[f"labels_{share:g}_top5"] = float(probed.top5_accuracy or 0)
        for numbers in self.history:
            for name in _MEASURES & numbers.keys():
                found[name] = found[f"{name}_{numbers['epoch']:.0f}"] = numbers[name]
        return found

    def own(self, model: nn.Module, roles: Roles, trial: Trial) -> float:
        """Return the accuracy of a probe of all classes of its own data."""
        task, _ = self._task("all", roles)
        return self._measured(model, task, False, trial.seed).accuracy

    def _task(self, name: str, roles: Roles) -> tuple[Downstream, bool]:
        task, own = super()._task(name, roles)
        return (replace(task, probe=_PROBES[self.preset["probe"]]) if own else task), own


def without_head(network: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Return a classifier without its last linear layer, and the width of what is left.

    **Arguments:**

    - `shape`: of an image.

    **Raises:** `ReproductionError` if it has not one linear classifier.
    """
    try:
        path, head = linear_classifier(network, torch.zeros(2, *shape), "Self-supervision")
    except ValueError as error:
        raise ReproductionError(str(error)) from error
    if not path:
        return nn.Identity(), head.in_features
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return network, head.in_features


# Its presets -----------------------------------------------------------------------------------


def lars(base: float, batch: int, **changes: Any) -> TrainSettings:
    """Return settings of LARS with a base rate, that is for a batch of 256 (Zbontar et al. 2021).

    A thousandth of the rate is left at the end. A warm-up from 0 begins with a millionth here.
    """
    rate = base * batch / 256
    given = {
        "epochs": 100, "batch_size": batch, "optimizer": "lars", "learning_rate": rate,
        "final_rate": rate / 1000, "weight_decay": 1.5e-6, "warmup_start": 1e-6, "workers": 16,
        "amp": "bfloat16", **changes,
    }  # fmt: skip
    return TrainSettings(**given)


OWN: dict[str, Any] = {
    "seen": None, "protocol": "probe", "images": None, "probes": (), "strengths": STRENGTHS,
    "views": "vicreg", "crop": None, "drawn": None, "rates": {},
}  # fmt: skip
"""What the options of the three experiments share."""


def viewed(presets: Callable[[str, str | None], Preset]) -> Callable[[str, str | None], Preset]:
    """Return presets that leave pictures in files as they are, for views."""
    return lambda scale, data: presets(scale, data).but(augment="pictures")


def presets(scale: str, data: str | None) -> Preset:
    """Return the preset of a scale."""
    if scale == "paper":
        methods = {
            "SimCLR": {"loss": "simclr", "expander": (2048, 256), "norm": "all"},
            "VICReg": {"expander": (8192, 8192), "norm": "all"},
        }
        rates = {name: lars(base, 4096) for name, base in (("SimCLR", 0.3), ("VICReg", 0.2))}
        return Preset(
            data or "imagenet",
            "torchvision/resnet50",
            lars(0.3, 4096, warmup_epochs=5),
            grid={"alpha": ALPHAS, "beta": BETAS},
            seeds=3,
            options={
                **OWN, "probes": DOWNSTREAM, "views": "vcreg", "probe": "sgd", "methods": methods,
                "labelled": tuple(SEMI_SUPERVISED),
                "rates": {
                    name: {"learning_rate": found.learning_rate, "final_rate": found.final_rate}
                    for name, found in rates.items()
                },
            },
        )  # fmt: skip
    methods = {
        "SimCLR": {"loss": "simclr", "expander": (128, 64), "norm": "all", "temperature": 0.2},
        "VICReg": {"expander": (256, 256), "norm": "all"},
    }
    options = {**OWN, "views": "vcreg", "crop": 0.3, "probe": "adamw", "methods": methods,
               "labelled": tuple(SEMI_SUPERVISED)}  # fmt: skip
    if scale == "large":
        training = TrainSettings(epochs=20, batch_size=1024, learning_rate=2e-3, warmup_epochs=2,
                                 amp="bfloat16", workers=12)  # fmt: skip
        tasks = ("glyphs-unseen", "glyphs-face", "glyphs-slant", "glyphs-weight", "digits")
        return Preset(
            data or "glyphs-200k", "resnet18-cifar", training, grid=DEFAULTS, seeds=3,
            options={**options, "images": 4_000, "strengths": (0.01, 1.0, 100.0), "probes": tasks,
                     "labelled": ()},  # which would take several times as long as all else
        )  # fmt: skip
    if scale == "quick":
        return Preset(
            data or "digits", "resnet8-half", TrainSettings(epochs=3, batch_size=64),
            train_images=400, validation=300, seeds=2, grid=DEFAULTS,
            options={**options, "drawn": 4, "probes": ("digits",), "images": 200,
                     "strengths": (1.0,)},
        )  # fmt: skip
    return Preset(
        data or "fashion-mnist",
        "resnet14-half",
        TrainSettings(epochs=6, batch_size=64, learning_rate=2e-3),
        train_images=900 if data == "digits" else 2_000,
        validation=290 if data == "digits" else 4_000,
        grid=DEFAULTS,
        seeds=3,
        size=24 if data == "glyphs" else None,
        options={
            **options, "drawn": 6, "images": 1_000, "strengths": (0.01, 1.0, 100.0),
            "probes": ("digits", "glyphs-face", "glyphs-slant", "glyphs-weight"),
        },
    )  # fmt: skip


def arms(preset: Preset) -> list[Arm]:
    """Return each method without VCReg, and with the parts of VCReg at the blocks.

    A site is called for each view; its penalty is the mean of both, as if a view were a batch.
    SIGReg and Radial-VCReg, which came after the paper, act at the last block, where there are
    fewest locations: the first costs most where there are many, and grows with their number.
    """
    found = []
    for method in preset["methods"]:
        fixed = {"method": method, **preset["rates"].get(method, {})}
        found.append(Arm(method, None, fixed))
        found += [
            replace(arm, fixed={**fixed, **arm.fixed, "calls": "mean"}, versus=method)
            for arm in vcreg_arms(preset.grid, "blocks", f"{method} (VCReg)")
        ]
        for name, regularizer in (("SIGReg", "sigreg"), ("Radial-VCReg", "radial")):
            given = {**fixed, "regularizer": regularizer, "alpha": 1e-3, "calls": "mean"}
            found.append(Arm(f"{method} ({name})", "last(blocks, 1)", given, versus=method))
    return found


OWN_PROBE = Metric("own", "own classes", percent=True)
FEW = tuple(
    Metric(f"labels_{share:g}{top}", f"{100 * share:g} % of the labels{title}", percent=True)
    for share in SEMI_SUPERVISED
    for top, title in (("", ""), ("_top5", ", top-5"))
)
SPREAD = (
    Metric("std_z", "std of embeddings, of 1/√d"),
    Metric("std_y", "std of representations, of 1/√d"),
    Metric("corr_z", "correlation of embeddings", higher=False),
    Metric("corr_y", "correlation of representations", higher=False),
)
"""What tells a collapse, see `Objective.measures`."""


SSL = Experiment(
    name="ssl",
    title="Self-supervised learning with VCReg",
    summary="SimCLR and VICReg with VCReg at the blocks, then linear probes",
    presets=viewed(presets),
    scales=SCALES,
    arms=arms,
    task=SelfSupervisedTask,
    metrics=lambda preset: (*tasks(preset), OWN_PROBE, *FEW, SPREAD[0]),
    criterion="mean",
    headline=("mean", "own"),
    paper=Paper(
        where="table 4",
        columns=("ImageNet", "iNat18", "Places", "Food", "Cars", "Aircraft", "Pets", "Flowers",
                 "DTD", "Average"),
        rows={
            "SimCLR": (67.2, 37.2, 52.1, 66.4, 35.7, 62.3, 76.3, 82.6, 68.1, 60.09),
            "SimCLR (VCReg)": (67.1, 41.3, 52.3, 67.7, 40.6, 61.9, 76.6, 83.6, 69.0, 61.63),
            "VICReg": (65.2, 41.7, 48.2, 61.0, 27.3, 51.2, 79.1, 74.3, 65.4, 56.03),
            "VICReg (VCReg)": (66.3, 41.4, 49.6, 61.6, 29.3, 54.2, 79.7, 74.5, 66.5, 57.10),
        },
        unit="accuracy of linear probes in %",
        protocol="ResNet-50, 100 epochs on ImageNet, LARS; VCReg at the intermediate "
        "representations, the original loss at the output. The average leaves ImageNet out.",
    ),
    draw=draw_tasks,
)  # fmt: skip
