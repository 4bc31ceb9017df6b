"""Letters that move: videos without a download, whose label is the motion."""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..images._glyphs import FACES, LABELS, _font, _fonts
from ._clips import ClipData, ClipSet, Sampling, VideoInMemory

MOTIONS = (
    "left", "right", "up", "down", "turning left", "turning right", "growing", "shrinking",
)  # fmt: skip
LETTERS = "ABCDEFGHIJKLMNPQRSTUVWXYZ"
"""Those of the Latin alphabet but O, of which nobody sees that it turns."""

MOVING_LABELS: Mapping[str, tuple[str, ...]] = {
    "motion": MOTIONS,
    "letter": tuple(LETTERS),
    "face": LABELS["face"],
    "color": LABELS["color"],
}
"""What a video is labelled with."""

_FRAMES = (8, 16)  # of a video, the fewest and the most
_SETS = {"train": 0, "test": 3, "unlabelled": 2}  # 1 was measured while settings were chosen
_PIXELS = Callable[[int], np.ndarray]


class _Scene(NamedTuple):
    """What a video shows, and the random numbers for its path and colors."""

    letter: int
    face: int
    hue: int
    frames: int
    rng: np.random.Generator


def _scene(index: int, part: str) -> _Scene:
    rng = np.random.default_rng((_SETS[part], 1, index))
    face, hue = int(rng.integers(len(FACES))), int(rng.integers(len(LABELS["color"])))
    letter = index // len(MOTIONS) % len(LETTERS)
    return _Scene(letter, face, hue, int(rng.integers(_FRAMES[0], _FRAMES[1] + 1)), rng)


def draw_video(index: int, part: str, size: int) -> Tensor:
    """Return a video as bytes, shape (frames, 3, size, size): 8 to 16 frames.

    Every eight of them have the eight `MOTIONS`. Beside its motion a letter drifts, turns and
    changes its size a little, at random.

    **Arguments:**

    - `part`: ``"train"``, ``"test"`` or ``"unlabelled"``, which share no video.
    """
    from PIL import Image, ImageDraw

    letter, face, hue, count, rng = _scene(index, part)
    motion, side = MOTIONS[index % len(MOTIONS)], 4 * size
    font = _font(face, round(side * rng.uniform(0.35, 0.5)))
    left, top, right, bottom = font.getbbox(LETTERS[letter])
    place = (side - left - right) / 2, (side - top - bottom) / 2
    drawn = Image.new("L", (side, side))
    ImageDraw.Draw(drawn).text(place, LETTERS[letter], fill=255, font=font)
    ink, ground = _colors(hue, rng)
    along = np.linspace(-0.5, 0.5, count)
    shift, turn, growth = _path(motion, rng)
    middle = size * (0.5 + rng.uniform(-0.08, 0.08, 2))
    turned = math.radians(rng.uniform(-15, 15))
    frames = []
    for t in along:
        x, y = middle + size * t * shift
        angle, scale = turned + t * turn, 2 * math.exp(-t * growth)
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        matrix = (
            cos, sin, side / 2 - cos * x - sin * y,
            -sin, cos, side / 2 - cos * y + sin * x,
        )  # fmt: skip
        moved = drawn.transform(
            (size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
        frame = ground + (ink - ground) * (np.asarray(moved, np.float64) / 255)
        frames.append((frame * 255 + 0.5).astype(np.uint8))
    return torch.from_numpy(np.stack(frames))


def _colors(hue: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return bright ink of about that hue, and dark ground, shape (3, 1, 1)."""
    exact = (hue + rng.uniform(-0.3, 0.3)) / len(LABELS["color"]) % 1
    ink = colorsys.hsv_to_rgb(exact, rng.uniform(0.7, 1), rng.uniform(0.8, 1))
    ground = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, 0.3), rng.uniform(0, 0.3))
    return np.reshape(ink, (3, 1, 1)), np.reshape(ground, (3, 1, 1))


def _path(motion: str, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """Return what changes from the first frame to the last: place, angle, logarithm of the size.

    The motion is several times as large as what drifts beside it.
    """
    shift = rng.uniform(-0.06, 0.06, 2)
    turn, growth = math.radians(rng.uniform(-8, 8)), rng.uniform(-0.12, 0.12)
    far, much, more = rng.uniform(0.4, 0.65), rng.uniform(60, 120), rng.uniform(0.6, 1.0)
    ways = {"left": (-far, 0), "right": (far, 0), "up": (0, -far), "down": (0, far)}
    shift = shift + np.array(ways.get(motion, (0, 0)))
    turn += math.radians({"turning left": -much, "turning right": much}.get(motion, 0))
    growth += {"growing": more, "shrinking": -more}.get(motion, 0)
    return shift, turn, growth


def moving_labels(count: int, part: str, label: str) -> Tensor:
    """Return a label of every video, one of `MOVING_LABELS`, without drawing any."""
    if label == "motion":
        return torch.arange(count) % len(MOTIONS)
    scenes = (_scene(index, part) for index in range(count))
    if label == "letter":
        return torch.tensor([scene.letter for scene in scenes])
    if label == "color":
        return torch.tensor([scene.hue for scene in scenes])
    families = [LABELS["face"].index(face.family) for face in FACES]
    return torch.tensor([families[scene.face] for scene in scenes])


@functools.lru_cache(maxsize=8)
def _videos(count: int, part: str, size: int) -> tuple[VideoInMemory, ...]:
    _fonts()  # missing, it is said before anything is drawn
    return tuple(
        VideoInMemory(f"{part} {index}", draw_video(index, part, size)) for index in range(count)
    )


def moving_glyphs(sampling: Sampling, train: int, test: int, label: str = "motion") -> ClipData:
    """Return videos of moving letters in memory; a process draws each set once.

    **Arguments:**

    - `sampling`: what a network is given of them; its `size` is that of the videos, too.
    - `train`, `test`: how many.
    - `label`: one of `MOVING_LABELS`.
    """
    sets = [
        ClipSet.of_videos(
            _videos(count, part, sampling.size), moving_labels(count, part, label), sampling, "none"
        )
        for part, count in (("train", train), ("test", test))
    ]
    name = "moving-glyphs" if label == "motion" else f"moving-glyphs-{label}"
    sources = tuple(str(index) for index in range(train))
    return ClipData(name, sets[0], sets[1], MOVING_LABELS[label], sources=sources)


def unlabelled_glyphs(sampling: Sampling, count: int) -> ClipSet:
    """Return more such videos, to pretrain on; their labels are 0."""
    videos = _videos(count, "unlabelled", sampling.size)
    return ClipSet.of_videos(videos, torch.zeros(count, dtype=torch.long), sampling, "none")


def draw_moving_glyphs(path: str, size: int = 32, columns: int = 8) -> None:
    """Draw a sheet: of each motion a video, a row each."""
    from PIL import Image

    sheet = Image.new("RGB", (columns * size, len(MOTIONS) * size))
    for row in range(len(MOTIONS)):
        video = draw_video(row + 136 * row, "unlabelled", size)
        for column in range(columns):
            frame = video[round(column * (len(video) - 1) / (columns - 1))]
            picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
            sheet.paste(picture, (column * size, row * size))
    sheet.save(path)
