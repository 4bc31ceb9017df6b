"""Run an experiment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...ablation import AblationOptions, Record
from ..images import ImageData, load_images
from ..training import processes
from ._errors import ReproductionError
from ._evidence import read_report
from ._experiment import Experiment
from ._folder import claim_folder
from ._networks import Factory, find_network
from ._preset import Preset
from ._registry import find_experiment
from ._render import render
from ._report import make_report
from ._study import Study
from ._timing import NAME as TIMING
from ._timing import run_timing
from ._together import announce, follow


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    **Attributes:**

    - `report`: everything as plain data, as in ``NAME.json``.
    - `folder`: with ``NAME.json``, ``NAME.md``, ``NAME.png`` and the store of all trials.
    """

    report: dict[str, Any]
    folder: Path

    def to_markdown(self) -> str:
        """Return the tables and what they say."""
        if "markdown" in self.report:
            return str(self.report["markdown"])
        return render(self.report)

    def __str__(self) -> str:
        """Return the tables and what they say."""
        return self.to_markdown()


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
    classes: str | Path | None = None,
    threads: int | None = 1,
    tensorboard: bool = False,
    retry_failed: bool = False,
    on_record: Callable[[Record], object] | None = None,
) -> Outcome:
    """Run one of the paper's experiments: search on validation images, test once, report.

    Trials are those of `vcreg_fx.ablate`, in a store in `folder`: a run that was stopped goes on
    where it was when it is called again, within a trial after its last whole epoch.

    **Arguments:**

    - `name`: one of `EXPERIMENTS`.
    - `folder`: where everything goes. One folder an experiment.
    - `scale`: ``"quick"``, ``"default"`` or ``"paper"``, the paper's settings.
    - `data`: a name for `load_images`, or your own `ImageData`; by default that of the preset.
    - `data_root`: the folder of the data.
    - `network`: a name of `NETWORKS`, or your own function of (shape of an image, number of
      classes); by default that of the preset.
    - `preset`: your own settings, instead of those of `scale`.
    - `seeds`: runs of each way to regularize, 2 at least; by default that of the preset.
    - `classes`: a file that names superclasses of ImageNet, see `read_classes`.
    - `threads`: torch's CPU threads.
    - `tensorboard`: write the numbers of each epoch to ``logs``.
    - `retry_failed`: run failed trials again.
    - `on_record`: called with the record of each trial as it is finished.

    **Returns:** an `Outcome`.

    **Raises:** `ReproductionError` for what cannot be run as asked, and `DataError` for data that
    is not there, both before anything is trained; `AblationError` if trials fail; `Stopped` after a
    signal.
    """
    folder = Path(folder).absolute()
    if name == TIMING:
        return Outcome(run_timing(folder, scale), folder)
    experiment = find_experiment(name)
    preset = _preset(experiment, scale, data, network, preset, seeds)
    images = _load(experiment, preset, data, data_root, classes)
    factory = _factory(experiment, preset, network)
    asked = {
        "experiment": name,
        "data": preset.data if images is None else images.name,
        "preset": preset.to_dict(),
    }
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
    claim_folder(folder, asked)

    def finished(record: Record) -> None:
        checkpoint = folder / "checkpoints" / f"{record.id}.pt"
        if record.status == "done":
            checkpoint.unlink(missing_ok=True)
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
    )
    found = study.run(experiment.arms(preset))
    report = make_report(experiment, asked, found, scale)
    outcome = _write(experiment, report, folder)
    if where.size > 1:
        announce(None)
        where.wait()
    return outcome


def _write(experiment: Experiment, report: dict[str, Any], folder: Path) -> Outcome:
    """Write the report, its tables and its picture."""
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (folder / f"{experiment.name}.json").write_text(text + "\n", "utf-8")
    (folder / f"{experiment.name}.md").write_text(render(report), "utf-8")
    experiment.draw(report, folder / f"{experiment.name}.png")
    return Outcome(report, folder)


def _preset(
    experiment: Experiment,
    scale: str,
    data: str | ImageData | None,
    network: str | Factory | None,
    preset: Preset | None,
    seeds: int | None,
) -> Preset:
    if scale not in {"quick", "default", "paper"}:
        raise ReproductionError(f'scale={scale!r} must be "quick", "default" or "paper".')
    if preset is None:
        preset = experiment.presets(scale, data if isinstance(data, str) else None)
    if network is not None:
        name = network if isinstance(network, str) else getattr(network, "__qualname__", "own")
        preset = preset.but(network=name)
    if isinstance(data, ImageData):
        preset = preset.but(data=data.name)
    if seeds is not None:
        preset = preset.but(seeds=seeds)
    if preset.seeds < 2:
        raise ReproductionError(
            f"{preset.seeds} seed{'s' * (preset.seeds != 1)} cannot tell a difference from chance: "
            "an interval needs 2 at least, and 5 to be of use."
        )
    return preset


def _factory(
    experiment: Experiment, preset: Preset, network: str | Factory | None
) -> Factory | None:
    if callable(network):
        return network
    if not experiment.own_data:
        return find_network(preset.network)
    if network is not None:
        raise ReproductionError(f"{experiment.name} has a network of its own; it takes none.")
    return None


def _load(
    experiment: Experiment,
    preset: Preset,
    data: str | ImageData | None,
    root: str | Path | None,
    classes: str | Path | None,
) -> ImageData | None:
    if experiment.own_data:
        if data is not None or root is not None:
            raise ReproductionError(f"{experiment.name} makes its own data; it takes none.")
        return None
    if isinstance(data, ImageData):
        return data
    return load_images(preset.data, root, augment=preset.augment, classes=classes, size=preset.size)
