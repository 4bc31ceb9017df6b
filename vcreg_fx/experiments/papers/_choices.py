"""What is run, of all that was asked for."""

from __future__ import annotations

from pathlib import Path

from ..images import ImageData, load_images
from ._errors import ReproductionError
from ._experiment import Experiment
from ._networks import Factory, find_network
from ._preset import Preset


def choose_preset(
    experiment: Experiment,
    scale: str,
    data: str | ImageData | None,
    network: str | Factory | None,
    preset: Preset | None,
    seeds: int | None,
) -> Preset:
    """Return the preset that was asked for.

    **Raises:** `ReproductionError` for an unknown scale, or fewer than 2 seeds.
    """
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


def choose_network(
    experiment: Experiment, preset: Preset, network: str | Factory | None
) -> Factory | None:
    """Return the function that builds the network; None where the experiment has its own.

    **Raises:** `ReproductionError` for an unknown network, or where none can be chosen.
    """
    if callable(network):
        return network
    if not experiment.own_data:
        return find_network(preset.network)
    if network is not None:
        raise ReproductionError(f"{experiment.name} has a network of its own; it takes none.")
    return None


def load(
    experiment: Experiment,
    preset: Preset,
    data: str | ImageData | None,
    root: str | Path | None,
    classes: str | Path | None,
) -> ImageData | None:
    """Return the data; None where the experiment makes its own.

    **Raises:** `DataError` if it is not there; `ReproductionError` where none can be chosen.
    """
    if experiment.own_data:
        if data is not None or root is not None:
            raise ReproductionError(f"{experiment.name} makes its own data; it takes none.")
        return None
    if isinstance(data, ImageData):
        return data
    return load_images(preset.data, root, augment=preset.augment, classes=classes, size=preset.size)
