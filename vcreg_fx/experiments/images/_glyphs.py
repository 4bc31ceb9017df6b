"""Letters of many alphabets, drawn from the fonts that matplotlib ships: data without a download.

An image is drawn by its number and a seed: the letter, one of twelve faces, position, size, turn,
stroke, the colors of ink and ground, and noise. Beside its letter it has labels that a training on
letters or alphabets never names.
"""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..._shared.files import replacing
from ._image_set import DataError, ImageData, ImageSet

ALPHABETS: Mapping[str, str] = {
    "Latin": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "Greek": "ΓΔΘΛΞΠΣΦΨΩ",
    "Cyrillic": "БДЖЗИЙЛУФЦЧШЩЪЫЬЭЮЯ",
    "Armenian": "ԱԲԳԴԵԶԷԸԹԺԻԽԾԿՀՁՂՃՄՅՆՇՈՉՊՋՌՎՏՐՑՒՔՖ",
    "Georgian": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ",
}
"""The capital letters of five alphabets that all faces hold.

A letter that looks like one of an alphabet before it is left out: A is of the Latin alphabet alone.
"""

UNSEEN: Mapping[str, str] = {
    "Hebrew": "אבגדהוזחטיכלמנסעפצקרשת",
    "Arabic": "باتثجخدذرزسشصضطعغفقكلمنهوي",
    "Tifinagh": "ⴰⴱⴳⴻⴼⴽⵀⵃⵄⵅⵇⵊⵎⵓⵔⵕⵖⵙⵚⵛⵜⵟⵡⵢⵣⵥ",
    "Canadian syllabics": "ᐁᐅᐊᐳᐸᑎᑐᑕᑫᑭᑯᑲᒉᒋᒍᒐᒣᒧᓀᓂᓄᓇᓭᓯᓱᓴᔦᔨᔪᔭ",
    "Ogham": "ᚁᚂᚃᚄᚅᚆᚇᚈᚉᚊᚋᚌᚍᚎᚏᚐᚑᚒᚓᚔ",
    "N'Ko": "ߊߋߌߍߎߏߐߑߒߓߔߕߖߗߘߙߚߛߜߝߞߟߠߡߢߣߤߥߦߧ",
    "Lao": "ກຂຄງຈຊຍດຕຖທນບປຜຝພຟມຢຣລວສຫອຮ",
}
"""Alphabets that two faces hold, sans serif, regular and bold.

A letter that looks like one of `ALPHABETS` is left out: it would not be unseen.
"""

_FILES = {
    ("sans", "upright"): ("Sans", "Sans-Bold"),
    ("sans", "slanted"): ("Sans-Oblique", "Sans-BoldOblique"),
    ("mono", "upright"): ("SansMono", "SansMono-Bold"),
    ("mono", "slanted"): ("SansMono-Oblique", "SansMono-BoldOblique"),
    ("serif", "upright"): ("Serif", "Serif-Bold"),
    ("serif", "slanted"): ("Serif-Italic", "Serif-BoldItalic"),
}
_WEIGHTS = ("regular", "bold")
_HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")


class Face(NamedTuple):
    """A face: its family, slant and weight, and the file of DejaVu that holds it."""

    family: str
    slant: str
    weight: str
    file: str


FACES = tuple(
    Face(family, slant, weight, f"DejaVu{file}.ttf")
    for (family, slant), files in _FILES.items()
    for weight, file in zip(_WEIGHTS, files, strict=True)
)
"""The twelve faces; the first two of them hold the unseen alphabets."""

LABELS: Mapping[str, tuple[str, ...]] = {
    "face": ("sans", "mono", "serif"),
    "slant": ("upright", "slanted"),
    "weight": _WEIGHTS,
    "color": _HUES,
}
"""What an image is labelled with beside its letter. The color is that of the ink."""


class Drawing(NamedTuple):
    """What is drawn: everything that chance decides, but the noise."""

    letter: int
    face: int
    hue: int
    rng: np.random.Generator


class Glyphs(Dataset[tuple[Tensor, int]]):
    """Images of letters, each drawn when it is asked for: as many as wanted.

    Of (image, letter) pairs: images of shape (3, size, size), values from −1 to 1.

    **Arguments:**

    - `count`: how many. Each letter occurs in every run of as many images as there are letters.
    - `seed`: two sets with different seeds share no image.
    - `size`: the side of an image.
    - `alphabets`: `ALPHABETS` or `UNSEEN`.

    **Raises:** `DataError` if matplotlib came without its fonts.
    """

    def __init__(
        self,
        count: int,
        seed: int = 0,
        size: int = 32,
        alphabets: Mapping[str, str] = ALPHABETS,
    ) -> None:
        self._count, self._seed, self._size = count, seed, size
        self.letters = "".join(alphabets.values())
        self._faces = len(FACES) if alphabets is ALPHABETS else 2
        _fonts()

    def __len__(self) -> int:
        """Return the number of images."""
        return self._count

    def _drawing(self, index: int) -> Drawing:
        rng = np.random.default_rng((self._seed, index))
        face, hue = int(rng.integers(self._faces)), int(rng.integers(len(_HUES)))
        return Drawing(index % len(self.letters), face, hue, rng)

    def labels(self, name: str) -> Tensor:
        """Return the label of every image, shape (n,), without drawing any.

        **Arguments:**

        - `name`: ``"letter"``, or one of `LABELS`.
        """
        if name == "letter":
            return torch.arange(self._count) % len(self.letters)
        drawn = (self._drawing(index) for index in range(self._count))
        if name == "color":
            return torch.tensor([drawing.hue for drawing in drawn])
        values = [getattr(face, "family" if name == "face" else name) for face in FACES]
        of_face = [LABELS[name].index(value) for value in values]
        return torch.tensor([of_face[drawing.face] for drawing in drawn])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image and its letter."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        drawing = self._drawing(index)
        pixels = torch.from_numpy(self.pixels(index))
        return pixels.permute(2, 0, 1).float() / 127.5 - 1, drawing.letter

    def pixels(self, index: int) -> np.ndarray:
        """Return an image as bytes, shape (size, size, 3)."""
        letter, face, hue, rng = self._drawing(index)
        mask = _mask(self.letters[letter], face, self._size, rng)[:, :, None]
        ink, ground = _colors(hue, rng)
        image = ground + (ink - ground) * mask
        image += rng.normal(scale=rng.uniform(0, 0.1), size=image.shape)
        pixels: np.ndarray = (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)
        return pixels


def _mask(letter: str, face: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return how much ink is where, from 0 to 1: drawn at twice the size, turned, moved, halved."""
    from PIL import Image, ImageDraw

    side = 2 * size
    font = _font(face, round(side * rng.uniform(0.5, 0.8)))
    stroke = int(rng.integers(2))
    left, top, right, bottom = font.getbbox(letter, stroke_width=stroke)
    place = (side - left - right) / 2, (side - top - bottom) / 2
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text(place, letter, fill=255, font=font, stroke_width=stroke)
    turn = math.radians(rng.uniform(-15, 15))
    cos, sin = math.cos(turn), math.sin(turn)
    x, y = size / 2 + rng.uniform(-0.1, 0.1, 2) * size  # where the middle comes to lie
    matrix = (
        2 * cos, 2 * sin, size - 2 * (cos * x + sin * y),
        -2 * sin, 2 * cos, size - 2 * (cos * y - sin * x),
    )  # fmt: skip
    turned = canvas.transform(
        (size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return np.asarray(turned, np.float64) / 255


def _colors(hue: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return ink of about that hue, and a pale ground that is much darker or lighter."""
    exact = (hue + rng.uniform(-0.3, 0.3)) / len(_HUES)
    light = bool(rng.integers(2))
    value, ground = (rng.uniform(0.8, 1), rng.uniform(0, 0.3)) if light else (
        rng.uniform(0.35, 0.55), rng.uniform(0.85, 1))  # fmt: skip
    ink = colorsys.hsv_to_rgb(exact % 1, rng.uniform(0.7, 1), value)
    return np.array(ink), np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, 0.3), ground))


@functools.cache
def _fonts() -> Path:
    """Return the folder of matplotlib's fonts."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    if missing := [face.file for face in FACES if not (folder / face.file).exists()]:
        raise DataError(
            f"matplotlib came without {', '.join(missing)}, which belong into {folder}. Its "
            "package from PyPI has them; where a distribution has moved them, install its DejaVu "
            "fonts."
        )
    return folder


@functools.lru_cache(maxsize=1000)
def _font(face: int, size: int) -> Any:
    from PIL import ImageFont

    path = _fonts() / FACES[face].file
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


# As a data set --------------------------------------------------------------------------------

TRAIN, TEST = 20_000, 5_000


def glyphs(
    name: str = "glyphs",
    train: int = TRAIN,
    test: int = TEST,
    size: int = 32,
    seed: int = 0,
    root: str | Path | None = None,
) -> ImageData:
    """Return images of letters in memory; a process draws each set once.

    **Arguments:**

    - `name`: ``"glyphs"``, with letters as classes and alphabets as superclasses;
      ``"glyphs-unseen"``, the same of the alphabets in `UNSEEN`; ``"glyphs-face"``,
      ``"glyphs-slant"``, ``"glyphs-weight"`` or ``"glyphs-color"``, the images of ``"glyphs"`` with
      these labels.
    - `train`, `test`: how many images.
    - `size`: their side.
    - `seed`: decides on all of them.
    - `root`: a folder in which to keep what has been drawn, and to look for it.
    """
    label = name.removeprefix("glyphs").removeprefix("-") or "letter"
    unseen = label == "unseen"
    alphabets = UNSEEN if unseen else ALPHABETS
    sets, folder = [], None if root is None else Path(root)
    for count, part in ((train, 2 * seed), (test, 2 * seed + 1)):
        drawn = Glyphs(count, part, size, alphabets)
        labels = drawn.labels("letter" if unseen else label)
        sets.append(ImageSet.of(_drawn(count, part, size, unseen, root), labels))
    if label in LABELS:
        return ImageData(name, sets[0], sets[1], LABELS[label], root=folder)
    groups, start = {}, 0
    for alphabet, letters in alphabets.items():
        groups[alphabet] = tuple(range(start, start + len(letters)))
        start += len(letters)
    return ImageData(name, sets[0], sets[1], tuple("".join(alphabets.values())), groups, folder)


@functools.lru_cache(maxsize=8)
def _drawn(count: int, seed: int, size: int, unseen: bool, root: str | Path | None) -> Tensor:
    """Return all images of a set, shape (n, 3, size, size)."""
    kind = "glyphs-unseen" if unseen else "glyphs"
    kept = None if root is None else Path(root) / f"{kind}-{count}-{size}-{seed}.npy"
    images = Glyphs(count, seed, size, UNSEEN if unseen else ALPHABETS)
    pixels = None if kept is None else _kept(kept, images)
    if pixels is None:
        pixels = np.stack([images.pixels(index) for index in range(count)])
        if kept is not None:
            with replacing(kept) as new, new.open("wb") as file:
                np.save(file, pixels)
    found = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    return found.div_(127.5).sub_(1).contiguous()


def _kept(path: Path, images: Glyphs) -> np.ndarray | None:
    """Return the pixels in a file; None where there are none, or those of other fonts or letters.

    A few are drawn again and compared; a file that cannot be read is drawn again, too.
    """
    try:
        pixels: np.ndarray = np.load(path)
    except (OSError, EOFError, ValueError):
        return None
    some = {*range(0, len(images), max(1, len(images) // 20)), len(images) - 1}
    if len(pixels) != len(images):
        return None
    return pixels if all(np.array_equal(pixels[i], images.pixels(i)) for i in some) else None


def draw_glyphs(path: str | Path, columns: int = 20, rows: int = 8, size: int = 32) -> None:
    """Draw a sheet of samples; its two last rows are of the unseen alphabets."""
    from PIL import Image

    sheet = Image.new("RGB", (columns * size, rows * size))
    for row in range(rows):
        images = Glyphs(10_000, 3, size, ALPHABETS if row < rows - 2 else UNSEEN)
        for column in range(columns):
            number = 37 * (row * columns + column)  # so that alphabets are mixed
            place = column * size, row * size
            sheet.paste(Image.fromarray(images.pixels(number % 10_000)), place)
    sheet.save(path)
