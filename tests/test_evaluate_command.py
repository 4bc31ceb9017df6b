"""``vcreg-fx evaluate``: any model, a checkpoint, the digits or a folder of images."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vcreg_fx import evaluation
from vcreg_fx.cli._app import app
from vcreg_fx.cli._images import load_data
from vcreg_fx.cli._model import load_checkpoint, load_model
from vcreg_fx.experiments import load_digits

NAME = "timm/test_convnext"


def command(*arguments):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["evaluate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def fails(*arguments):
    result = command(*arguments)
    assert result.exit_code in {1, 2}
    assert "Traceback" not in result.output
    return " ".join(result.stderr.replace("│", " ").split())


def pictures(folder, count, seed=0):
    """Write images of two classes, one brighter than the other."""
    generator = torch.Generator().manual_seed(seed)
    for label, level in (("dark", 60), ("light", 190)):
        (folder / label).mkdir(parents=True)
        for k in range(count):
            pixels = torch.randint(-50, 50, (40, 36, 3), generator=generator) + level
            Image.fromarray(pixels.byte().numpy()).save(folder / label / f"{k}.png")


@pytest.mark.parametrize("information", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_everything_about_a_checkpoint(tmp_path, information):
    options = {"num_classes": 3, "in_chans": 1}
    model = load_model(NAME, options=options)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    result = command(
        *(NAME, "--checkpoint", tmp_path / "weights.pt", "--set", "num_classes=3"),
        *("--rule", "last(blocks, 1) | head", "-o", tmp_path / "out"),
        *("--probe", "knn", "--probe", "adamw"),
        "--information" if information else "--no-information",
    )
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (tmp_path / "out" / "spectra.png").read_bytes().startswith(b"\x89PNG")
    assert written["images"] == {"train": 1198, "test": 599}
    assert "1,198 images to train probes on, 599 to test on. Chance is 10.18%" in result.stdout
    assert "The digits are gray: the model is given one channel." in result.stderr
    assert result.stdout.splitlines()[-1].endswith("report.html")
    low, high = written["intervals"]["head.fc:input"]["knn_accuracy"]
    assert low < written["sites"]["head.fc:input"]["knn_accuracy"] < high
    assert f"({100 * low:.1f}–{100 * high:.1f})" in result.stdout
    assert "knn_class_accuracy" not in written["intervals"]["head.fc:input"]
    assert len(written["sites"]) == 2
    train, test = load_digits(0)
    known = evaluation.head_features(model, train.images), train.digits
    new = evaluation.head_features(model, test.images), test.digits
    inputs = test.images if information else None
    expected = evaluation.measure_features(known, new, probes=["knn", "adamw"], inputs=inputs)
    found = written["sites"]["head.fc:input"]
    assert found == pytest.approx(expected, rel=1e-3, abs=5e-3)
    assert found["knn_accuracy"] > 0.3, "even random features tell digits apart"
    for name in ("knn accuracy", "cdnv", "effective rank"):
        assert name in result.stdout
    assert ("mutual information (nats)" in result.stdout) is information


def test_few_labels(tmp_path):
    pictures(tmp_path / "data", 18)
    asked = (NAME, "--data", tmp_path / "data", "--size", 32, "--no-information", "--probe", "knn")
    shares = ("--semi-supervised", "0.1", "--semi-supervised", "0.01")
    result = command(*asked, *shares, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    found = written["semi_supervised"]
    assert list(found) == ["10% of the labels", "1% of the labels"]
    assert [row["labelled"] for row in found.values()] == [2, 2]
    assert all(0 <= row["accuracy"] <= row["top5_accuracy"] == 1 for row in found.values())
    assert "10% of the labels" in result.stdout and "top5 accuracy" in result.stdout
    assert "10% of the labels" in (tmp_path / "out" / "report.html").read_text()
    assert "settings for 0.01 and 0.1, none for 0.5" in fails(*asked, "--semi-supervised", "0.5")


@pytest.mark.parametrize(("channels", "said"), [(1, "one channel"), (3, "the same in all 3")])
def test_digits_are_gray(channels, said, capsys):
    train, test = load_data("digits", torch.nn.Conv2d(channels, 2, 3), None, seed=0)
    assert sum(len(images) for images, _ in train) == 1198
    for images, labels in test:
        assert images.shape == (len(labels), channels, 32, 32)
        assert torch.equal(images, images[:, :1].expand_as(images))
    assert f"The digits are gray: the model is given {said}" in capsys.readouterr().err


@pytest.mark.parametrize("split", [True, False])
def test_a_folder_of_images(tmp_path, split):
    if split:
        pictures(tmp_path / "data" / "train", 12)
        pictures(tmp_path / "data" / "val", 6, seed=1)
    else:
        pictures(tmp_path / "data", 18)
    result = command(
        *(NAME, "--data", tmp_path / "data", "--size", 32),
        *("--no-information", "-o", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert "The weights are random" in result.stderr
    assert written["data"] == "data"
    assert written["images"] == {"train": 24, "test": 12}
    (numbers,) = written["sites"].values()
    assert numbers["logistic_accuracy"] == 1
    assert "mutual_information" not in numbers


def test_random_weights_are_those_of_the_seed(tmp_path):
    pictures(tmp_path / "data", 9)
    asked = (NAME, "--data", tmp_path / "data", "--size", 32, "--no-information", "--probe", "knn")
    found = []
    for number, seed in enumerate((3, 3, 4)):
        torch.manual_seed(number)
        assert command(*asked, "--seed", seed, "-o", tmp_path / "out").exit_code == 0
        found.append(json.loads((tmp_path / "out" / "evaluation.json").read_text())["sites"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("wrap", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_checkpoints_of_many_kinds(tmp_path, wrap, prefix):
    model, other = (load_model(NAME) for _ in range(2))
    state = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "c.pt")
    load_checkpoint(other, tmp_path / "c.pt")
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, other = (load_model(NAME) for _ in range(2))
    safetensors.save_file(model.state_dict(), tmp_path / "c.safetensors")
    load_checkpoint(other, tmp_path / "c.safetensors")
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_be_evaluated(tmp_path):
    torch.save(load_model(NAME).state_dict(), tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("no pickle")
    (tmp_path / "empty").mkdir()
    out = ("-o", tmp_path / "out")
    for arguments, message in [
        (["--checkpoint", tmp_path / "no.pt"], "No such file"),
        (["--checkpoint", tmp_path / "text.pt"], "cannot be read as weights"),
        (["--checkpoint", tmp_path / "list.pt"], "holds no state dict"),
        (["--checkpoint", tmp_path / "other.pt", "--set", "num_classes=3"], "does not fit"),
        (["--data", tmp_path / "nothing"], "is no folder"),
        (["--data", tmp_path / "empty"], "holds no images"),
        (["--set", "num_classes"], "is no setting"),
        (["--set", "colour=3"], "cannot be built"),
        (["--device", "nowhere"], "--device: 'nowhere' cannot be used: "),
        (["--probe", "trees"], "There is no probe trees"),
        (["--rule", "nothing"], "There is no rule 'nothing'"),
    ]:
        assert message in fails(NAME, *arguments, *out)
    pictures(tmp_path / "data" / "train", 2)
    pictures(tmp_path / "data" / "val", 2)
    (tmp_path / "data" / "val" / "dark").rename(tmp_path / "data" / "val" / "dim")
    assert "classes of train and val differ in dark, dim" in fails(
        NAME, "--data", tmp_path / "data", *out
    )
