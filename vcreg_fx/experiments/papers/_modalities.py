"""Two modalities in place of two views (VICReg's tables 3 and 6), in small.

In place of COCO, images of letters with their names in Unicode; in place of ESC-50, synthesized
sounds as waveforms and as mel spectrograms.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from ..._shared.keeping import frozen
from ...ablation import Trial
from ...evaluation import linear_probe
from ...functional import covariance_loss, invariance_loss, variance_loss
from ..images._glyphs import ALPHABETS, Glyphs
from ..training import TrainSettings, accuracy, fit, predict
from ..training._self_supervised import BARLOW_SLOPE, make_head
from ._experiment import Arm, Experiment, Metric, Paper, Preset
from ._networks import find_network, plain_resnet18
from ._pictures import draw_scatter
from ._study import VALIDATION

Criterion = Callable[[Tensor, Tensor], Tensor]
_RANKS = (1, 5, 10)
_MARGIN = 0.2  # of VSE++ (Faghri et al. 2018)
_TEST, _HELD_OUT = 1, 3  # seeds of what is measured; trainings have even ones


# What is learned from ------------------------------------------------------------------------


@lru_cache(maxsize=4)
def letters(count: int, seed: int, size: int, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Return images of letters, shape (n, 3, size, size), and which letter each is, shape (n,).

    All five alphabets are drawn in twelve faces, fewer in two.
    """
    drawn = Glyphs(count, seed, size, alphabets_of(names))
    pixels = torch.from_numpy(np.stack([drawn.pixels(i) for i in range(count)]))
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1), drawn.labels("letter")


def alphabets_of(names: Sequence[str]) -> Mapping[str, str]:
    """Return alphabets by their names; of all five, the mapping of the room of images."""
    return ALPHABETS if len(names) == len(ALPHABETS) else {n: ALPHABETS[n] for n in names}


def names_of(symbols: str) -> Tensor:
    """Return the names in Unicode as numbers from 1, filled with 0: (symbols, the longest name)."""
    names = [unicodedata.name(symbol).encode("ascii") for symbol in symbols]
    return nn.utils.rnn.pad_sequence(
        [torch.tensor(list(name)) - (ord(" ") - 1) for name in names], batch_first=True
    )


_CHARACTERS = 96  # of ASCII, with the filling
_TIMBRES, _SHAPES, _RATE = 10, 5, 2_000
CLASSES = _TIMBRES * _SHAPES


@lru_cache(maxsize=4)
def sounds(count: int, seed: int, length: int) -> tuple[Tensor, Tensor]:
    """Return sounds of 50 classes as waveforms, shape (n, 1, length), and their classes.

    A class is one of ten timbres (the strengths of eight overtones) and one of five shapes (steady,
    fading, swelling, trembling, repeated). Pitch, phases, strength and noise are drawn.
    """
    rng = np.random.default_rng((seed, 50))
    timbres = np.random.default_rng(0).dirichlet(np.full(8, 0.5), size=_TIMBRES)
    labels = np.arange(count) % CLASSES
    t = np.arange(length) / _RATE
    along = np.linspace(0, 1, length)
    found = np.empty((count, 1, length), np.float32)
    for i, label in enumerate(labels):
        pitch = 30 * 2 ** rng.uniform(0, 2)
        overtones = np.arange(1, 9)[:, None]
        waves = np.sin(2 * np.pi * pitch * overtones * t + rng.uniform(0, 2 * np.pi, (8, 1)))
        wave = (timbres[label % _TIMBRES][:, None] * waves).sum(axis=0)
        turns = 2 * np.pi * rng.uniform(4, 8) * along + rng.uniform(0, 2 * np.pi)
        wave *= (np.ones(length), np.exp(-4 * along), np.exp(4 * (along - 1)),
                 (1 + np.sin(turns)) / 2, np.sin(turns) > 0)[label // _TIMBRES]  # fmt: skip
        noise = rng.normal(scale=rng.uniform(0, 0.3), size=length)
        found[i, 0] = rng.uniform(0.3, 1) * wave + noise
    return torch.from_numpy(found), torch.from_numpy(labels)


def mel_spectrograms(waves: Tensor, bands: int = 32, window: int = 128) -> Tensor:
    """Return mel spectrograms of waveforms, each between 0 and 1 (VICReg, D.2).

    Decibels, of the window's Hann spectra summed in triangles equally wide in mel.

    **Arguments:**

    - `waves`: shape (n, 1, length).

    **Returns:** shape (n, 1, bands, times).
    """
    hann = torch.hann_window(window)
    spectra = torch.stft(waves[:, 0], window, window // 4, window=hann, return_complex=True)
    top = 2595 * math.log10(1 + _RATE / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
    above = torch.linspace(0, _RATE / 2, window // 2 + 1) - corners[:, None]
    widths = corners.diff()[:, None]
    triangles = torch.minimum(above[:-2] / widths[:-1], -above[2:] / widths[1:]).clamp_min(0)
    found = (triangles @ spectra.abs().square() + 1e-6).log()
    low, high = found.amin(dim=(1, 2), keepdim=True), found.amax(dim=(1, 2), keepdim=True)
    return ((found - low) / (high - low)).unsqueeze(1)


# What learns ---------------------------------------------------------------------------------


class Names(nn.Module):
    """A name's characters through an embedding and a GRU, whose last state it returns."""

    def __init__(self, characters: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_CHARACTERS, characters, padding_idx=0)
        self.gru = nn.GRU(characters, width, batch_first=True)

    def forward(self, names: Tensor) -> Tensor:
        """Return shape (n, width). names: (n, characters), as of `names_of`."""
        lengths = (names > 0).sum(dim=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(names), lengths, batch_first=True, enforce_sorted=False
        )
        state: Tensor = self.gru(packed)[1][-1]
        return state


class Branches(nn.Module):
    """Two encoders, each with its expander, if any; called as a module, it is the first."""

    def __init__(self, first: Sequence[nn.Module], second: Sequence[nn.Module]) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(*first), nn.Sequential(*second)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding of the first modality, shape (n, d)."""
        embedding: Tensor = self.first(x)
        return embedding


class Modalities(nn.Module):
    """Pictures and names; waveforms and spectrograms; and classifiers, for what is supervised."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size, joint, expander = preset["size"], preset["joint"], preset["expander"]
        image = find_network(preset.network)((3, size, size), joint)
        self.pictures = Branches([image], [Names(preset["characters"], joint)])
        waves, spectra = preset["waves"], preset["spectra"]
        self.sounds = Branches(
            [plain_resnet18(1, waves), make_head(8 * waves, expander, "inner")],
            [plain_resnet18(2, spectra), make_head(8 * spectra, expander, "inner")],
        )
        letters = sum(map(len, alphabets_of(preset["alphabets"]).values()))
        self.reader = nn.Sequential(self.pictures.first, nn.Linear(joint, letters))
        self.listener = nn.Sequential(self.sounds.second[0], nn.Linear(8 * spectra, CLASSES))


# What it is trained with ---------------------------------------------------------------------


def vse_loss(z: Tensor, other: Tensor, same: Tensor | None = None) -> Tensor:
    """Return VSE++'s loss: the hardest negative of each image and of each caption.

    The mean of max(0, 0.2 − s(z_i, z′_i) + max_j s(z_i, z′_j)), s being the cosine, plus the same
    with the two sides exchanged; its paper sums over the batch. z, other: (n, d), row i of one
    belongs to row i of the other; same: (n, n), what is no negative, by default these pairs alone.
    """
    scores = cosines(z, other)
    positive = scores.diagonal()
    skipped = torch.eye(len(z), dtype=torch.bool, device=z.device) if same is None else same
    negative = scores.masked_fill(skipped, -1.0)
    hardest = negative.amax(dim=1), negative.amax(dim=0)
    return torch.stack([torch.relu(_MARGIN - positive + h).mean() for h in hardest]).sum()


def branched_vicreg(z: Tensor, other: Tensor, own: float = 1.0, invariance: float = 25.0) -> Tensor:
    """Return VICReg's loss with `own` times the regularization of the second branch (section 5.3).

    λ = 25, µ = 25, ν = 1, as its published code has them: the mean square of the differences, and
    the variance term halved.
    """
    terms = [
        weight * (12.5 * variance_loss(branch) + covariance_loss(branch, normalization="vicreg"))
        for branch, weight in ((z, 1.0), (other, own))
    ]
    return invariance * invariance_loss(z, other) / z.shape[1] + terms[0] + terms[1]


def cosines(z: Tensor, other: Tensor) -> Tensor:
    """Return the cosine of every row with every row. z, other: (n, d), (m, d)."""
    return F.normalize(z, dim=1) @ F.normalize(other, dim=1).T


def recalls(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return how often what belongs to a query is among the 1, 5 and 10 of the highest scores.

    Of an image its name; of a name that has images, one of them. scores: (images, names); labels:
    the name of each image.
    """
    right = F.one_hot(labels, scores.shape[1]).bool()
    found = {}
    for kind, score, truth in (("name", scores, right), ("image", scores.T, right.T)):
        asked = truth.any(dim=1)
        ranked = truth.gather(1, score.argsort(dim=1, descending=True))[asked]
        for k in _RANKS:
            found[f"{kind}_{k}"] = float(ranked[:, :k].any(dim=1).double().mean())
    return found


# The task ------------------------------------------------------------------------------------


class ModalitiesTask:
    """Trains the branches of both pairs, and measures retrieval and a probe of spectrograms.

    A trial's ``loss`` is ``"vicreg"``, with ``own`` as in `branched_vicreg`; ``"barlow"``;
    ``"vse"``; or ``"supervised"``: classifiers of spectrograms (table 6), and of letters.
    """

    def __init__(
        self, preset: Preset, data: None, factory: None, folder: Path, tensorboard: bool = False
    ) -> None:
        self.preset, self._folder, self._tensorboard = preset, folder, tensorboard
        self.example = (torch.zeros(2, 3, preset["size"], preset["size"]),)
        self._names = names_of("".join(alphabets_of(preset["alphabets"]).values()))

    def build(self) -> nn.Module:
        """Return the branches; raises `ModuleNotFoundError` without lightly."""
        return Modalities(self.preset)

    def train(self, model: Modalities, trial: Trial) -> None:
        """Train the branches of both pairs, one after the other."""
        preset, loss = self.preset, trial["loss"]
        heard = replace(preset.training, **preset["hearing"])
        waves, classes = sounds(preset["clips"], 2 * trial.seed, preset["length"])
        spectra = mel_spectrograms(waves)
        drawn = preset["size"], tuple(preset["alphabets"])
        pictures = TensorDataset(*letters(preset.train_images or 0, 2 * trial.seed, *drawn))
        if loss == "supervised":
            self._fit(model.reader, pictures, preset.training, None, trial)
            self._fit(model.listener, TensorDataset(spectra, classes), heard, None, trial)
            return
        criterion: Criterion = partial(branched_vicreg, own=trial.params.get("own", 1.0))
        if loss == "barlow":
            from lightly.loss import BarlowTwinsLoss

            criterion = BarlowTwinsLoss(BARLOW_SLOPE)

        def seen(z: Tensor, letter: Tensor) -> Tensor:
            other = model.pictures.second(self._names.to(letter.device)[letter])
            if loss == "vse":  # a letter is no negative of itself
                return vse_loss(z, other, letter[:, None] == letter)
            return criterion(z, other)

        def listened(z: Tensor, clip: Tensor) -> Tensor:
            other = model.sounds.second(spectra[clip.cpu()].to(clip.device))
            return vse_loss(z, other) if loss == "vse" else criterion(z, other)

        self._fit(model.pictures, pictures, preset.training, seen, trial)
        clips = TensorDataset(waves, torch.arange(len(waves)))
        self._fit(model.sounds, clips, heard, listened, trial)

    def _fit(
        self, model: nn.Module, data: TensorDataset, settings: TrainSettings,
        loss: Criterion | None, trial: Trial,
    ) -> None:  # fmt: skip
        part = "sounds" if data.tensors[0].shape[1] == 1 else "pictures"
        log = self._folder / "logs" / f"{trial.id}-{part}" if self._tensorboard else None
        history = fit(model, data, settings, loss=loss, seed=trial.seed, log=log, progress=False)
        self._loss = history[-1]["loss"]

    def evaluate(self, model: Modalities, trial: Trial) -> dict[str, float]:
        """Return recalls, and the accuracy of what tells the classes of spectrograms."""
        preset, seed = self.preset, _HELD_OUT if trial["split"] == VALIDATION else _TEST
        waves, classes = sounds(preset["test_clips"], seed, preset["length"])
        spectra = mel_spectrograms(waves)
        drawn = preset["size"], tuple(preset["alphabets"])
        images, labels = letters(preset["test_images"], seed, *drawn)
        with frozen(model) as device:

            def outputs(network: nn.Module, inputs: Tensor) -> Tensor:
                return torch.cat([network(part.to(device)).cpu() for part in inputs.split(256)])

            seen = outputs(model.pictures, images)
            if trial["loss"] == "supervised":
                scores = model.reader[1](seen.to(device)).cpu()
                sound = accuracy(predict(model.listener, TensorDataset(spectra, classes)), classes)
            else:
                scores = cosines(seen, outputs(model.pictures.second, self._names))
                waves, known = sounds(preset["clips"], 2 * trial.seed, preset["length"])
                heard = [
                    outputs(model.sounds.second[0], found)
                    for found in (mel_spectrograms(waves), spectra)
                ]
                sound = linear_probe(heard[0], known, heard[1], classes).accuracy
        found = recalls(scores, labels)
        mean = sum(found.values()) / len(found)
        return {**found, "retrieval": mean, "sounds": sound, "loss": self._loss}


# Its presets ---------------------------------------------------------------------------------


def presets(scale: str, data: str | None) -> Preset:  # noqa: ARG001 - as all presets
    """Return the preset of a scale.

    ``"paper"`` has the numbers of D.2, and VSE++'s (Faghri et al. 2018) for pictures: 30 epochs of
    Adam, batches of 128, embeddings of 300 and 1,024; its rate falls along a cosine here. COCO and
    ESC-50 are not among the data, and so the network of pictures is a ResNet-32, no ResNet-152.
    """
    if scale == "paper":
        return Preset(
            "letters and sounds", "resnet32",
            TrainSettings(epochs=30, batch_size=128, optimizer="adam", learning_rate=2e-4,
                          weight_decay=0.0, warmup_epochs=0.0),
            train_images=20_000, grid={"own": (0.2, 5.0)}, seeds=3,
            options={
                "size": 32, "joint": 1024, "characters": 300, "expander": (8192, 8192, 8192),
                "waves": 48, "spectra": 64, "clips": 1_600, "test_clips": 400, "length": 16_384,
                "test_images": 5_000, "alphabets": tuple(ALPHABETS),
                "hearing": {"epochs": 100, "optimizer": "adamw", "learning_rate": 5e-4,
                            "weight_decay": 0.01},
            },
        )  # fmt: skip
    quick = scale == "quick"
    return Preset(
        "letters and sounds", "resnet8-half",
        TrainSettings(epochs=2 if quick else 16, batch_size=128, learning_rate=3e-3,
                      weight_decay=1e-4),
        train_images=550 if quick else 2_750, grid={"own": (5.0,) if quick else (0.2, 5.0)},
        seeds=2 if quick else 3,
        options={
            "size": 24, "joint": 64, "characters": 32, "expander": (128, 128), "waves": 6,
            "spectra": 8, "clips": 400 if quick else 1_600, "test_clips": 400, "length": 1_024,
            "test_images": 550 if quick else 1_100, "alphabets": ("Latin", "Greek", "Cyrillic"),
            "hearing": {"epochs": 2 if quick else 10, "batch_size": 64},
        },
    )  # fmt: skip


def arms(preset: Preset) -> list[Arm]:
    """Return the rows of tables 3 and 6, and VICReg with equal coefficients of both branches."""
    return [
        Arm("Barlow Twins", fixed={"loss": "barlow"}),
        Arm("contrastive (VSE++)", fixed={"loss": "vse"}),
        Arm("supervised", fixed={"loss": "supervised"}),
        Arm("VICReg, equal branches", fixed={"loss": "vicreg"}),
        Arm("VICReg", fixed={"loss": "vicreg"}, grid=preset.grid),
    ]


METRICS = (
    *(Metric(f"name_{k}", f"image to name, R@{k}", percent=True) for k in _RANKS),
    *(Metric(f"image_{k}", f"name to image, R@{k}", percent=True) for k in _RANKS),
    Metric("retrieval", "mean of recalls", percent=True),
    Metric("sounds", "sounds, top-1", percent=True),
)

MODALITIES = Experiment(
    name="modalities",
    title="Two modalities",
    summary="images and names, waveforms and spectrograms: two branches of different kinds",
    presets=presets,
    arms=arms,
    task=ModalitiesTask,
    metrics=METRICS,
    criterion="retrieval",
    headline=("retrieval", "sounds"),
    paper=Paper(
        where="VICReg's tables 3 and 6",
        columns=("image to text, R@1", "R@5", "R@10", "text to image, R@1", "R@5", "R@10",
                 "ESC-50, top-1"),
        rows={
            "Contrastive (VSE++)": (30.3, 59.4, 72.4, 41.3, 71.1, 81.2),
            "Barlow Twins": (31.4, 60.4, 75.1, 42.9, 74.0, 83.5, 75.4),
            "VICReg": (33.6, 62.7, 77.9, 45.2, 76.1, 84.2, 78.4),
        },
        unit="% recalled of MS-COCO's 5K test images, and accuracy on ESC-50",
        protocol="ResNet-152 and GRU on COCO, as VSE++; two ResNet-18s on ESC-50 (D.2), a linear "
        "classifier on frozen features. The supervised baseline has 72.7 on ESC-50. Table 3 prints "
        "60,4 for 60.4.",
    ),
    draw=partial(draw_scatter, metrics=("name_1", "image_1", "retrieval", "sounds")),
    own_data=True,
)  # fmt: skip
