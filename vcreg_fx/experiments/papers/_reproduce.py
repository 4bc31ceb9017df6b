"""Run an experiment."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..._shared.keeping import seeded
from ...ablation import AblationOptions, Record
from ...surgery import plan
from ..images import IMAGENET_SUBSETS, ImageData, load_images
from ..training import TrainSettings, processes
from ..training._resume import remove_checkpoint
from ..video import CLIPS, VIDEO_NETWORKS
from ._collapse import COLLAPSE
from ._experiment import Arm, Experiment, Preset, ReproductionError
from ._hierarchy import HIERARCHY
from ._long_tail import LONG_TAIL
from ._modalities import MODALITIES
from ._networks import Factory, find_network, identity_of
from ._noise import NOISE
from ._outcome import Outcome, claim_folder, make_report, read_report, write_outcome
from ._placement import PLACEMENT
from ._ssl import SSL
from ._study import Study, announce, follow
from ._timing import TIMING
from ._transfer import TRANSFER
from ._two_moons import TWO_MOONS
from ._vicreg import VICREG
from ._vicreg_terms import VICREG_TERMS
from ._video import VIDEO, load_videos

EXPERIMENTS: dict[str, Experiment] = {
    found.name: found
    for found in (
        TRANSFER,
        VIDEO,
        PLACEMENT,
        HIERARCHY,
        LONG_TAIL,
        TWO_MOONS,
        COLLAPSE,
        NOISE,
        TIMING,
        *(SSL, VICREG, VICREG_TERMS, MODALITIES),
    )
}
"""Every experiment that ``vcreg-fx reproduce`` knows; another one is added here."""


def _find(name: str, scale: str) -> Experiment:
    """Return an experiment that has such a scale."""
    if name in EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        if scale in experiment.scales:
            return experiment
        having = [other.name for other in EXPERIMENTS.values() if scale in other.scales]
        known = f"; {', '.join(having)} have one" if having else ""
        raise ReproductionError(
            f"{name} has no scale {scale!r}{known}. It has {', '.join(experiment.scales)}."
        )
    near = difflib.get_close_matches(name, EXPERIMENTS, 2)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    names = ", ".join(EXPERIMENTS)
    raise ReproductionError(f"There is no experiment {name!r}.{hint} There are {names}.")


def reproduce(  # noqa: PLR0913 - what a user may want to change
    name: str,
    folder: str | Path,
    *,
    scale: str = "default",
    data: str | ImageData | None = None,
    data_root: str | Path | None = None,
    network: str | Factory | None = None,
    preset: Preset | None = None,
    seeds: int | None = None,
    arms: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    classes: str | Path | None = None,
    threads: int | None = 1,
    tensorboard: bool = False,
    retry_failed: bool = False,
    on_record: Callable[[Record], object] | None = None,
    on_trials: Callable[[int, int], object] | None = None,
) -> Outcome:
    """Run one of the paper's experiments: search on validation images, test once, report.

    Trials are those of `vcreg_fx.ablate`, in a store in `folder`: a run that was stopped goes on
    where it was when it is called again, within a trial after its last whole epoch.

    **Arguments:**

    - `name`: one of `EXPERIMENTS`.
    - `folder`: where everything goes. One folder an experiment.
    - `scale`: ``"quick"``, ``"default"``, ``"large"``, which some have and which needs a GPU, or
      ``"paper"``, the paper's settings.
    - `data`: a name for `load_images`, for experiments with videos one of `CLIPS`, or your own
      `ImageData` or `ClipData`; by default that of the preset.
    - `data_root`: the folder of the data.
    - `network`: a name of `NETWORKS`, ``timm/NAME``, ``torchvision/NAME``, of `VIDEO_NETWORKS`, or
      your own function of (shape of an image or clip, number of classes); by default that of the
      preset.
    - `preset`: your own settings, instead of those of `scale`.
    - `seeds`: runs of each way to regularize, 2 at least; by default that of the preset.
    - `arms`: the names of those ways to regularize that are compared, the first of them with the
      others; by default all. More may be added later.
    - `options`: of the preset's options, those to change.
    - `classes`: a subset of ImageNet, or a file that names superclasses, see `read_classes`.
    - `threads`: torch's CPU threads.
    - `tensorboard`: write the numbers of each epoch to ``logs``.
    - `retry_failed`: run failed trials again.
    - `on_record`: called with the record of each trial as it is finished.
    - `on_trials`: called with the numbers of trials that are finished, in earlier runs, too, and
      of all.

    **Returns:** an `Outcome`.

    **Raises:** `ReproductionError` for what cannot be run as asked, and `DataError` for data that
    is not there, both before anything is trained; `ModuleNotFoundError` without
    TensorBoard, if it is asked for; `AblationError` if trials fail; `Stopped` after a signal.
    """
    folder = Path(folder).absolute()
    experiment = _find(name, scale)
    if experiment.run is not None:
        given = (data, data_root, network, preset, seeds, arms, options, classes)
        if any(value is not None for value in given) or tensorboard or retry_failed:
            raise ReproductionError(
                f"{name} has models and noise of its own, and no trials; it takes no data, "
                "network, preset, seeds, --tensorboard, --retry-failed. vcreg-fx bench takes your "
                "own."
            )
        return Outcome(experiment.run(folder, scale, threads), folder)
    if tensorboard:
        import_module("torch.utils.tensorboard")  # missing, it is found out before training
    objects = [value for value in (preset, data, network) if not isinstance(value, str | None)]
    preset = _preset(experiment, scale, data, network, preset, seeds, options or {})
    chosen = _arms(experiment, preset, arms)
    preset, images = _images(experiment, preset, data, data_root, classes)
    factory = _factory(experiment, preset, network)
    task = experiment.task(preset, images, factory, folder, tensorboard)
    example = task.example if images is None else (torch.zeros(2, *images.shape),)
    where = processes(preset.training.device)
    if where.size > 1:
        if images is None:
            raise ReproductionError(f"{name} is too small for {where.size} processes; take one.")
        task.announce = announce
        if not where.leads:
            task.announce = None
            follow(task, example, folder, threads)
            where.wait()
            return Outcome(read_report(folder / f"{name}.json"), folder)
    _check(experiment, preset, task, chosen, example)
    asked = {
        "experiment": name,
        "data": preset.data if images is None else images.name,
        "preset": preset.to_dict(),
        "identity": {
            **({} if images is None else task.identity()),
            **({"network": identity_of(task.build)} if callable(network) else {}),
        },
    }
    claim_folder(folder, asked)

    def finished(record: Record) -> None:
        if record.status == "done":
            remove_checkpoint(folder / "checkpoints" / f"{record.id}.pt")
        if on_record is not None:
            on_record(record)

    study = Study(
        task,
        folder / "store",
        experiment.criterion,
        preset.seeds,
        preset.search_seeds,
        AblationOptions(
            example_inputs=example,
            threads=threads,
            retry_failed=retry_failed,
            progress=False,
            on_record=finished,
        ),
        on_trials=on_trials,
    )
    command = _command(name, scale, preset, data_root, network, arms, options or {}, classes)
    report = make_report(
        experiment, preset, asked, study.run(chosen), scale, None if objects else command
    )
    outcome = write_outcome(experiment, report, folder)
    if where.size > 1:
        announce(None)
        where.wait()
    return outcome


def _command(
    name: str,
    scale: str,
    preset: Preset,
    data_root: str | Path | None,
    network: Any,
    arms: Sequence[str] | None,
    options: Mapping[str, Any],
    classes: str | Path | None,
) -> str:
    """Return the command that asks for the same; files have other places elsewhere."""
    words = ["vcreg-fx", "reproduce", name]
    words += {"quick": ["--quick"], "default": []}.get(scale, ["--preset", scale])
    if not EXPERIMENTS[name].own_data:
        words += ["--data", preset.data]
    if data_root is not None:
        words += ["--data-root", "DIR"]
    if classes is not None:
        words += ["--classes", str(classes) if classes in IMAGENET_SUBSETS else "FILE"]
    if network is not None:
        words += ["--network", str(network)]
    for arm in arms or ():
        words += ["--arm", arm]
    for option, value in options.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        words += ["--weights", "FILE"] if option == "weights" else ["--set", f"{option}={text}"]
    return shlex.join([*words, "--seeds", str(preset.seeds)])


def _preset(
    experiment: Experiment,
    scale: str,
    data: str | ImageData | None,
    network: str | Factory | None,
    preset: Preset | None,
    seeds: int | None,
    options: Mapping[str, Any],
) -> Preset:
    recipes = experiment.recipes if preset is None and scale == "paper" else {}
    if preset is None:
        preset = experiment.presets(scale, data if isinstance(data, str) else None)
    if network is not None:
        name = network if isinstance(network, str) else getattr(network, "__qualname__", "own")
        preset = preset.but(network=name, **recipes.get(name, {}))
    if isinstance(data, ImageData):
        preset = preset.but(data=data.name)
    if unknown := sorted(set(options) - set(preset.options)):
        raise ReproductionError(
            f"{experiment.name} has no option {unknown[0]}; it has "
            f"{', '.join(preset.options) or 'none'}."
        )
    changes = {
        name: _settings(name, value, preset) if name in _TRAININGS else value
        for name, value in options.items()
    }
    preset = preset.but(options={**preset.options, **changes})
    if seeds is not None:
        preset = preset.but(seeds=seeds)
    if preset.seeds < 2:
        raise ReproductionError(
            f"{preset.seeds} seed{'s' * (preset.seeds != 1)} cannot tell a difference from chance: "
            "an interval needs 2 at least, and 5 to be of use."
        )
    return preset


_TRAININGS = ("finetune", "pretraining", "hearing")  # options that are settings of trainings


def _settings(name: str, given: Any, preset: Preset) -> Any:
    """Return the preset's settings of a training with some changed; None is none of it."""
    before = dict(preset[name] or {})
    if given is None and name == "pretraining":
        return None
    if not isinstance(given, Mapping):
        raise ReproductionError(f'{name}={given!r} must be settings, such as {{"epochs": 4}}.')
    if "epochs" in given:
        before.pop("steps", None)  # which would stand instead
    found = {**before, **given}
    try:
        replace(preset.training if name == "hearing" else TrainSettings(), **found)
    except (TypeError, ValueError) as error:
        known = ", ".join(item.name for item in fields(TrainSettings))
        raise ReproductionError(f"{name}: {error} There are the settings {known}.") from error
    return found


def _arms(experiment: Experiment, preset: Preset, names: Sequence[str] | None) -> list[Arm]:
    known = {arm.name: arm for arm in experiment.arms(preset)}
    if names is None:
        return list(known.values())
    if missing := [name for name in names if name not in known]:
        raise ReproductionError(
            f"{experiment.name} has no arm {missing[0]!r}; it has {', '.join(map(repr, known))}."
        )
    if not names:
        raise ReproductionError("There is no arm to run.")
    return [arm for name, arm in known.items() if name in names]


def _check(
    experiment: Experiment,
    preset: Preset,
    task: Any,
    arms: Sequence[Arm],
    example: tuple[Any, ...],
) -> None:
    """Refuse a search without what it chooses by, and a network that lacks the sites of an arm.

    **Raises:** `ReproductionError`; `PlacementError` that says which.
    """
    names = {metric.name for metric in experiment.measured(preset)}
    if experiment.criterion not in names and any(len(arm.points) > 1 for arm in arms):
        raise ReproductionError(f"{experiment.name} needs a probe at least, to choose settings by.")
    with seeded(0):
        model = task.build()
    for rule in dict.fromkeys(arm.rule for arm in arms):
        if rule is not None:
            plan(model, rule, example_inputs=example)


def _factory(
    experiment: Experiment, preset: Preset, network: str | Factory | None
) -> Factory | None:
    """Return the function that builds the network; None where the experiment has its own."""
    if callable(network):
        return network
    if not experiment.own_data:
        return find_network(preset.network)
    if network is not None:
        raise ReproductionError(f"{experiment.name} has a network of its own; it takes none.")
    return None


def _images(
    experiment: Experiment,
    preset: Preset,
    data: str | ImageData | None,
    root: str | Path | None,
    classes: str | Path | None,
) -> tuple[Preset, ImageData | None]:
    """Return the data, None where the experiment makes its own, and the preset as it is done.

    Images in memory are not augmented, and own ones as they say.
    """
    if experiment.own_data:
        if data is not None or root is not None or classes is not None:
            raise ReproductionError(f"{experiment.name} makes its own data; it takes none.")
        return preset, None
    own = isinstance(data, ImageData)
    if own and (root is not None or classes is not None):
        raise ReproductionError("Your own data has its root and its classes in itself.")
    videos = "frames" in preset.options
    if videos and classes is not None:
        raise ReproductionError("--classes chooses among ImageNet's classes, not among videos.")
    if not videos and preset.network in VIDEO_NETWORKS:
        raise ReproductionError(
            f"{preset.network} takes videos, and {preset.data} are images. Take other --data, "
            f"{' or '.join(CLIPS)}, or a --network of images."
        )
    if isinstance(data, ImageData):
        found = data
    elif videos:
        found = load_videos(preset, root)
    else:
        found = load_images(
            preset.data, root, augment=preset.augment, classes=classes, size=preset.size
        )
    if preset.augment != "pictures":
        if found.train.augmented is None:
            preset = preset.but(augment="none")
        elif own:
            preset = preset.but(augment="own")
    return preset, found
