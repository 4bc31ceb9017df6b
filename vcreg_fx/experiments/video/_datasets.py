"""Videos in files: how they are decoded and augmented, HMDB51, and any folder of clips."""

from __future__ import annotations

import difflib
import importlib
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._shared.keeping import keeping_randomness
from ..._shared.progress import Progress
from ..images import DataError
from ..images._datasets import IMAGENET_STATISTICS
from ._clips import Change, ClipData, ClipSet, Sampling, standardized
from ._moving_glyphs import moving_glyphs

CLIPS = ("moving-glyphs", "hmdb51", "clips")
"""The data sets of videos: embedded, HMDB51, and any folder of clips."""

_ENDINGS = {".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v"}
_TEST = ("test", "val", "validation")
BROKEN = ("refuse", "skip")
_LACKING = 0.1  # of the frames that a file announces may be missing at its end


@dataclass(frozen=True)
class VideoFile:
    """A file that PyAV decodes whenever frames are asked for, ``pip install "vcreg-fx[video]"``."""

    path: Path
    count: int

    @property
    def name(self) -> str:
        """Its place among files of its class."""
        return f"{self.path.parent.name}/{self.path.name}"

    @classmethod
    def look(cls, path: Path, whole: bool = False) -> VideoFile:
        """Return a file after its packets have been counted and its first frame decoded.

        **Arguments:**

        - `whole`: decode all of its frames.

        **Raises:** `DataError` if it is no video, or a broken one, or has fewer frames than its
        header says; `ModuleNotFoundError` without PyAV.
        """
        with _opened(path) as container:
            said = container.streams.video[0].frames  # 0 where a header does not say
            sizes = [packet.size for packet in container.demux(video=0)]  # the last is empty
        if len(sizes) - 1 < (1 - _LACKING) * said:
            raise DataError(f"{path} is broken: {len(sizes) - 1} of its {said} frames are there.")
        found = cls(path, sum(size > 0 for size in sizes))
        list(found.frames([max(found.count - 1, 0) if whole else 0]))
        return found

    def frames(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        """Yield frames by their numbers, which ascend; one is decoded at a time.

        Where a codec returns fewer frames than there are packets, the last one is repeated.

        **Raises:** `DataError` if the file is broken.
        """
        wanted, frame, decoded = iter(numbers), None, 0
        number = next(wanted, None)
        with _opened(self.path) as container:
            for frame in container.decode(video=0):
                while number == decoded:
                    yield _pixels(frame)
                    number = next(wanted, None)
                decoded += 1
                if number is None:
                    return
        if frame is None or decoded < (1 - _LACKING) * self.count:
            raise DataError(
                f"{self.path} is broken: {decoded} of its {self.count} frames can be decoded."
            )
        while number is not None:
            yield _pixels(frame)
            number = next(wanted, None)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} is broken: there are no pictures in it.")
            container.streams.video[0].thread_count = 1  # the loader's processes share the cores
            yield container
    except av.FFmpegError as error:
        raise DataError(f"{path} is broken: {error.strerror}.") from error


def _pixels(frame: Any) -> Tensor:
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)


class VideoMAEAugmentation:
    """What VideoMAE's fine-tuning does to a clip, from bytes to a standardized clip.

    Its ``rand-m7-n4-mstd0.5-inc1`` on whole frames, a crop of 8 to 100 % of the area, a flip, and a
    box of noise in a quarter of the clips. All frames of a clip are changed alike.
    """

    def __init__(self, size: int) -> None:
        from timm.data import rand_augment_transform
        from torchvision.transforms import v2

        gray = tuple(round(255 * value) for value in IMAGENET_STATISTICS[0])
        self._policy = rand_augment_transform("rand-m7-n4-mstd0.5-inc1", {"img_mean": gray})
        self._crop = v2.Compose(
            [v2.RandomResizedCrop(size, (0.08, 1.0)), v2.RandomHorizontalFlip()]
        )
        self._erase = v2.RandomErasing(0.25, value="random")

    def __call__(self, clip: Tensor) -> Tensor:
        """Return a clip, shape (frames, 3, size, size), of bytes of any size."""
        from torchvision.transforms.v2 import functional

        seed, found = int(torch.randint(2**31, ())), []
        with keeping_randomness():
            for frame in clip:
                random.seed(seed)  # timm draws from Python and NumPy, the same for each frame
                np.random.seed(seed)
                changed = self._policy(functional.to_pil_image(frame))
                found.append(functional.pil_to_tensor(changed))
        mixed: Tensor = self._erase(standardized(self._crop(torch.stack(found))))
        return mixed


def load_clips(
    name: str,
    root: str | Path | None,
    sampling: Sampling,
    *,
    augment: str = "none",
    broken: str = "refuse",
    train: int = 4_000,
    test: int = 1_000,
) -> ClipData:
    """Return a data set of videos by its name, one of `CLIPS`.

    **Arguments:**

    - `root`: its folder; moving glyphs need none.
    - `sampling`: what a network is given of a video.
    - `augment`, `broken`: see `hmdb51`.
    - `train`, `test`: how many moving glyphs.

    **Raises:** `DataError` for an unknown name, or if it is not there; `ModuleNotFoundError`
    without PyAV, where there are files to decode: ``pip install "vcreg-fx[video]"``.
    """
    if name not in CLIPS:
        near = difflib.get_close_matches(name, CLIPS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise DataError(f"There are no videos {name!r}.{hint} There are {', '.join(CLIPS)}.")
    if name == "moving-glyphs":
        if root is not None:
            raise DataError("moving-glyphs are drawn; they take no --data-root.")
        return moving_glyphs(sampling, train, test)
    importlib.import_module("av")  # missing, it is no fault of the files
    read = hmdb51 if name == "hmdb51" else clips_in
    return read(root, sampling, augment, broken)


def hmdb51(
    root: str | Path | None, sampling: Sampling, augment: str = "none", broken: str = "refuse"
) -> ClipData:
    """Return HMDB51 (Kuehne et al. 2011) as it is published, with its three splits.

    **Arguments:**

    - `root`: a folder with a folder of videos for each class, and the folder of the split files,
      ``brush_hair_test_split1.txt`` and so on; both at any depth. Videos may have been converted:
      they are found by their names without endings.
    - `augment`: ``"none"``, or ``"videomae"``, see `VideoMAEAugmentation`.
    - `broken`: ``"refuse"`` files that are cut off, or whose first frame cannot be decoded; or
      ``"skip"`` all that cannot be decoded to the end, with a warning. Both name them.

    A video's source is a film: the beginning of its name, before that of its class. Others of its
    videos may be of other classes.

    **Raises:** `DataError` if something is not there, or broken.
    """
    folder = _folder(root, "HMDB51", "the folders of its videos and its split files")
    lists = sorted(folder.rglob("*_test_split[0-9].txt"))
    if not lists:
        raise DataError(
            f"{folder} holds no split files of HMDB51 (brush_hair_test_split1.txt, …), which are "
            "published beside its videos as test_train_splits.rar."
        )
    first: dict[str, Path] = {}
    for path in lists:
        if (other := first.setdefault(path.name, path)) != path:
            raise DataError(f"{other} and {path} are of one class and split; remove one of them.")
    classes = sorted({path.name[: -len("_test_split1.txt")] for path in lists})
    files: dict[tuple[str, str], Path] = {}
    for path in _videos_below(folder):
        files.setdefault((path.parent.name, path.stem), path)
    roles: dict[str, list[tuple[str, str, int]]] = {}
    for path in lists:
        name, number = path.name[: -len("_test_split1.txt")], path.stem[-1]
        for line in path.read_text("utf-8").splitlines():
            if line.strip():
                file, role = line.rsplit(maxsplit=1)
                roles.setdefault(number, []).append((name, Path(file).stem, int(role)))
    listed = sorted({(name, stem) for split in roles.values() for name, stem, _ in split})
    if absent := [key for key in listed if key not in files]:
        raise DataError(
            f"{folder} lacks {len(absent)} of the {len(listed)} videos that its split files name, "
            f"the first is {absent[0][0]}/{absent[0][1]}.avi."
        )
    videos = dict(zip(listed, _looked([files[key] for key in listed], broken), strict=True))
    tested = {(n, stem) for split in roles.values() for n, stem, role in split if role == 2}
    found = []
    for number in sorted(roles):
        sets, keys = [], []
        for wanted in (1, 2):
            keys = [
                (name, stem) for name, stem, role in roles[number]
                if role == wanted and videos[name, stem] is not None
            ]  # fmt: skip
            labels = [classes.index(name) for name, _ in keys]
            sets.append(_clips([videos[key] for key in keys], labels, sampling, augment))
            if wanted == 1:
                sources = tuple(stem.partition(f"_{name}_")[0] for name, stem in keys)
                held = torch.tensor([key not in tested for key in keys])
        train, test = sets
        split = ClipData("HMDB51", train, test, tuple(classes), root=folder)
        found.append(replace(split, sources=sources, held=held))
    return replace(found[0], splits=found)


def clips_in(
    root: str | Path | None, sampling: Sampling, augment: str = "none", broken: str = "refuse"
) -> ClipData:
    """Return videos in ``train/CLASS`` and ``test/CLASS`` (or ``val``) of a folder.

    Those in ``train/CLASS/SOURCE`` were cut from one source, which may be there in other classes,
    too; others are a source each. The arguments and errors are those of `hmdb51`.
    """
    folder = _folder(root, "A folder of clips", "train/CLASS and test/CLASS")
    second = next((folder / name for name in _TEST if (folder / name).is_dir()), folder / "test")
    sets: list[ClipSet] = []
    names: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    for part in (folder / "train", second):
        files = _videos_below(part)
        if not files:
            raise DataError(f"{part} holds no videos; they belong into {part}/CLASS.")
        if part.name == "train":
            names = tuple(sorted({path.relative_to(part).parts[0] for path in files}))
        if other := sorted({path.relative_to(part).parts[0] for path in files} - set(names)):
            raise DataError(f"{part} has the class {other[0]}, which there is not to train on.")
        looked = _looked(files, broken)
        kept = [(file, path) for file, path in zip(looked, files, strict=True) if file is not None]
        inside = [path.relative_to(part) for _, path in kept]
        labels = [names.index(path.parts[0]) for path in inside]
        sets.append(_clips([file for file, _ in kept], labels, sampling, augment))
        if part.name == "train":
            sources = tuple(
                path.parts[1] if len(path.parts) > 2 else str(path.with_suffix(""))
                for path in inside
            )
    return ClipData(folder.name, sets[0], sets[1], names, root=folder, sources=sources)


def _folder(root: str | Path | None, name: str, what: str) -> Path:
    if root is None:
        raise DataError(f"{name} has to be read from a folder: --data-root DIR, with {what}.")
    if not Path(root).is_dir():
        raise DataError(f"{root} is no folder; there belong {what}.")
    return Path(root)


def _videos_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)


def _looked(files: Sequence[Path], broken: str) -> list[VideoFile | None]:
    """Return the videos of files, None for a broken one.

    **Raises:** `DataError` for broken ones that are not to be skipped.
    """
    if broken not in BROKEN:
        raise DataError(f"broken={broken!r} must be one of {', '.join(BROKEN)}.")
    found: list[VideoFile | None] = []
    damages = []
    with Progress("looking at videos", len(files), passing=True) as bar:
        for path in files:
            try:
                found.append(VideoFile.look(path, whole=broken == "skip"))
            except DataError as error:
                found.append(None)
                damages.append(str(error))
            bar.advance()
    if damages:
        said = " ".join(damages)
        if broken == "refuse":
            raise DataError(f"{said} Mend or remove what is broken, or give --set broken=skip.")
        warnings.warn(f"{len(damages)} of {len(files)} videos are left out: {said}", stacklevel=4)
    return found


def _clips(videos: Sequence[Any], labels: list[int], sampling: Sampling, augment: str) -> ClipSet:
    known: dict[str, Any] = {"none": lambda: "none"}
    known["videomae"] = lambda: VideoMAEAugmentation(sampling.size)
    if augment not in known:
        raise DataError(f"augment={augment!r} must be one of {', '.join(known)}.")
    change: Change | str = known[augment]()
    return ClipSet.of_videos(videos, torch.tensor(labels, dtype=torch.long), sampling, change)
