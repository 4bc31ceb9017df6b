"""Clips of videos: which frames a network is given, their crops, and what it says of all of them.

The sampling is that of VideoMAE's code for Kinetics and HMDB51 (Tong et al. 2022, ``kinetics.py``):
to train on, frames at a stride from a random place; to test on, clips at equal distances and crops
along the longer side.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ..._shared.keeping import frozen
from ..images import DataError, ImageData, ImageSet
from ..images._datasets import IMAGENET_STATISTICS


class Video(Protocol):
    """A video: its name, how many frames it has, and those that are asked for."""

    @property
    def name(self) -> str:
        """What tells it from all others."""

    @property
    def count(self) -> int:
        """The number of its frames."""

    def frames(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        """Yield frames by their numbers, which ascend: bytes, shape (3, height, width)."""


@dataclass(frozen=True)
class VideoInMemory:
    """Frames as bytes, shape (count, 3, height, width)."""

    name: str
    pixels: Tensor

    @property
    def count(self) -> int:
        """The number of frames."""
        return len(self.pixels)

    def frames(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        """Yield frames by their numbers."""
        yield from (self.pixels[number] for number in numbers)


# Which frames, and which part of them -----------------------------------------------------------


def random_clip(count: int, frames: int, stride: int) -> list[int]:
    """Return the numbers of a clip's frames, from a random place on (torch's random state).

    A video that is too short is given whole, and its last frame again and again.
    """
    most = max(count - frames * stride, 0)
    start = int(torch.randint(most + 1, ()))
    return [min(start + i * stride, _last(count, stride, start)) for i in range(frames)]


def _last(count: int, stride: int, start: int = 0) -> int:
    """Return the last frame of a video that is reached from another one in equal steps."""
    return start + (count - 1 - start) // stride * stride


def uniform_clips(count: int, frames: int, stride: int, clips: int) -> list[list[int]]:
    """Return the numbers of the frames of clips at equal distances; a single one is in the middle.

    The first begins with the video, and the last ends with it. Where it is too short, its last
    frame is repeated.
    """
    reached = list(range(0, count, stride))
    reached += reached[-1:] * (frames - len(reached))
    room = len(reached) - frames
    starts = [room // 2] if clips == 1 else [int(i * room / (clips - 1)) for i in range(clips)]
    return [reached[start : start + frames] for start in starts]


def stream(video: Video, clips: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Yield clips of a video, bytes of shape (frames, 3, height, width).

    Each frame is decoded once, and given up when no later clip needs it: however many clips there
    are, about one of them is held.

    **Arguments:**

    - `clips`: numbers of frames, such as of `uniform_clips`; each clip begins no earlier than the
      one before.
    """
    numbers = sorted({number for clip in clips for number in clip})
    coming = zip(numbers, video.frames(numbers), strict=True)
    held: dict[int, Tensor] = {}
    for clip in clips:
        for number in [number for number in held if number < clip[0]]:
            del held[number]
        while clip[-1] not in held:
            number, frame = next(coming)
            if number >= clip[0]:
                held[number] = frame
        yield torch.stack([held[number] for number in clip])


def crops_of(clip: Tensor, size: int, crops: int) -> Tensor:
    """Return square crops of a clip, standardized as ImageNet's images.

    The shorter side is brought to `size`; the crops lie at equal distances along the longer one,
    from end to end. A single one is in the middle.

    **Arguments:**

    - `clip`: bytes, shape (frames, 3, height, width).

    **Returns:** shape (crops, frames, 3, size, size).
    """
    from torchvision.transforms.v2 import functional

    if min(clip.shape[-2:]) != size:
        clip = functional.resize(clip, [size])
    height, width = clip.shape[-2:]
    room = max(height, width) - size
    places = [room / 2] if crops == 1 else [room * i / (crops - 1) for i in range(crops)]
    found = [
        clip[..., int(place) :, :][..., :size, :] if height > width
        else clip[..., int(place) :][..., :size]
        for place in places
    ]  # fmt: skip
    return standardized(torch.stack(found))


def standardized(clip: Tensor) -> Tensor:
    """Return bytes as numbers with ImageNet's mean and standard deviation taken out."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET_STATISTICS)
    return (clip.float() / 255 - mean) / std


Change = Callable[[Tensor], Tensor]


# As data ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """What a network is given of a video.

    **Arguments:**

    - `frames`: of a clip.
    - `stride`: from one to the next.
    - `size`: the side of a crop.
    - `sigma`: of Gaussian noise that is added to standardized frames. It belongs to a clip of a
      video: it is the same whenever that clip, or any crop of it, is seen.
    """

    frames: int
    stride: int
    size: int
    sigma: float = 0.0

    def noisy(self, crops: Tensor, video: str, clip: int) -> Tensor:
        """Return crops of a clip, shape (…, frames, 3, size, size), with the clip's noise."""
        if not self.sigma:
            return crops
        generator = torch.Generator().manual_seed(zlib.crc32(f"{video} {clip}".encode()))
        return crops + self.sigma * torch.randn(crops.shape[-4:], generator=generator)


class Clips(Dataset[tuple[Tensor, int]]):
    """(clip, label) pairs: one clip of each video, standardized.

    **Arguments:**

    - `videos`: a `Video` each.
    - `labels`: shape (n,).
    - `sampling`: what of them.
    - `change`: to train on: clips from random places, and what is done to them. By default the clip
      and the crop in the middle; ``"none"`` is a random place alone.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        labels: Tensor,
        sampling: Sampling,
        change: Change | str | None = None,
    ) -> None:
        self.videos, self.labels, self.sampling, self.change = videos, labels, sampling, change

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return a clip, shape (frames, 3, size, size), and its label."""
        video, sampling = self.videos[index], self.sampling
        if self.change is None:
            (numbers,) = uniform_clips(video.count, sampling.frames, sampling.stride, 1)
        else:
            numbers = random_clip(video.count, sampling.frames, sampling.stride)
        (clip,) = stream(video, [numbers])
        change = self.change
        clip = change(clip) if callable(change) else crops_of(clip, sampling.size, 1)[0]
        return sampling.noisy(clip, video.name, -1), int(self.labels[index])


@dataclass(frozen=True)
class ClipSet(ImageSet):
    """Videos with labels; where images are asked for, there is a clip of each.

    `pairs` and `augmented` are `Clips`.
    """

    @classmethod
    def of_videos(
        cls, videos: Sequence[Video], labels: Tensor, sampling: Sampling, change: Change | str
    ) -> ClipSet:
        """Return videos; `change` is that of the `Clips` to train on."""
        return cls(Clips(videos, labels, sampling), labels, Clips(videos, labels, sampling, change))

    @property
    def videos(self) -> Sequence[Video]:
        """The videos."""
        found: Sequence[Video] = self.pairs.videos  # type: ignore[attr-defined]
        return found

    @property
    def sampling(self) -> Sampling:
        """What of them."""
        found: Sampling = self.pairs.sampling  # type: ignore[attr-defined]
        return found

    def subset(self, indices: Tensor) -> ClipSet:
        """Return some of the videos."""
        videos = [self.videos[index] for index in indices.tolist()]
        return self._with(videos, self.labels[indices], self.sampling)

    def with_labels(self, labels: Tensor) -> ClipSet:
        """Return the same videos with other labels."""
        return self._with(self.videos, labels, self.sampling)

    def with_noise(self, sigma: float) -> ClipSet:
        """Return the same videos with noise, see `Sampling`."""
        return self._with(self.videos, self.labels, replace(self.sampling, sigma=sigma))

    def _with(self, videos: Sequence[Video], labels: Tensor, sampling: Sampling) -> ClipSet:
        change = self.augmented.change  # type: ignore[union-attr]
        return ClipSet.of_videos(videos, labels, sampling, change)


@dataclass(frozen=True)
class ClipData(ImageData):
    """A data set of videos.

    **Attributes:**

    - `sources`: of each video to train on, what it was cut from.
    - `held`: whether it may be held out for a search, by index; by default, all.
    - `splits`: the published splits of the data, if there are several; the first is this one.
    """

    sources: tuple[str, ...] = ()
    held: Tensor | None = None
    splits: Sequence[ClipData] = field(default_factory=tuple, repr=False)

    def split(self, number: int) -> ClipData:
        """Return a split by its number, from 0, beginning again after the last."""
        return self.splits[number % len(self.splits)] if self.splits else self

    def hold_out(self, share: float | int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return the indices of videos to train on, and of those held out, for a search.

        What was cut from one source is never in both. Where several splits are published, a video
        that any of them tests is not held out: no search sees a test video of another split.

        **Arguments:**

        - `share`: of the videos of each class, or how many of all. Whole sources are held out, with
          their videos of all classes, until there are about as many of each; one at least is left.

        **Raises:** `DataError` if nothing is left on either side.
        """
        labels = self.train.labels
        if len(set(self.sources)) == len(labels) and self.held is None:
            return super().hold_out(share, seed)
        part = share if isinstance(share, float) else share / len(labels)
        free = torch.ones(len(labels), dtype=torch.bool) if self.held is None else self.held
        generator = torch.Generator().manual_seed(seed)
        groups: dict[str, list[int]] = {}
        for index, source in enumerate(self.sources):
            groups.setdefault(source, []).append(index)
        names = [name for name, inside in groups.items() if free[inside].all()]
        order = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]
        total = labels.bincount()
        counts = {name: labels[groups[name]].bincount(minlength=len(total)) for name in order}
        held, out = torch.zeros_like(total), set[str]()

        def excess(name: str) -> float:
            over = (held + counts[name] - part * total).clamp_min(0) / total.clamp_min(1)
            return float(over[counts[name] > 0].sum())

        for label in labels.unique().tolist():
            members = [name for name in order if counts[name][label]]
            while held[label] < part * total[label]:
                fitting = [
                    name for name in members
                    if name not in out and not ((held + counts[name] >= total) & (total > 0)).any()
                ]  # fmt: skip
                if not fitting:
                    break
                out.add(found := min(fitting, key=excess))
                held += counts[found]
        chosen = torch.tensor([source in out for source in self.sources])
        if not chosen.any() or chosen.all():
            raise DataError(
                f"No videos of {self.name} can be held out for the search: none has a source that "
                "no other video to train on has, and that no split tests."
            )
        return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


class Views(IterableDataset[tuple[int, Tensor]]):
    """(video, crops) pairs: of each video some clips at equal distances, of each clip some crops.

    A video is an index; the crops have the shape (crops, frames, 3, size, size). The processes of a
    loader share the videos.
    """

    def __init__(self, videos: Sequence[Video], sampling: Sampling, clips: int, crops: int) -> None:
        self._videos, self._sampling = videos, sampling
        self._clips, self._crops = clips, crops

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yield clip after clip."""
        sampling, worker = self._sampling, get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(first, len(self._videos), step):
            video = self._videos[index]
            numbers = uniform_clips(video.count, sampling.frames, sampling.stride, self._clips)
            for place, clip in enumerate(stream(video, numbers)):
                crops = crops_of(clip, sampling.size, self._crops)
                yield index, sampling.noisy(crops, video.name, place)


def average_logits(
    model: nn.Module,
    videos: ClipSet,
    clips: int,
    crops: int,
    *,
    batch_size: int = 64,
    workers: int = 0,
) -> Tensor:
    """Return the mean of a network's logits over all clips and crops of each video, on the CPU.

    VideoMAE's code averages probabilities; this averages logits. As many crops as a batch holds are
    in memory at a time, whatever the number of clips. The model's modes are left as they were.

    **Arguments:**

    - `videos`: n of them.
    - `batch_size`: crops in one forward pass, or those of one clip, if they are more.

    **Returns:** shape (n, classes).
    """
    views = Views(videos.videos, videos.sampling, clips, crops)
    total: Tensor | None = None
    with frozen(model) as device:
        for indices, batch in DataLoader(views, max(batch_size // crops, 1), num_workers=workers):
            logits = model(batch.flatten(0, 1).to(device)).float().cpu()
            if total is None:
                total = torch.zeros(len(videos), logits.shape[1])
            total.index_add_(0, indices.repeat_interleave(crops), logits)
    if total is None:
        raise DataError("There is no video to measure on.")
    return total / (clips * crops)
