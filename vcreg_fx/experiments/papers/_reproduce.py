"""Run an experiment."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch

from ...ablation import AblationOptions, Record
from ..images import ImageData
from ..training import processes
from ._choices import choose_network, choose_preset, load
from ._errors import ReproductionError
from ._evidence import read_report
from ._folder import claim_folder
from ._networks import Factory
from ._outcome import Outcome, write_outcome
from ._preset import Preset
from ._registry import find_experiment
from ._report import make_report
from ._study import Study
from ._timing import TIMING, run_timing
from ._together import announce, follow


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
    is not there, both before anything is trained; `ModuleNotFoundError` without
    TensorBoard, if it is asked for; `AblationError` if trials fail; `Stopped` after a signal.
    """
    folder = Path(folder).absolute()
    if name == TIMING:
        if any(given is not None for given in (data, data_root, network, preset, seeds, classes)):
            raise ReproductionError(
                "timing has models and noise of its own; it takes no data, network, preset, seeds. "
                "vcreg-fx bench takes your own."
            )
        return Outcome(run_timing(folder, scale), folder)
    if tensorboard:
        import_module("torch.utils.tensorboard")  # missing, it is found out before training
    experiment = find_experiment(name)
    preset = choose_preset(experiment, scale, data, network, preset, seeds)
    images = load(experiment, preset, data, data_root, classes)
    factory = choose_network(experiment, preset, network)
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
    outcome = write_outcome(experiment, report, folder)
    if where.size > 1:
        announce(None)
        where.wait()
    return outcome
