"""Glyphs: letters that look alike are one class, and labels are what is drawn."""

from __future__ import annotations

import functools
import io
import unicodedata

import numpy as np
import pytest
import torch

from vcreg_fx.experiments.images import (
    ALPHABETS,
    GLYPHS,
    UNSEEN,
    DataError,
    Glyphs,
    _datasets,
    _glyphs,
    load_images,
)
from vcreg_fx.experiments.images._glyphs import FACES, LABELS, draw_glyphs, glyphs

KINDS = [(ALPHABETS, range(12)), (UNSEEN, range(2))]


@functools.cache
def shape(letter, face):
    """A letter's ink in its smallest square, at 24×24."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (200, 200))
    ImageDraw.Draw(canvas).text((50, 50), letter, 255, _glyphs._font(face, 80))
    left, top, right, bottom = canvas.getbbox()
    side = max(right - left, bottom - top)
    square = Image.new("L", (side, side))
    square.paste(canvas.crop((left, top, right, bottom)),
                 ((side - right + left) // 2, (side - bottom + top) // 2))  # fmt: skip
    return np.asarray(square.resize((24, 24), Image.Resampling.BOX), np.float64) / 255


def difference(one, other, faces):
    """How much of their ink two letters do not share, in half of the faces at least."""
    pairs = [(shape(one, face), shape(other, face)) for face in faces]
    return np.median([2 * np.abs(a - b).sum() / (a.sum() + b.sum()) for a, b in pairs])


@pytest.mark.parametrize(("alphabets", "faces"), KINDS)
def test_every_face_holds_every_letter(alphabets, faces):
    letters = "".join(alphabets.values())
    assert len(set(letters)) == len(letters)
    for face in faces:
        missing = shape("\u0378", face)  # of no letter, so it is a box
        assert not any(np.array_equal(shape(letter, face), missing) for letter in letters)
    for alphabet, members in alphabets.items():
        word = {"Canadian syllabics": "CANADIAN", "N'Ko": "NKO"}.get(alphabet, alphabet.upper())
        assert all(unicodedata.name(letter).startswith(word) for letter in members)


@pytest.mark.parametrize(("alphabets", "faces"), KINDS)
def test_no_two_letters_look_alike(alphabets, faces):
    letters = "".join(alphabets.values())
    for i, one in enumerate(letters):
        for other in letters[:i]:
            assert difference(one, other, faces) > 0.06, (one, other)
    # What was left out looks like a letter that is there.
    for one, other in ("AΑ", "AА", "OՕ", "ΓГ", "ΠП"):
        assert difference(one, other, range(12)) < 0.01


def test_unseen_letters_look_like_none_that_is_seen():
    seen = {(letter, face): shape(letter, face) for letter in "".join(ALPHABETS.values())
            for face in range(2)}  # fmt: skip
    letters = "".join(UNSEEN.values())
    for one in letters + "ⴹᒪ":
        unlike = []
        for face in range(2):
            ink = shape(one, face)
            unlike.append([2 * np.abs(ink - b).sum() / (ink.sum() + b.sum())
                           for (_, other), b in seen.items() if other == face])  # fmt: skip
        assert (np.median(unlike, axis=0).min() > 0.06) == (one in letters), one


def test_glyphs_are_drawn_by_their_number():
    some, more, other = Glyphs(30, seed=4), Glyphs(10**9, seed=4), Glyphs(30, seed=5)
    image, letter = some[7]
    assert (image.shape, image.dtype, letter) == ((3, 32, 32), torch.float32, 7)
    assert -1 <= float(image.min()) < float(image.max()) <= 1
    assert torch.equal(image, some[7][0]) and torch.equal(image, more[7][0])
    assert not torch.equal(image, other[7][0])
    assert more[10**9 - 1][0].shape == (3, 32, 32)  # endless, if wanted
    assert Glyphs(1, size=48)[0][0].shape == (3, 48, 48)
    with pytest.raises(IndexError):
        some[30]


def test_labels_are_what_is_drawn():
    drawn = Glyphs(600)
    assert drawn.labels("letter").tolist() == [drawn[i][1] for i in range(600)]
    values = {name: drawn.labels(name) for name in LABELS}
    for name, labels in values.items():
        assert labels.bincount().min() > 60, name  # each of them occurs
        assert len(labels.unique()) == len(LABELS[name])
    assert {(face.family, face.slant, face.weight) for face in FACES} == {
        (family, slant, weight)
        for family in LABELS["face"] for slant in LABELS["slant"] for weight in LABELS["weight"]
    }  # fmt: skip
    # Bold letters have more ink, and the ink has its color.
    images = torch.stack([drawn[i][0] for i in range(600)])
    spread = images.mean(dim=1).flatten(1).std(dim=1)
    assert spread[values["weight"] == 1].mean() > spread[values["weight"] == 0].mean()
    flat = images.flatten(2)  # the pixels farthest from gray are ink
    strongest = (flat.amax(dim=1) - flat.amin(dim=1)).topk(20, dim=1).indices
    ink = flat.gather(2, strongest[:, None].expand(-1, 3, -1)).mean(dim=2)
    for hue, channel in ((0, 0), (2, 1), (4, 2)):  # red, green, blue
        assert (ink[values["color"] == hue].argmax(dim=1) == channel).double().mean() > 0.8


def test_glyphs_as_a_data_set(tmp_path):
    data = glyphs(train=130, test=50)
    assert (len(data.train), len(data.test), data.shape) == (130, 50, (3, 32, 32))
    assert list(data.groups) == ["Latin", "Greek", "Cyrillic", "Armenian", "Georgian"]
    assert [data.classes[i] for i in data.groups["Greek"]] == list(ALPHABETS["Greek"])
    assert data.train.labels[:123].tolist() == [*range(122), 0]
    assert bool((data.group_of >= 0).all())
    assert not torch.equal(data.train.pairs[0][0], data.test.pairs[0][0])
    assert torch.equal(data.train.pairs[5][0], Glyphs(130, 0)[5][0])
    weight = glyphs("glyphs-weight", train=130, test=50)
    assert torch.equal(weight.train.pairs.tensors[0], data.train.pairs.tensors[0])
    assert (weight.classes, weight.groups) == (("regular", "bold"), {})
    unseen = glyphs("glyphs-unseen", train=200, test=10)
    assert len(unseen.classes) == 181 and len(unseen.groups) == 7
    kept = glyphs(train=30, test=10, root=tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "glyphs-10-32-1.npy", "glyphs-30-32-0.npy",
    ]  # fmt: skip
    _glyphs._drawn.cache_clear()
    again = glyphs(train=30, test=10, root=tmp_path)
    assert torch.equal(kept.train.pairs.tensors[0], again.train.pairs.tensors[0])


@pytest.mark.parametrize("kept", [b"", b"half", "black", "few"])
def test_damaged_or_old_files_of_glyphs_are_drawn_again(tmp_path, kept):
    path = tmp_path / "glyphs-30-32-0.npy"
    if isinstance(kept, bytes):
        whole = io.BytesIO()
        np.save(whole, np.zeros((30, 32, 32, 3), np.uint8))
        path.write_bytes(whole.getvalue()[: len(kept) * 1000])
    else:
        np.save(path, np.zeros((30 if kept == "black" else 20, 32, 32, 3), np.uint8))
    _glyphs._drawn.cache_clear()
    found = glyphs(train=30, test=10, root=tmp_path)
    assert torch.equal(found.train.pairs[5][0], Glyphs(30, 0)[5][0])
    assert np.array_equal(np.load(path)[5], Glyphs(30, 0).pixels(5))


def test_glyphs_by_their_names(monkeypatch):
    asked = []
    monkeypatch.setattr(_datasets, "glyphs", lambda name, **_: asked.append(name))
    for name in GLYPHS:
        load_images(name)
    assert asked == list(GLYPHS)
    with pytest.raises(DataError, match="Did you mean glyphs-weight"):
        load_images("glyphs-weigth")


def test_fonts_that_a_distribution_has_moved(monkeypatch, tmp_path):
    _glyphs._fonts.cache_clear()
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match="without DejaVuSans.ttf"):
        Glyphs(1)
    _glyphs._fonts.cache_clear()


def test_a_sheet_of_samples(tmp_path):
    from PIL import Image

    draw_glyphs(tmp_path / "sheet.png", columns=3, rows=4)
    assert Image.open(tmp_path / "sheet.png").size == (96, 128)
