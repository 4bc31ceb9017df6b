"""Video: fine-tuning of pretrained video transformers with VCReg at the head (VCReg's table 2)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...ablation import Trial
from ...evaluation import logistic_probe
from ..images import ImageSet
from ..training import TrainSettings, fit
from ..training._resume import remove_checkpoint
from ..video import (
    CLIPS,
    MOVING_LABELS,
    VIDEO_NETWORKS,
    ClipData,
    ClipSet,
    MaskedPretraining,
    Sampling,
    average_logits,
    load_clips,
    moving_glyphs,
    pretrained_weights,
    scale_head,
    set_drop_path,
    unlabelled_glyphs,
)
from ._experiment import (
    Experiment,
    Metric,
    Paper,
    Preset,
    ReproductionError,
    baseline_and_vcreg,
)
from ._image_task import ImageTask, Roles
from ._pictures import draw_scatter
from ._study import VALIDATION

_HELD_OUT = 0.2  # of a probe's training videos, to choose λ


class VideoTask(ImageTask):
    """Fine-tunes a video network, and tests it on several clips and crops of each video.

    Of data with several published splits, the run with seed s has the split s modulo their number:
    the mean over as many seeds as splits is the mean over the splits.

    Options of the preset:

    - `frames`, `stride`: of a clip, see `Sampling`.
    - `clips`, `crops`: of a video, when it is measured.
    - `weights`: pretrained ones, a folder or a file, see `pretrained_weights`; with None, and
      without `pretraining`, the network begins with random ones: a warning and the report say it.
    - `pretraining`: settings of `TrainSettings` for VideoMAE's own, on `unlabelled` moving glyphs
      with the share `masking` of patches masked; None for none.
    - `drop_path`: of the last block, see `set_drop_path`.
    - `head_scale`: of the classifier's random weights.
    - `probes`: labels of moving glyphs that are probed, of `probe_videos` at the most.
    - `strengths`: the values of λ of the probes.
    - `broken`: ``"refuse"`` or ``"skip"`` files that cannot be decoded.
    """

    data: ClipData
    first = 32

    def check(self) -> None:
        """Refuse options that would only fail after a training, and say what is random."""
        options, named = self.preset.options, self.preset.network in VIDEO_NETWORKS
        if not isinstance(self.data, ClipData):
            raise ReproductionError(
                f"{self.data.name} are no videos; there are {', '.join(CLIPS)}."
            )
        if unknown := sorted(set(options["probes"]) - set(MOVING_LABELS)):
            raise ReproductionError(
                f"There is no probe {unknown[0]}; moving glyphs have {', '.join(MOVING_LABELS)}."
            )
        if options["probes"] and self.data.name != "moving-glyphs":
            raise ReproductionError(f"{self.data.name} has no labels beside its own to probe.")
        if self.data.splits and self.preset.seeds % len(self.data.splits):
            raise ReproductionError(
                f"{self.preset.seeds} seeds weigh the {len(self.data.splits)} splits of "
                f"{self.data.name} unequally; take a multiple of {len(self.data.splits)}."
            )
        pretraining, weights = options["pretraining"], options["weights"]
        if not named:
            if pretraining or weights:
                raise ReproductionError(
                    f"{self.preset.network} takes no weights from elsewhere; "
                    f"{', '.join(VIDEO_NETWORKS)} do."
                )
            return
        if pretraining and weights:
            raise ReproductionError("A network has weights, or is pretrained: give one of both.")
        if weights is not None:
            if not Path(weights).exists():
                raise ReproductionError(f"{weights} is neither a folder nor a file of weights.")
            pretrained_weights(self.preset.network, weights, self.data.shape, self.outputs)
        elif not pretraining:
            warnings.warn(
                f"{self.preset.network} begins with RANDOM WEIGHTS. The paper fine-tunes "
                "pretrained ones: name their folder with --weights DIR.",
                stacklevel=2,
            )

    def build(self) -> nn.Module:
        """Return a new model with random weights."""
        model = super().build()
        if self.preset.network in VIDEO_NETWORKS:
            set_drop_path(model, self.preset["drop_path"])
            scale_head(model, self.preset["head_scale"])
        return model

    def learn(self, model: nn.Module, roles: Roles, trial: Trial, name: str) -> None:
        """Fine-tune it from the weights that all trials begin with."""
        if (begun := self._begun()) is not None:
            model.load_state_dict({**model.state_dict(), **begun})
        super().learn(model, roles, trial, name)

    def _begun(self) -> Mapping[str, Tensor] | None:
        if (weights := self.preset["weights"]) is not None:
            return pretrained_weights(self.preset.network, weights, self.data.shape, self.outputs)
        if self.preset["pretraining"]:
            return self.kept("pretrained", self._pretrained)
        return None

    def _pretrained(self) -> Mapping[str, Tensor]:
        sampling = _sampling(self.preset)
        model = MaskedPretraining(self.preset.network, self.data.shape, self.preset["masking"])
        fit(
            model,
            unlabelled_glyphs(sampling, self.preset["unlabelled"]).training,
            TrainSettings(**self.preset["pretraining"]),
            loss=lambda loss, _: loss,
            checkpoint=self.checkpoint("pretraining"),
        )
        remove_checkpoint(self.checkpoint("pretraining"))
        return {name: value.cpu() for name, value in model.encoder().items()}

    def score(self, model: nn.Module, roles: Roles, trial: Trial) -> dict[str, float]:
        """Return the accuracy, and when it is tested that of each probe and their mean."""
        found = {"accuracy": self.accuracy(model, roles.measure)}
        if trial["split"] == VALIDATION or not self.preset["probes"]:
            return found
        sampling, count = _sampling(self.preset), self.preset["probe_videos"]
        probed = {}
        for label in self.preset["probes"]:
            data = moving_glyphs(sampling, count, count // 2, label)
            known, new = (self.features(model, part.pairs) for part in (data.train, data.test))
            result = logistic_probe(
                *known, *new, validation=_HELD_OUT, strengths=self.preset["strengths"],
                seed=trial.seed,
            )  # fmt: skip
            probed[label] = float(result.accuracy)
        return {**found, "transfer": sum(probed.values()) / len(probed), **probed}

    def predictions(self, model: nn.Module, images: ImageSet) -> Tensor:
        """Return the class of each video, by the mean of the logits of its clips and crops."""
        if not isinstance(images, ClipSet):
            return super().predictions(model, images)
        logits = average_logits(
            model, images, self.preset["clips"], self.preset["crops"],
            workers=self.preset.training.workers,
        )  # fmt: skip
        return logits.argmax(dim=1)


class NoisyVideoTask(VideoTask):
    """Fine-tunes a video network on noisy videos, for each strength of the noise.

    Its unit is that of standardized images, with ImageNet's statistics: near the standard deviation
    of all pixels. The paper does not say which it is. Noise belongs to a clip, see `Sampling`.

    Options of the preset, beside those of a `VideoTask`:

    - `sigmas`: the strengths of the noise.
    """

    def train(self, model: nn.Module, trial: Trial) -> None:
        """Fine-tune a copy for each strength."""
        if self.announce is not None:
            self.announce(trial)
        roles, self._tuned = self.roles(trial), {}
        for sigma in self.preset["sigmas"]:
            tuned, noisy = copy.deepcopy(model), _noisy(roles, sigma)
            self.learn(tuned, noisy, trial, f"{trial.id}-{sigma:g}")
            self._tuned[sigma] = tuned, noisy

    def evaluate(self, model: nn.Module, trial: Trial) -> dict[str, float]:
        """Return the accuracy at each strength, and their mean."""
        found = {}
        for sigma, (tuned, roles) in self._tuned.items():
            found[f"accuracy_{sigma:g}"] = self.accuracy(tuned, roles.measure)
            remove_checkpoint(self.checkpoint(f"{trial.id}-{sigma:g}"))
        mean = sum(found.values()) / len(found)
        return {**found, "mean": mean, "loss": self.history[-1]["loss"]}


def _noisy(roles: Roles, sigma: float) -> Roles:
    parts = (roles.train, roles.measure)
    train, measure = (part.with_noise(sigma) for part in parts if isinstance(part, ClipSet))
    return Roles(train, measure)


def _sampling(preset: Preset) -> Sampling:
    return Sampling(preset["frames"], preset["stride"], preset.size or 224)


def load_videos(preset: Preset, root: str | Path | None) -> ClipData:
    """Return the videos of a preset, whose data is one of `CLIPS`."""
    train, test = preset.options.get("videos", (0, 0))
    return load_clips(
        preset.data, root, _sampling(preset), augment=preset.augment, broken=preset["broken"],
        train=train, test=test,
    )  # fmt: skip


# Its presets ------------------------------------------------------------------------------------

VIDEO_GRID: Mapping[str, Sequence[Any]] = {"alpha": (1.0, 3.0, 5.0), "beta": (0.1, 0.3, 0.5)}
"""What the paper searched for videos (Appendix C.2)."""

CORNERS: Mapping[str, Sequence[Any]] = {"alpha": (1.0, 5.0), "beta": (0.1, 0.5)}
"""Its corners, for a CPU."""

_HMDB51 = TrainSettings(
    epochs=100, batch_size=256, repeats=2, learning_rate=5e-4, final_rate=5e-7, warmup_epochs=10,
    warmup_start=1e-3,
    layer_decay=0.7, weight_decay=0.05, norm_weight_decay=0.0, bias_weight_decay=0.0,
    label_smoothing=0.1, mixup=0.8, cutmix=1.0, workers=10, amp="bfloat16",
)  # fmt: skip
"""VideoMAE's for HMDB51: 50 epochs of 128 videos a step, each of them drawn twice.

Here an epoch is as long as without repeats: 100 of them, of 256 clips a step.
"""

_PAPER: dict[str, Any] = {
    "frames": 16, "stride": 2, "clips": 10, "crops": 3, "weights": None, "pretraining": None,
    "drop_path": 0.2, "head_scale": 1e-3, "probes": (), "strengths": (), "broken": "refuse",
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {"vivit-base": {"options": {**_PAPER, "frames": 32}}}
"""ViViT-B takes 32 frames; all else is VideoMAE's, as Appendix C.2 has it."""

_EMBEDDED: dict[str, Any] = {
    **_PAPER, "frames": 8, "stride": 1, "clips": 3, "crops": 1, "drop_path": 0.1,
    "head_scale": 1.0, "masking": 0.6, "unlabelled": 3_000, "videos": (2_000, 600),
    "probes": ("letter", "face", "color"), "probe_videos": 1_200, "strengths": (0.01, 1.0, 100.0),
    "pretraining": {"epochs": 6, "batch_size": 64, "learning_rate": 5e-4},
}  # fmt: skip


def presets(scale: str, data: str | None) -> Preset:
    """Return the preset of a scale."""
    if scale == "paper":
        return Preset(
            data or "hmdb51", "videomae-small", _HMDB51, grid=VIDEO_GRID, seeds=3, size=224,
            augment="videomae", options=_PAPER,
        )  # fmt: skip
    embedded = data in {None, "moving-glyphs"}
    options = _EMBEDDED if embedded else {**_EMBEDDED, "probes": (), "pretraining": None}
    training = TrainSettings(epochs=16, batch_size=32, learning_rate=2e-3, bias_weight_decay=0.0)
    preset = Preset(
        data or "moving-glyphs", "videomae-tiny", training, size=24, grid=CORNERS,
        train_images=640 if embedded else None, validation=600 if embedded else 0.1,
        options=options,
    )  # fmt: skip
    if scale == "quick":
        few = {"unlabelled": 200, "videos": (360, 80), "probe_videos": 120, "strengths": (1.0,),
               "pretraining": {**_EMBEDDED["pretraining"], "epochs": 2}}  # fmt: skip
        return preset.but(
            training=replace(training, epochs=2), seeds=2,
            grid={name: values[:1] for name, values in VIDEO_GRID.items()},
            validation=80 if embedded else 0.1, train_images=160 if embedded else None,
            options={**options, **few} if embedded else options,
        )  # fmt: skip
    return preset


SIGMAS = (1.0, 1.5, 2.0)
"""Of the noise in figures 3 and 4."""

_NOISE = {"sigmas": SIGMAS, "probes": ()}
NOISE_RECIPES = {
    name: {"options": {**recipe["options"], **_NOISE}} for name, recipe in RECIPES.items()
}


def noise_presets(scale: str, data: str | None) -> Preset:
    """Return the preset of a scale of the experiment with noise, on videos."""
    preset = presets(scale, data)
    return preset.but(options={**preset.options, **_NOISE})


VIDEO = Experiment(
    name="video",
    title="Video",
    summary="fine-tune a pretrained video transformer",
    presets=presets,
    recipes=RECIPES,
    arms=lambda preset: baseline_and_vcreg(preset, "head"),
    task=VideoTask,
    metrics=lambda preset: (
        Metric("accuracy", "accuracy", percent=True),
        Metric("transfer", "mean of probes", percent=True),
        *(Metric(name, f"probe: {name}", percent=True) for name in preset["probes"]),
    ),
    criterion="accuracy",
    headline=("accuracy", "transfer"),
    paper=Paper(
        where="table 2",
        columns=("HMDB51",),
        rows={
            "VideoMAE-S": (79.9,),
            "VideoMAE-S (VCReg)": (80.6,),
            "VideoMAE-B": (82.2,),
            "VideoMAE-B (VCReg)": (83.0,),
            "VideoMAEv2-S": (83.6,),
            "VideoMAEv2-S (VCReg)": (83.9,),
            "VideoMAEv2-B": (86.5,),
            "VideoMAEv2-B (VCReg)": (86.9,),
            "ViViT-B": (70.9,),
            "ViViT-B (VCReg)": (71.6,),
        },
        unit="accuracy in %, the mean of three splits",
        protocol="Pretrained on Kinetics-400, VideoMAEv2 on Kinetics-710; fine-tuned as VideoMAE's "
        "code does it, with VCReg at the input of the head, α ∈ {1, 3, 5} and β ∈ {0.1, 0.3, 0.5} "
        "by validation; 10 clips × 3 crops.",
    ),
    draw=lambda report, path: draw_scatter(
        report, path, ["accuracy", *report["preset"]["options"]["probes"]]
    ),
)
