"""Features: what a frozen model computes at its sites, one vector an image."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from placement_rules import Layout, PlacementError, Rule, Site, parse, record, resolve

from .._shared.keeping import frozen
from .._shared.progress import Progress
from ..functional import flatten_samples
from ._taps import tapped


@dataclass(frozen=True)
class Features:
    """What was extracted; everything lies on the CPU.

    **Attributes:**

    - `tensors`: site name → features, shape (n, d).
    - `labels`: shape (n,), where the batches had labels.
    """

    tensors: dict[str, Tensor]
    labels: Tensor | None

    @property
    def only(self) -> Tensor:
        """The features of the only site.

        **Raises:** `PlacementError` if there are several.
        """
        if len(self.tensors) != 1:
            names = ", ".join(self.tensors)
            raise PlacementError(f"There are {len(self.tensors)} sites ({names}), not one.")
        return next(iter(self.tensors.values()))


def extract_features(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    rule: str | Rule = "head",
    *,
    pool: Literal["mean", "none"] = "mean",
    batch_size: int = 256,
    device: str | torch.device | None = None,
    layout: str | Layout | None = None,
    progress: bool | None = False,
) -> Features:
    """Run a frozen model over data and keep what passes at the sites of a rule.

    The model runs in eval mode without gradients, and is left in the mode and on the device it was
    on. It may have VCReg or not.

    **Arguments:**

    - `data`: images, shape (n, …); a ``Dataset`` of such; or batches, such as a ``DataLoader``:
      tensors, pairs of a tensor and labels, or dictionaries of the model's named arguments, with
      ``labels`` beside them.
    - `rule`: the sites; by default the input of the classifier.
    - `pool`: ``"mean"`` averages each channel over locations, which gives one vector an image;
      ``"none"`` keeps every location as a row, as VCReg does.
    - `batch_size`: images in one forward pass, where `data` is a tensor or a data set. Sites whose
      first axis is not that of the images (patches of MobileViT) need 1.
    - `device`: where to run; by default where the model is.
    - `layout`: of every site, where it is not to be inferred.
    - `progress`: show a progress bar; if None, lines where the output is no terminal.

    **Raises:** `PlacementError` if a site does not have one tensor a forward pass, or one that is
    to be averaged has another first axis than that of the images; `ValueError` for data without
    batches.
    """
    if pool not in {"mean", "none"}:
        raise ValueError(f'pool={pool!r} must be "mean" or "none".')
    stream, count = batches(data, batch_size)
    first = next(stream, None)
    if first is None:
        raise ValueError("There is no batch to extract features from: the data is empty.")
    kept: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    with (
        frozen(model, device) as where,
        Progress("extracting features", count, shown=progress) as bar,
    ):
        example = first.to(where)
        recording = record(model, example.args, example.kwargs)
        sites = resolve(recording, parse(rule).require(recording), layout)
        with tapped(model, sites, (example.args, example.kwargs)) as (running, found):
            for batch in itertools.chain([first], stream):
                moved = batch.to(where)
                running(*moved.args, **moved.kwargs)
                for site in sites:
                    kept.setdefault(site.name, []).append(_take(site, found, batch.size, pool))
                if batch.labels is not None:
                    labels.append(batch.labels.cpu())
                bar.advance()
    tensors = {name: torch.cat(parts) for name, parts in kept.items()}
    return Features(tensors, torch.cat(labels) if labels else None)


def head_features(model: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return the input of the model's classifier for each image, from the frozen model.

    **Arguments:**

    - `model`: a classifier with one head; it is left in the mode it was in.
    - `images`: shape (n, channels, height, width).
    - `batch_size`: images in one forward pass.

    **Returns:** shape (n, d), where the model is.

    **Raises:** `PlacementError` if the model has no head, several, or one that does not see one
    vector an image.
    """
    found = extract_features(model, images, pool="none", batch_size=batch_size)
    features, name = found.only, ", ".join(found.tensors)
    if len(features) != len(images):
        raise PlacementError(
            f"{name} holds {len(features)} vectors for {len(images)} images; features are one "
            "vector an image."
        )
    return features.to(images.device)


def _take(site: Site, found: Mapping[str, list[Tensor]], size: int, pool: str) -> Tensor:
    """Return the features of one batch, and forget the tensor they came from."""
    tensors = found[site.name]
    if len(tensors) != 1:
        raise PlacementError(
            f"{site.name} was passed {len(tensors)} times in one forward pass; features are read "
            "where a tensor passes once. Choose another rule."
        )
    h = tensors.pop()
    if pool == "none":
        return flatten_samples(h, site.layout).cpu()
    if size == 1 and h.shape[0] != 1:  # whatever its axes mean, all of it is one image's
        return flatten_samples(h, site.layout).mean(dim=0, keepdim=True).cpu()
    if site.layout.axis == 0 or h.shape[0] != size:
        raise PlacementError(
            f"{site.name} has shape {tuple(h.shape)} ({site.layout}) for a batch of {size}: its "
            "first axis is not that of the images, so it is open which part belongs to which. Run "
            'one image at a time (batch_size=1), keep every location (pool="none"), or choose '
            "another rule."
        )
    if h.ndim > 2:
        axes = [axis for axis in site.layout.sample_axes if axis]
        return h.mean(dim=axes, dtype=torch.promote_types(h.dtype, torch.float32)).cpu()
    return flatten_samples(h, site.layout).cpu()


@dataclass(frozen=True)
class Batch:
    """The arguments of one forward pass.

    **Attributes:**

    - `args`, `kwargs`: of the model.
    - `labels`: shape (n,), if the data has them.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor | None

    @property
    def size(self) -> int:
        """How many samples there are."""
        tensors = [v for v in (*self.args, *self.kwargs.values()) if isinstance(v, Tensor)]
        return len(tensors[0])

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its arguments on a device; labels stay where they are."""

        def move(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        kwargs = {name: move(value) for name, value in self.kwargs.items()}
        return Batch(tuple(move(value) for value in self.args), kwargs, self.labels)


def batches(data: Tensor | Iterable[Any], batch_size: int) -> tuple[Iterator[Batch], int | None]:
    """Return the batches of a tensor, a data set or an iterable, and how many, if that is known."""
    parts: Iterable[Any] = data
    if isinstance(data, Tensor):
        parts = data.split(batch_size)
    elif isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        parts = DataLoader(data, batch_size)
    return map(_batch, parts), len(parts) if isinstance(parts, Sized) else None


def _batch(part: Any) -> Batch:
    if isinstance(part, Tensor):
        return Batch((part,), {}, None)
    if isinstance(part, Mapping):
        kwargs = {name: value for name, value in part.items() if name != "labels"}
        if any(isinstance(value, Tensor) for value in kwargs.values()):
            return Batch((), kwargs, part.get("labels"))
    if isinstance(part, (tuple, list)) and 1 <= len(part) <= 2:
        inputs, *labels = part
        if isinstance(inputs, Tensor):
            return Batch((inputs,), {}, torch.as_tensor(labels[0]) if labels else None)
    raise TypeError(
        f"A batch is a {type(part).__name__}. Give tensors, pairs (tensor, labels), or "
        "dictionaries of the model's named arguments."
    )
