"""Videos: files and what is sampled of them, HMDB51's folders, moving letters, their networks."""

from __future__ import annotations

import copy
import itertools
import json
import math
import shutil
import sys
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import vcreg_fx
from vcreg_fx.ablation import Trial
from vcreg_fx.experiments.images import DataError, load_images
from vcreg_fx.experiments.papers import EXPERIMENTS, ReproductionError, render, reproduce
from vcreg_fx.experiments.papers._networks import find_network
from vcreg_fx.experiments.papers._video import NoisyVideoTask, VideoTask, load_videos
from vcreg_fx.experiments.training import TrainSettings, fit
from vcreg_fx.experiments.training._settings import make_mixing, make_optimizer, make_schedule
from vcreg_fx.experiments.video import (
    MOTIONS,
    MOVING_LABELS,
    VIDEO_NETWORKS,
    ClipData,
    ClipSet,
    MaskedPretraining,
    Sampling,
    VideoFile,
    VideoInMemory,
    VideoMAEAugmentation,
    Views,
    average_logits,
    build_video_network,
    convert_checkpoint,
    crops_of,
    load_clips,
    moving_glyphs,
    pretrained_weights,
    random_clip,
    scale_head,
    set_drop_path,
    stream,
    uniform_clips,
    unlabelled_glyphs,
)
from vcreg_fx.experiments.video._networks import VideoNetwork, _config, _sizes

av = pytest.importorskip("av")
pytest.importorskip("transformers")

TINY = Sampling(frames=4, stride=2, size=16)
CODECS = {".avi": "mpeg4", ".mp4": "libx264"}  # that of HMDB51's files, and that of most others


def write_video(path, count, size=(48, 32), color=False):
    """Write a video whose n-th frame has the gray 8 n, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        out = container.add_stream(CODECS[path.suffix], rate=25)
        out.width, out.height = size
        out.pix_fmt = "yuv420p"
        for number in range(count):
            pixels = np.full((size[1], size[0], 3), min(8 * number, 255), np.uint8)
            if color:
                pixels[:, size[0] // 2 :, 0] = 255
            container.mux(out.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(out.encode())
    return path


def grays(clip):
    """Return the number of each frame of a clip of such a video."""
    return (clip.float().mean(dim=(-3, -2, -1)) / 8).round().int().tolist()


def trial(split="test", seed=0, **params):
    return Trial("baseline", None, seed, {}, {"split": split, **params})


# Files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", CODECS)
def test_frames_of_files(tmp_path, ending):
    video = VideoFile.look(write_video(tmp_path / "walk" / f"one{ending}", 12))
    assert (video.count, video.name) == (12, f"walk/one{ending}")
    found = torch.stack(list(video.frames([0, 3, 3, 11])))
    assert (found.shape, found.dtype) == ((4, 3, 32, 48), torch.uint8)
    assert grays(found) == [0, 3, 3, 11]


def test_colors_and_sides_are_as_in_the_file(tmp_path):
    video = VideoFile.look(write_video(tmp_path / "one.mp4", 2, color=True))
    (frame,) = video.frames([0])
    assert frame[0, :, 40:].float().mean() > 200 and frame[0, :, :8].float().mean() < 40
    assert frame[1:].float().mean() < 60


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "sound"])
def test_broken_files_are_named(tmp_path, kind):
    path = tmp_path / "walk" / "one.mp4"
    write_video(path, 12)
    if kind == "sound":
        with av.open(str(path), "w") as container:
            sound = container.add_stream("aac", rate=8000)
            samples = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate = 8000
            container.mux(sound.encode(frame))
            container.mux(sound.encode())
    else:
        whole = path.read_bytes()
        cut = {"text": b"no video", "empty": b"", "truncated": whole[: len(whole) // 2]}
        path.write_bytes(cut[kind])
    with pytest.raises(DataError, match=r"walk/one.mp4 is broken: "):
        VideoFile.look(path)


def test_a_file_that_breaks_off_is_refused(tmp_path):
    """A few frames that a codec keeps to itself are replaced by the last; half a file is not."""
    path = write_video(tmp_path / "one.avi", 20)
    assert grays(torch.stack(list(VideoFile(path, 21).frames([19, 20])))) == [19, 19]
    with pytest.raises(DataError, match="20 of its 40 frames"):
        list(VideoFile(path, 40).frames([1, 39]))


@pytest.mark.parametrize("ending", CODECS)
def test_a_file_that_breaks_in_the_middle_is_found_where_it_is_decoded_whole(tmp_path, ending):
    path = write_video(tmp_path / f"one{ending}", 60)
    assert VideoFile.look(path, whole=True).count == 60
    found = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for place, size in places[20:]:
        found[place + 4 : place + size] = bytes(size - 4)
    path.write_bytes(found)
    assert VideoFile.look(path).count == 60
    with pytest.raises(DataError, match="is broken"):
        VideoFile.look(path, whole=True)


def test_a_file_that_is_cut_off_is_refused_by_its_header(tmp_path):
    path = write_video(tmp_path / "one.avi", 40)
    with av.open(str(path)) as container:
        places = [p.pos for p in container.demux(video=0) if p.size]
    path.write_bytes(path.read_bytes()[: places[19]])
    with pytest.raises(DataError, match="19 of its 40 frames are there"):
        VideoFile.look(path)


# Which frames -----------------------------------------------------------------------------------


def test_random_clips_have_a_stride():
    torch.manual_seed(0)
    found = [random_clip(20, 4, 3) for _ in range(200)]
    assert all(clip == list(range(clip[0], clip[0] + 12, 3)) for clip in found)
    assert {clip[0] for clip in found} == set(range(9))
    assert random_clip(7, 4, 2) == [0, 2, 4, 6]
    assert random_clip(5, 4, 2) == [0, 2, 4, 4]
    assert random_clip(1, 4, 2) == [0] * 4


@pytest.mark.parametrize(
    ("count", "clips", "expected"),
    [
        (30, 1, [[10, 12, 14, 16]]),
        (30, 3, [[0, 2, 4, 6], [10, 12, 14, 16], [22, 24, 26, 28]]),
        (9, 2, [[0, 2, 4, 6], [2, 4, 6, 8]]),
        (4, 2, [[0, 2, 2, 2]] * 2),  # shorter than a clip
        (1, 2, [[0, 0, 0, 0]] * 2),
    ],
)
def test_uniform_clips(count, clips, expected):
    assert uniform_clips(count, 4, 2, clips) == expected


class Watched(VideoInMemory):
    """Remembers how many of its frames were alive at once."""

    def frames(self, numbers):
        for number in numbers:
            frame = self.pixels[number].clone()
            alive.add(frame)
            most.append(len(alive))
            yield frame


alive, most = weakref.WeakSet(), []


@pytest.mark.parametrize("clips", [1, 10, 100])
def test_memory_does_not_grow_with_clips(clips):
    """However many clips, frames of one or two are alive; each frame is decoded once."""
    pixels = torch.arange(250, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    video, wanted = Watched("one", pixels), uniform_clips(250, 4, 2, clips)
    alive.clear(), most.clear()
    for clip, numbers in zip(stream(video, wanted), wanted, strict=True):
        assert clip[:, 0, 0, 0].tolist() == numbers
        del clip
    assert max(most) <= 2 * 4 + 1
    assert len(most) == len({number for numbers in wanted for number in numbers})


@pytest.mark.parametrize("tall", [False, True])
def test_three_crops_reach_from_end_to_end(tall):
    clip = torch.arange(40, dtype=torch.uint8).expand(2, 3, 16, 40)
    crops = crops_of(clip.transpose(-1, -2) if tall else clip, 16, 3)
    assert crops.shape == (3, 2, 3, 16, 16)
    grays = (crops[:, 0, 0] * 0.229 + 0.485) * 255
    grays = grays.transpose(-1, -2) if tall else grays
    assert [row.round().int().tolist() for row in grays[:, 5]] == [
        list(range(16)), list(range(12, 28)), list(range(24, 40)),
    ]  # fmt: skip
    assert torch.equal(crops_of(clip, 16, 1)[0], crops_of(clip, 16, 3)[1])
    assert crops_of(clip, 8, 3).shape == (3, 2, 3, 8, 8)  # the shorter side is brought to it


class Corner(nn.Module):
    """Logits are the first frame's mean color, and the number of clips in a pass is noted."""

    def __init__(self):
        super().__init__()
        self.passes = []

    def forward(self, clips):
        self.passes.append(len(clips))
        return clips[:, 0].mean(dim=(-1, -2))


@pytest.mark.parametrize("workers", [0, 2])
def test_logits_are_averaged_over_clips_and_crops(workers):
    """Of videos shorter than a clip, too."""
    generator = torch.Generator().manual_seed(0)
    videos = [
        VideoInMemory(str(n), torch.randint(256, (n, 3, 16, 24), generator=generator).byte())
        for n in (3, 30, 1, 9, 17)
    ]
    found = ClipSet.of_videos(videos, torch.arange(5), TINY, "none")
    model = Corner().train()
    logits = average_logits(model, found, 10, 3, batch_size=12, workers=workers)
    assert model.training and max(model.passes) == 12 and sum(model.passes) == 5 * 30
    for video, mean in zip(videos, logits, strict=True):
        clips = [
            video.pixels[numbers] for numbers in uniform_clips(video.count, 4, 2, 10)
        ]  # fmt: skip
        each = torch.cat([Corner()(crops_of(clip, 16, 3)) for clip in clips])
        assert len(each) == 30
        assert torch.allclose(mean, each.mean(dim=0), atol=1e-5)


def test_noise_belongs_to_a_clip():
    """It is the same whenever the clip is seen, for every crop and augmentation, and has its σ."""
    data = moving_glyphs(Sampling(8, 1, 24), 40, 8)
    clean, noisy = data.train, data.train.with_noise(1.5)
    views = [list(Views(part.videos, part.sampling, 2, 1)) for part in (clean, noisy, noisy)]
    found = [torch.stack([crops for _, crops in part]) for part in views]
    assert torch.equal(found[1], found[2])
    added = found[1] - found[0]
    assert float(added.std()) == pytest.approx(1.5, rel=0.01)
    assert not torch.equal(added[0], added[1]) and not torch.equal(added[0], added[2])
    trained = []
    for seed in range(3):
        clips = []
        for part in (clean, noisy):
            torch.manual_seed(seed)
            clips.append(part.training[3][0])
        trained.append(clips[1] - clips[0])
    assert torch.allclose(trained[0], trained[1], atol=1e-5)
    assert torch.allclose(trained[0], trained[2], atol=1e-5)


def test_augmentation_changes_all_frames_alike():
    """Frames of a still video stay equal; another time it is changed in another way."""
    picture = torch.randint(256, (3, 40, 60), generator=torch.Generator().manual_seed(0)).byte()
    change, found = VideoMAEAugmentation(16), []
    for seed in range(12):
        torch.manual_seed(seed)
        clip = change(picture.expand(4, 3, 40, 60))
        assert clip.shape == (4, 3, 16, 16) and clip.dtype == torch.float32
        assert all(torch.equal(frame, clip[0]) for frame in clip)
        torch.manual_seed(seed)
        assert torch.equal(clip, change(picture.expand(4, 3, 40, 60)))
        found.append(clip)
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(found))


# HMDB51, and folders of clips -------------------------------------------------------------------

CLASSES = ("brush_hair", "walk")


def hmdb51(folder, sources=6, converted=False):
    """A small HMDB51 as it is published: of each source two videos, and three splits of sources."""
    lines = {}
    for name in CLASSES:
        for source in range(sources):
            for part in range(2):
                stem = f"Film_{source}_a_{name}_u_nm_np1_ba_goo_{part}"
                ending = ".mp4" if converted and source % 2 else ".avi"
                write_video(folder / "videos" / name / f"{stem}{ending}", 4 + 5 * source)
                for split in (1, 2, 3):
                    role = 2 if source == split - 1 else 0 if source == 5 else 1
                    lines.setdefault((name, split), []).append(f"{stem}.avi {role} \n")
    for (name, split), text in lines.items():
        path = folder / "testTrainMulti_7030_splits" / f"{name}_test_split{split}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(text))
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return hmdb51(tmp_path_factory.mktemp("hmdb51"), converted=True)


def test_hmdb51_as_it_is_published(published):
    data = load_clips("hmdb51", published, TINY)
    assert (data.name, data.classes, len(data.splits)) == ("HMDB51", CLASSES, 3)
    for number in range(3):
        split = data.split(number)
        names = [[video.path.stem for video in part.videos] for part in (split.train, split.test)]
        assert [len(part) for part in names] == [16, 4]  # source 5 is not used
        assert all(f"Film_{number}_" in name for name in names[1])
        assert not any(f"Film_{number}_" in name or "Film_5" in name for name in names[0])
        for part in (split.train, split.test):
            labels = [CLASSES[label] for label in part.labels]
            assert labels == [video.path.parent.name for video in part.videos]
    assert data.split(3) is data.split(0)
    assert {video.path.suffix for video in data.train.videos} == {".avi", ".mp4"}
    clip, label = data.test.pairs[0]
    assert clip.shape == (4, 3, 16, 16) and label == 0


def test_the_search_holds_out_whole_sources_that_no_split_tests(published):
    """Sources 0, 1 and 2 are tested by a split; of 3 and 4, one is held out of each class."""
    for number in range(3):
        data = load_clips("hmdb51", published, TINY).split(number)
        kept, held = data.hold_out(0.1)
        names = [data.train.videos[i].path.name for i in range(len(data.train))]
        sources = [{names[i][:6] for i in part.tolist()} for part in (kept, held)]
        assert not sources[0] & sources[1]  # films are in both classes
        assert len(held) == 4 and len(kept) == 12
        assert data.train.labels[held].bincount().tolist() == [2, 2]
        assert sources[1] < {"Film_3", "Film_4"}
        assert torch.equal(held, data.hold_out(0.1)[1])
    assert data.sources[0] == "Film_0_a"


def test_sources_are_held_out_of_all_classes_alike():
    """Each class gives about its share, and keeps a video at least, whatever films it is from."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 6
    films = torch.randint(60, (300,), generator=generator).tolist()
    sources = tuple(str(film) for film in films)
    labels, sources = torch.cat([labels, torch.tensor([6, 6])]), (*sources, "0", "1")
    videos = [VideoInMemory(str(i), torch.zeros(1, 3, 2, 2).byte()) for i in range(302)]
    found = ClipSet.of_videos(videos, labels, TINY, "none")
    data = ClipData("films", found, found, tuple("abcdefg"), sources=sources)
    for seed, share in itertools.product(range(10), (0.1, 0.3)):
        kept, held = data.hold_out(share, seed)
        assert not {sources[i] for i in kept.tolist()} & {sources[i] for i in held.tolist()}
        assert len(kept) + len(held) == 302
        counts = labels[held].bincount(minlength=7)
        assert all(50 * share <= count <= 50 * share + 6 for count in counts[:6].tolist())
        assert counts[6] == 1 and labels[kept].bincount().min() >= 1
    assert len({tuple(data.hold_out(0.1, seed)[1].tolist()) for seed in range(10)}) == 10


def test_a_second_copy_of_the_split_files_is_refused(tmp_path):
    hmdb51(tmp_path, sources=4)
    shutil.copytree(tmp_path / "testTrainMulti_7030_splits", tmp_path / "copy")
    with pytest.raises(DataError, match=r"copy/brush_hair_test_split1.txt and .* are of one class"):
        load_clips("hmdb51", tmp_path, TINY)


def test_where_every_source_is_tested_nothing_can_be_held_out(tmp_path):
    data = load_clips("hmdb51", hmdb51(tmp_path, sources=3), TINY)
    with pytest.raises(DataError, match="can be held out"):
        data.hold_out(0.1)


def damage(path):
    path.write_bytes(path.read_bytes()[:200])
    return path


def test_broken_videos_are_refused_or_skipped_by_name(tmp_path):
    hmdb51(tmp_path, sources=4)
    path = damage(next(tmp_path.rglob("Film_1*_walk_*_1.avi")))
    with pytest.raises(DataError, match=rf"{path.name} is broken.*broken=skip"):
        load_clips("hmdb51", tmp_path, TINY)
    with pytest.warns(UserWarning, match=rf"1 of 16 videos are left out: .*{path.name}"):
        data = load_clips("hmdb51", tmp_path, TINY, broken="skip")
    assert [len(data.split(i).test) for i in range(3)] == [4, 3, 4]
    assert [len(data.split(i).train) for i in range(3)] == [11, 12, 11]
    assert all(len(split.sources) == len(split.held) == len(split.train) for split in data.splits)
    with pytest.raises(DataError, match="broken='mend' must be one of refuse, skip"):
        load_clips("hmdb51", tmp_path, TINY, broken="mend")
    path.unlink()
    with pytest.raises(DataError, match=rf"lacks 1 of the 16 videos.*{path.stem}"):
        load_clips("hmdb51", tmp_path, TINY)


def folder_of_clips(folder, test="test", each=6):
    for part, count in (("train", each), (test, 2)):
        for name in CLASSES:
            for i in range(count):
                below = f"film{i // 2}/{i}.mp4" if name == "walk" else f"{i}.avi"
                write_video(folder / part / name / below, 6 + i)
    return folder


@pytest.mark.parametrize("test", ["test", "val"])
def test_any_folder_of_clips(tmp_path, test):
    data = load_clips("clips", folder_of_clips(tmp_path / "mine", test), TINY)
    assert (data.name, data.classes, data.shape) == ("mine", CLASSES, (4, 3, 16, 16))
    assert [len(part) for part in (data.train, data.test)] == [12, 4]
    walks = {s for s, label in zip(data.sources, data.train.labels, strict=True) if label == 1}
    assert walks == {"film0", "film1", "film2"}
    kept, held = data.hold_out(0.3)
    assert data.train.labels[held].bincount().tolist() == [2, 2]
    assert not {data.sources[i] for i in kept} & {data.sources[i] for i in held}
    damage(tmp_path / "mine" / "train" / "brush_hair" / "3.avi")
    with pytest.raises(DataError, match=r"brush_hair/3.avi is broken"):
        load_clips("clips", tmp_path / "mine", TINY)
    with pytest.warns(UserWarning, match=r"brush_hair/3.avi"):
        data = load_clips("clips", tmp_path / "mine", TINY, broken="skip")
    assert len(data.train) == len(data.sources) == 11
    below = tmp_path / "mine" / "train" / "brush_hair" / "film1"
    write_video(below / "more" / "9.avi", 5)
    with pytest.warns(UserWarning, match=r"brush_hair/3.avi"):
        data = load_clips("clips", tmp_path / "mine", TINY, broken="skip")
    assert data.sources.count("film1") == 3  # of two classes


@pytest.mark.parametrize(
    ("name", "root", "message"),
    [
        ("hmdb51", None, "--data-root"),
        ("hmdb51", "nowhere", "nowhere is no folder"),
        ("hmdb51", ".", "no split files"),
        ("clips", None, "--data-root"),
        ("clips", ".", "train holds no videos"),
        ("moving-glyphs", ".", "take no --data-root"),
    ],
)
def test_missing_videos_say_where_they_belong(tmp_path, monkeypatch, name, root, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        load_clips(name, root, TINY)


def test_a_class_that_is_only_tested_is_refused(tmp_path):
    folder_of_clips(tmp_path)
    write_video(tmp_path / "test" / "run" / "0.avi", 5)
    with pytest.raises(DataError, match="class run"):
        load_clips("clips", tmp_path, TINY)
    with pytest.raises(DataError, match="augment='torchvision'"):
        load_clips("clips", tmp_path, TINY, augment="torchvision")


def test_without_pyav_its_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match="av"):
        load_clips("hmdb51", tmp_path, TINY)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="transformers"):
        find_network("videomae-tiny")


# Moving letters ---------------------------------------------------------------------------------


def test_moving_glyphs_have_their_labels():
    data = moving_glyphs(Sampling(8, 1, 24), 400, 16)
    assert data.shape == (8, 3, 24, 24) and data.classes == MOTIONS and len(MOTIONS) == 8
    assert data.train.labels.bincount().tolist() == [50] * 8
    counts = [video.count for video in data.train.videos]
    assert (min(counts), max(counts)) == (8, 16)
    for label, names in MOVING_LABELS.items():
        other = moving_glyphs(Sampling(8, 1, 24), 400, 16, label)
        assert other.train.videos[7].pixels is data.train.videos[7].pixels
        found = other.train.labels.bincount(minlength=len(names))
        assert len(found) == len(names) and int(found.min()) > 0
    unlabelled = unlabelled_glyphs(Sampling(8, 1, 24), 16)
    assert not torch.equal(unlabelled.videos[0].pixels[:8], data.train.videos[0].pixels[:8])


def ink(video):
    """Return where the ink of each frame is, as (mass, x, y)."""
    frames = video.pixels.float()
    ground = frames.flatten(2).median(dim=-1).values[:, :, None, None]
    weight = (frames - ground).abs().sum(dim=1)
    weight = torch.where(weight > 120, weight, 0.0)
    x, y = torch.arange(48.0), torch.arange(48.0)
    mass = weight.sum(dim=(1, 2))
    return mass, (weight.sum(dim=1) @ x) / mass, (weight.sum(dim=2) @ y) / mass


def test_letters_move_as_they_are_labelled():
    data = moving_glyphs(Sampling(8, 1, 48), 400, 8)
    moved = {motion: [] for motion in MOTIONS}
    for video, label in zip(data.train.videos, data.train.labels, strict=True):
        mass, x, y = ink(video)
        change = float((mass[-1] / mass[0]).log()), float(x[-1] - x[0]), float(y[-1] - y[0])
        moved[MOTIONS[label]].append(change)
    mean = {motion: np.median(found, axis=0) for motion, found in moved.items()}
    assert mean["left"][1] < -9 and mean["right"][1] > 9
    assert mean["up"][2] < -9 and mean["down"][2] > 9
    assert mean["growing"][0] > 0.6 and mean["shrinking"][0] < -0.6
    for motion in ("turning left", "turning right"):
        assert max(abs(mean[motion][1:])) < 4 and abs(mean[motion][0]) < 0.3


def test_turning_left_and_right_are_opposite():
    """The last frame of a letter that turns, turned back, looks more like the first one."""
    from torchvision.transforms.v2 import functional

    data, better = moving_glyphs(Sampling(8, 1, 48), 400, 8), {}
    for motion in ("turning left", "turning right"):
        found = []
        for index in (data.train.labels == MOTIONS.index(motion)).nonzero().flatten().tolist():
            frames = data.train.videos[index].pixels.float()[[0, -1]]
            ground = frames.flatten(2).median(dim=-1).values[:, :, None, None]
            first, last = (frames - ground).abs().sum(dim=1)
            errors = [
                float((functional.rotate(last[None], angle)[0] - first).square().mean())
                for angle in (-75.0, 75.0)  # counter-clockwise
            ]
            found.append((errors[1] - errors[0]) / sum(errors))
        better[motion] = float(np.mean(found))
    assert better["turning left"] > 0.05 and better["turning right"] < -0.05


# Networks ---------------------------------------------------------------------------------------


@pytest.fixture
def small_vivit(monkeypatch):
    """A small network in the place of ViViT-B."""
    small = VideoNetwork("vivit", _sizes(32, 3, 2))
    changed = {**VIDEO_NETWORKS, "vivit-base": small}
    monkeypatch.setattr("vcreg_fx.experiments.video._networks.VIDEO_NETWORKS", changed)


@pytest.mark.parametrize("name", ["videomae-tiny", "videomae-small", "vivit-base"])
def test_vcreg_acts_before_the_classifier(small_vivit, name):
    shape = (4, 3, 16, 16)
    model = find_network(name)(shape, 5)
    assert type(model.network).__name__ in {
        "VideoMAEForVideoClassification", "VivitForVideoClassification",
    }  # fmt: skip
    vcreg_fx.insert(model, "head", example_inputs=(torch.zeros(2, *shape),))
    (site,) = vcreg_fx.sites(model)
    assert site.name == "network.classifier:input"
    assert model(torch.zeros(3, *shape)).shape == (3, 5)


def test_sizes_are_the_published_ones():
    """ViT-S and ViT-B, patches of 16 × 16 in two frames (VideoMAE's modeling_finetune.py)."""
    for name, width, heads in (("small", 384, 6), ("base", 768, 12)):
        for prefix in ("videomae", "videomaev2"):
            config = _config(f"{prefix}-{name}", (16, 3, 224, 224))
            found = (config.hidden_size, config.num_attention_heads, config.num_hidden_layers)
            assert found == (width, heads, 12) and config.intermediate_size == 4 * width
            assert (config.patch_size, config.tubelet_size, config.layer_norm_eps) == (16, 2, 1e-6)
            decoder = (config.decoder_hidden_size, config.decoder_intermediate_size)
            assert decoder == (width // 2, 2 * width) and config.decoder_num_hidden_layers == 4
    config = _config("vivit-base", (32, 3, 224, 224))
    assert (config.num_frames, config.tubelet_size) == (32, [2, 16, 16])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="even number of frames"):
        build_video_network("videomae-tiny", (5, 3, 16, 16), 3)
    with pytest.raises(DataError, match="size that is a multiple of 16"):
        build_video_network("videomae-small", (4, 3, 120, 120), 3)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.randn(width)) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        n, length, _ = x.shape
        found = F.linear(x, self.qkv.weight, bias).reshape(n, length, 3, self.heads, -1)
        q, k, v = found.permute(2, 0, 3, 1, 4)
        attention = (q / math.sqrt(q.shape[-1]) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(n, length, -1))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = Attention(width, heads)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Published(nn.Module):
    """The network of VideoMAE's and VideoMAEv2's code, with its names.

    github.com/MCG-NJU/VideoMAE, modeling_finetune.py at cece3888324f509bcf298469ec5919cfc68987d7.
    """

    def __init__(self, width=64, layers=4, heads=4, patch=4, classes=7):
        super().__init__()
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv3d(3, width, (2, patch, patch), (2, patch, patch))}
        )
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, clips):  # of shape (n, 3, frames, height, width)
        x = self.patch_embed["proj"](clips).flatten(2).transpose(1, 2)
        place = torch.arange(x.shape[1])[:, None]
        angle = place / 10000 ** (2 * (torch.arange(x.shape[2]) // 2) / x.shape[2])
        angle[:, 0::2], angle[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
        x = x + angle
        for block in self.blocks:
            x = block(x)
        return self.head(self.fc_norm(x.mean(dim=1)))


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "backbone.", "encoder."])
def test_published_checkpoints_give_the_same_logits(prefix):
    torch.manual_seed(0)
    published, clips = Published(), torch.randn(2, 8, 3, 16, 16)
    model = build_video_network("videomae-tiny", (8, 3, 16, 16), 7).eval()
    weights = {f"{prefix}{key}": value for key, value in published.state_dict().items()}
    found = {f"network.{key}": value for key, value in convert_checkpoint(weights).items()}
    assert set(found) == set(model.state_dict())
    model.load_state_dict(found)
    with torch.no_grad():
        assert torch.allclose(model(clips), published(clips.transpose(1, 2)), atol=1e-5)


def test_checkpoints_of_files_and_folders(tmp_path):
    """As published: of VideoMAEv2's distilled networks, and of VideoMAE's pretraining."""
    torch.manual_seed(0)
    published, shape = Published(), (8, 3, 16, 16)
    expected = {f"network.{k}": v for k, v in convert_checkpoint(published.state_dict()).items()}
    whole = tmp_path / "vit_s_k710_dl_from_giant.pth"
    torch.save({"module": published.state_dict()}, whole)
    for path in (whole, tmp_path):
        found = pretrained_weights("videomae-tiny", path, shape, 3)
        assert set(found) == {k for k in expected if ".classifier." not in k}
        assert all(torch.equal(found[key], expected[key]) for key in found)
    pretraining = {
        f"encoder.{key}": value for key, value in published.state_dict().items()
        if not key.startswith(("fc_norm", "head"))
    }  # fmt: skip
    pretraining |= {
        "encoder.norm.weight": torch.ones(64), "encoder.norm.bias": torch.zeros(64),
        "decoder.blocks.0.norm1.weight": torch.ones(32), "decoder.head.weight": torch.ones(2, 32),
        "encoder_to_decoder.weight": torch.ones(32, 64), "mask_token": torch.zeros(1, 1, 32),
    }  # fmt: skip
    torch.save({"model": pretraining}, tmp_path / "checkpoint.pth")
    found = pretrained_weights("videomae-tiny", tmp_path / "checkpoint.pth", shape, 3)
    assert set(found) == {k for k in expected if ".classifier." not in k and "fc_norm" not in k}
    with pytest.raises(DataError, match="holds 2 files of weights"):
        pretrained_weights("videomae-tiny", tmp_path, shape, 3)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    shape, weights = (8, 3, 16, 16), Published(layers=3).state_dict()
    path = tmp_path / "weights.pth"
    for change, message in (
        ({}, "lacks 15 of the 62 weights of videomae-tiny"),
        ({"blocks.0.attn.relative": torch.ones(1)}, "no checkpoint of VideoMAE: it holds 'blocks"),
    ):
        torch.save({**weights, **change}, path)
        with pytest.raises(DataError, match=message):
            pretrained_weights("videomae-tiny", path, shape, 3)
    torch.save(Published(layers=9).state_dict(), path)
    with pytest.raises(DataError, match="has no place for 75 of its weights"):
        pretrained_weights("videomae-tiny", path, shape, 3)
    torch.save(Published(patch=2).state_dict(), path)
    with pytest.raises(
        DataError, match=r"projection.weight has the shape \(64, 3, 2, 2, 2\) there"
    ):
        pretrained_weights("videomae-tiny", path, shape, 3)
    path.write_text("no weights")
    with pytest.raises(DataError, match="holds no weights"):
        pretrained_weights("videomae-tiny", path, shape, 3)


@pytest.mark.parametrize("kind", ["videomae", "pretraining", "vivit"])
def test_folders_of_transformers(tmp_path, small_vivit, kind):
    import transformers

    shape, name = (8, 3, 16, 16), "vivit-base" if kind == "vivit" else "videomae-tiny"
    torch.manual_seed(0)
    if kind == "pretraining":
        config = _config(name, shape, use_mean_pooling=False)
        saved = transformers.VideoMAEForPreTraining(config)
    else:
        saved = build_video_network(name, shape, 9).network
    saved.save_pretrained(tmp_path)
    found, weights = pretrained_weights(name, tmp_path, shape, 3), saved.state_dict()
    for key, value in found.items():
        assert torch.equal(value, weights[key.removeprefix("network.")]), key
    model = build_video_network(name, shape, 3)
    new = ("network.classifier.", *(("network.fc_norm.",) if kind == "pretraining" else ()))
    rest = [key for key in model.state_dict() if key not in found]
    assert all(key.startswith(new) for key in rest) and len(rest) == 2 * len(new)
    other = "videomae-tiny" if kind == "vivit" else "vivit-base"
    kinds = ("vivit", "videomae") if kind == "vivit" else ("videomae", "vivit")
    with pytest.raises(DataError, match="its model_type is {}, and .* is {}".format(*kinds)):
        pretrained_weights(other, tmp_path, shape, 3)
    bias = "qkv_bias" if hasattr(saved.config, "qkv_bias") else "qv_bias"
    for item, value in (  # which no shape tells
        ("num_attention_heads", 8), ("hidden_act", "relu"), (bias, False), ("num_hidden_layers", 2),
    ):  # fmt: skip
        config = copy.deepcopy(saved.config)
        setattr(config, item, value)
        config.save_pretrained(tmp_path)
        with pytest.raises(DataError, match=f"another network: its {item} is {value}, and that of"):
            pretrained_weights(name, tmp_path, shape, 3)


def test_a_deeper_folder_of_transformers_is_refused(tmp_path):
    """Also where its configuration says nothing of it."""
    import transformers

    shape = (8, 3, 16, 16)
    deeper = _config("videomae-tiny", shape, num_hidden_layers=6)
    transformers.VideoMAEForVideoClassification(deeper).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="num_hidden_layers is 6, and that of videomae-tiny is 4"):
        pretrained_weights("videomae-tiny", tmp_path, shape, 3)
    _config("videomae-tiny", shape).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="holds videomae.encoder.layer.4"):
        pretrained_weights("videomae-tiny", tmp_path, shape, 3)


def test_a_folder_of_videomaev2_as_on_the_hub(tmp_path, monkeypatch):
    """Its configuration names code, which is not run, and nobody is asked whether it may be."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights, shape = Published().state_dict(), (8, 3, 16, 16)
    save_file({f"model.{key}": v for key, v in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "modeling.py").write_text("raise SystemExit('this is run')")
    config = {
        "model_type": "VideoMAEv2_Base", "architectures": ["VideoMAEv2_Base"],
        "auto_map": {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"},
        "model_config": {"num_heads": 4, "depth": 4},
    }  # fmt: skip
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = pretrained_weights("videomae-tiny", tmp_path, shape, 3)
    expected = {f"network.{key}": value for key, value in convert_checkpoint(weights).items()}
    assert set(found) == {key for key in expected if ".classifier." not in key}
    assert all(torch.equal(found[key], expected[key]) for key in found)
    config["model_config"]["num_heads"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="its num_heads is 8, and that of videomae-tiny is 4"):
        pretrained_weights("videomae-tiny", tmp_path, shape, 3)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="config.json is broken"):
        pretrained_weights("videomae-tiny", tmp_path, shape, 3)


@pytest.mark.parametrize("name", ["videomae-tiny", "vivit-base"])
def test_branches_are_left_out_at_random(small_vivit, name):
    """Rates rise from 0 to that of the last block; in eval mode nothing is changed."""
    from torchvision.ops import StochasticDepth

    shape = (4, 3, 16, 16)
    model = build_video_network(name, shape, 3).eval()
    clips = torch.randn(6, *shape)
    with torch.no_grad():
        before = model(clips)
        set_drop_path(model, 0.9)
        assert torch.equal(model(clips), before)
        model.train()
        assert not torch.allclose(model(clips), before)
    rates = [m.p for m in model.modules() if isinstance(m, StochasticDepth)]
    layers = model.network.config.num_hidden_layers
    branches = len(rates) // layers
    assert branches == 2 or name == "vivit-base"  # whose two have one module in transformers 5
    assert rates == pytest.approx(
        [0.9 * i / (layers - 1) for i in range(layers) for _ in range(branches)]
    )
    assert layers == (4 if name == "videomae-tiny" else 3)
    plain = build_video_network(name, shape, 3)
    set_drop_path(plain, 0.0)
    assert not [m for m in plain.modules() if isinstance(m, StochasticDepth)]
    weight = plain.network.classifier.weight.clone()
    scale_head(plain, 0.001)
    assert torch.allclose(plain.network.classifier.weight, weight * 0.001)


def test_masking_hides_tubes():
    """As many patches of each clip, the same at all times; the loss is VideoMAE's own."""
    model = MaskedPretraining("videomae-tiny", (8, 3, 24, 24), 0.75)
    seen = []
    model.network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["bool_masked_pos"]), with_kwargs=True
    )
    clips = moving_glyphs(Sampling(8, 1, 24), 40, 8).train.training
    batch = torch.stack([clips[i][0] for i in range(6)])
    loss = model(batch)
    (mask,) = seen
    tubes = mask.view(6, 4, 9)
    assert torch.equal(tubes, tubes[:, :1].expand_as(tubes))
    assert tubes[:, 0].sum(dim=1).tolist() == [7] * 6
    assert len({tuple(row.tolist()) for row in tubes[:, 0]}) > 1
    assert loss.ndim == 0 and 0.5 < float(loss.detach()) < 2
    network = build_video_network("videomae-tiny", (8, 3, 24, 24), 8)
    missing = network.load_state_dict(model.encoder(), strict=False).missing_keys
    assert all(key.startswith(("network.fc_norm", "network.classifier")) for key in missing)
    with pytest.raises(DataError, match="vivit-base is not pretrained by masking"):
        MaskedPretraining("vivit-base", (8, 3, 24, 24), 0.75)
    with pytest.raises(DataError, match="masks none of 9"):
        MaskedPretraining("videomae-tiny", (8, 3, 24, 24), 0.01)


# Training ---------------------------------------------------------------------------------------


def test_layers_have_learning_rates_of_their_own():
    """BEiT's: 1 at the head, layer_decay in the last block, … and once more at the patches."""
    model = build_video_network("videomae-tiny", (8, 3, 16, 16), 3)
    settings = TrainSettings(learning_rate=1.0, layer_decay=0.5, bias_weight_decay=0.0)
    optimizer = make_optimizer(model, settings)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[p]: group for group in optimizer.param_groups for p in group["params"]}
    assert set(found) == set(names.values())
    assert optimizer.param_groups[0]["lr"] == 1.0
    for name, group in found.items():
        depth = 0
        if ".layer." in name:
            depth = 4 - int(name.split(".layer.")[1].split(".")[0])
        elif ".embeddings." in name:
            depth = 5
        assert group["lr"] == 0.5**depth, name
        norm = "norm" in name
        assert group["weight_decay"] == (0.0 if norm or name.endswith("bias") else 0.05), name
    schedule = make_schedule(optimizer, 100, TrainSettings(learning_rate=1.0, steps=100))
    assert {round(rate / first["lr"], 6) for rate, first in zip(
        schedule.get_last_lr(), optimizer.param_groups, strict=True)} == {1.0}  # fmt: skip
    assert {g["max_lr"] for g in optimizer.param_groups} == {0.5**i for i in range(6)}


@pytest.mark.parametrize("warmup", [0, 10])
def test_each_layer_has_its_share_of_the_final_rate(warmup):
    """VideoMAE's code multiplies the whole curve by a group's share, its end included."""
    model = build_video_network("videomae-tiny", (8, 3, 16, 16), 3)
    settings = TrainSettings(epochs=100, learning_rate=1.0, final_rate=0.1, layer_decay=0.5,
                             warmup_epochs=warmup)  # fmt: skip
    optimizer = make_optimizer(model, settings)
    shares = [group["lr"] for group in optimizer.param_groups]
    assert min(shares) < settings.final_rate
    schedule, curve = make_schedule(optimizer, 100, settings), []
    for _ in range(101):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([share * rates[0] for share in shares])
        curve.append(rates[0])
        optimizer.step()
        schedule.step()
    expected = [0.1 + 0.45 * (1 + math.cos(math.pi * i / (100 - warmup)))
                for i in range(101 - warmup)]  # fmt: skip
    assert curve[warmup:] == pytest.approx(expected)


def test_layer_decay_needs_blocks_in_one_list():
    import timm

    with pytest.raises(ValueError, match="blocks stand in one list"):
        make_optimizer(timm.create_model("test_convnext"), TrainSettings(layer_decay=0.5))
    with pytest.raises(ValueError, match="layer_decay=0 must be above 0"):
        TrainSettings(layer_decay=0)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_clips_are_mixed(kind):
    clips = torch.arange(4.0).view(-1, 1, 1, 1, 1).expand(4, 2, 3, 8, 8).contiguous()
    torch.manual_seed(0)
    mixed, weights = make_mixing(TrainSettings(**{kind: 1.0}), 4)(clips, torch.arange(4))
    assert type(mixed) is torch.Tensor and mixed.shape == clips.shape
    assert weights.shape == (4, 4) and torch.allclose(weights.sum(dim=1), torch.ones(4))
    mean = (weights * torch.arange(4.0)).sum(dim=1)
    assert torch.allclose(mixed.mean(dim=(1, 2, 3, 4)), mean, atol=1e-5)
    assert torch.equal(mixed[:, 0], mixed[:, 1])  # all frames alike


def quick(data=None, **options):
    preset = EXPERIMENTS["video"].presets("quick", data)
    return preset.but(options={**preset.options, **options})


def test_videos_train_from_files_and_go_on(tmp_path, published):
    """With processes of the loader, and stopped after an epoch: the same weights."""
    data = load_clips("hmdb51", published, TINY, augment="videomae")
    settings = TrainSettings(
        epochs=2, batch_size=8, layer_decay=0.7, mixup=0.8, label_smoothing=0.1
    )
    found = []
    for stop in (False, True):
        torch.manual_seed(0)
        model = build_video_network("videomae-tiny", data.shape, 2)
        path = tmp_path / f"{stop}.pt"
        if stop:
            with pytest.raises(KeyboardInterrupt):
                fit(model, data.train.training, settings, classes=2, checkpoint=path,
                    on_epoch=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt) if found[1:] else
                    found.append(0))  # fmt: skip
            found.pop()
        fit(model, data.train.training, settings, classes=2, checkpoint=path)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*found)
    loader = DataLoader(data.train.training, 4, num_workers=2)
    assert sum(len(clips) for clips, _ in loader) == 16


def test_splits_are_those_of_seeds(tmp_path, published):
    preset = quick("hmdb51").but(seeds=3, size=16, network="videomae-tiny")
    preset = preset.but(options={**preset.options, "frames": 4})
    with pytest.warns(UserWarning, match="RANDOM WEIGHTS"):
        task = VideoTask(preset, load_videos(preset, published), find_network("videomae-tiny"),
                         tmp_path)  # fmt: skip
    for seed in range(4):
        roles = task.roles(trial("test", seed))
        assert all(f"Film_{seed % 3}_" in video.name for video in roles.measure.videos)
        roles = task.roles(trial("validation", seed))
        assert {video.name.split("_a_")[0][-1] for video in roles.measure.videos} <= {"3", "4"}
    with pytest.raises(ReproductionError, match="take a multiple of 3"):
        VideoTask(preset.but(seeds=4), task.data, task.factory, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "nowhere"}, "nowhere is neither"),
        ({"weights": ".", "pretraining": {"epochs": 1}}, "give one of both"),
        ({"probes": ("size",)}, "no probe size"),
    ],
)
def test_options_that_cannot_be(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    preset = quick(**{"pretraining": None, **change})
    with pytest.raises(ReproductionError, match=message):
        VideoTask(preset, moving_glyphs(Sampling(8, 1, 24), 360, 80), find_network("videomae-tiny"),
                  tmp_path)  # fmt: skip


def test_images_are_no_videos(tmp_path):
    with pytest.raises(ReproductionError, match="are no videos"):
        reproduce("video", tmp_path / "out", scale="quick", data=load_images("digits"))
    with pytest.raises(DataError, match="no videos 'digits'"):
        reproduce("video", tmp_path / "out", scale="quick", data="digits")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ReproductionError, match="takes no weights from elsewhere"):
        reproduce(
            "video", tmp_path / "out", scale="quick", network=lambda shape, classes: nn.Linear(1, 1)
        )


def test_all_trials_begin_with_one_pretrained_encoder(tmp_path):
    """Which is made once, and is not that of another folder's random start."""
    preset = quick()
    options = {**preset.options, "unlabelled": 64, "probe_videos": 80}
    training = TrainSettings(epochs=1, batch_size=32, learning_rate=1e-12)
    preset = preset.but(options=options, training=training)
    task = VideoTask(preset, load_videos(preset, None), find_network("videomae-tiny"), tmp_path)
    begun = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = task.build()
        task.train(model, trial("test", seed))
        begun.append(model.state_dict())
    body = [key for key in begun[0] if "videomae.encoder" in key and key.endswith("weight")]
    assert len(body) > 20
    assert all(torch.allclose(begun[0][key], begun[1][key], atol=1e-6) for key in body)
    kept = torch.load(tmp_path / "pretrained.pt", weights_only=True)
    assert all(torch.allclose(kept[key], begun[0][key], atol=1e-6) for key in body)
    assert not torch.allclose(begun[0]["network.classifier.weight"],
                              begun[1]["network.classifier.weight"])  # fmt: skip
    found = task.evaluate(model, trial("test"))
    assert {"accuracy", "transfer", "letter", "face", "color", "loss"} == set(found)
    mean = (found["letter"] + found["face"] + found["color"]) / 3
    assert found["transfer"] == pytest.approx(mean)
    assert set(task.evaluate(model, trial("validation"))) == {"accuracy", "loss"}


def test_noisy_videos_are_fine_tuned_for_each_strength(tmp_path, monkeypatch):
    preset = EXPERIMENTS["noise"].presets("quick", "moving-glyphs")
    options = {**preset.options, "unlabelled": 64, "sigmas": (1.0, 2.0)}
    training = TrainSettings(epochs=1, batch_size=32)
    preset = preset.but(options=options, training=training, train_images=64)
    task = EXPERIMENTS["noise"].task(
        preset, load_videos(preset, None), find_network("videomae-tiny"), tmp_path
    )
    assert isinstance(task, NoisyVideoTask)
    seen, learn = [], VideoTask.learn

    def watched(self, model, roles, trial, name):
        seen.append((name, roles.train.sampling.sigma, roles.measure.sampling.sigma))
        learn(self, model, roles, trial, name)

    monkeypatch.setattr(VideoTask, "learn", watched)
    model, one = task.build(), trial("test")
    before = [p.clone() for p in model.parameters()]
    task.train(model, one)
    assert seen == [(f"{one.id}-1", 1.0, 1.0), (f"{one.id}-2", 2.0, 2.0)]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    found = task.evaluate(model, one)
    assert set(found) == {"accuracy_1", "accuracy_2", "mean", "loss"}
    assert found["mean"] == pytest.approx((found["accuracy_1"] + found["accuracy_2"]) / 2)
    assert not list((tmp_path / "checkpoints").glob("*.pt"))


def test_reports_say_how_a_network_began():
    report = {
        "experiment": "video", "data": "HMDB51", "scale": "paper", "metrics": [], "headline": [],
        "criterion": "accuracy", "search": [], "command": None, "versions": {},
        "paper": {"where": "", "rows": {}, "protocol": ""},
        "preset": EXPERIMENTS["video"].presets("paper", None).to_dict(),
    }  # fmt: skip
    report["metrics"] = [{"name": "accuracy", "title": "accuracy", "percent": True, "higher": True}]
    report["rows"] = [{"name": "no VCReg", "by_seed": {"0": {}}, "rule": None, "settings": {}}]
    text = render(report)
    assert "begins with **random weights**" in text and "10 clips × 3 crops" in text
    report["preset"]["options"]["weights"] = "k400"
    assert "with the weights in `k400`" in render(report)
    report["preset"] = EXPERIMENTS["video"].presets("default", None).to_dict()
    text = render(report)
    assert "pretrained by masking, 6 epochs on 3,000 other videos" in text
    assert "drawn by the seed, clips of 8 frames;" in text


# Whole experiments ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "data", "seeds"), [("video", "hmdb51", 3), ("noise", "clips", 2)])
def test_the_papers_preset_shrunk_in_data_and_model_alone(tmp_path, name, data, seeds):
    """Two arms of it, from weights in a folder, on small files; 10 clips × 3 crops of them."""
    root, weights = tmp_path / "data", tmp_path / "weights"
    hmdb51(root, sources=3) if data == "hmdb51" else folder_of_clips(root, each=3)
    weights.mkdir()
    torch.save({"module": Published(patch=8).state_dict()}, weights / "weights.pth")
    preset = EXPERIMENTS[name].presets("paper", data)
    training = TrainSettings(**{**preset.training.to_dict(), "amp": "none", "workers": 0})
    grid = {"alpha": (1.0,), "beta": (0.1,)}
    options = {**preset.options, "weights": str(weights)}
    preset = preset.but(
        size=32, network="videomae-tiny", training=training, options=options, grid=grid, seeds=seeds
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = reproduce(
            name, tmp_path / "out", scale="paper", preset=preset, data_root=root,
            arms=["no VCReg", "VCReg"],
        )  # fmt: skip
    assert [row["sites"] for row in outcome.report["rows"]] == [0, 1]
    assert [len(row["by_seed"]) for row in outcome.report["rows"]] == [seeds, seeds]
    assert "VideoMAE-B (VCReg) | 83 |" in str(outcome) or name == "noise"
    assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5_000
