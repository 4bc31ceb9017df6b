"""A mistake in any option of any command ends in one line that names the option."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from vcreg_fx.cli._app import app

MODEL = "timm/test_convnext"
OWN = "from torch import nn\nmake = nn.ReLU\n"

# What to write: command → option → a mistake. {} stands for the option itself.
_MODEL = {
    "MODEL": "timm/no_such_model",
    "--rule": f"{MODEL} --rule blcks",
    "--layout": f"{MODEL} --layout NQ",
    "--input-size": f"{MODEL} --input-size abc",
    "--set": f"{MODEL} --set num_classes",
}
_STRENGTH = {"--alpha": f"{MODEL} --alpha nan", "--beta": f"{MODEL} --beta -1"}
_OUTPUT = {name: f"{text} -o out" for name, text in {**_MODEL, **_STRENGTH}.items()}
MISTAKES = {
    "sites": _MODEL,
    "measure": {
        **_MODEL,
        **_STRENGTH,
        "--batch": f"{MODEL} --batch 1",
        "--checkpoint": f"{MODEL} --checkpoint text.pt",
        "--calibrate": f"{MODEL} --calibrate inf",
        "--seed": f"{MODEL} --seed -1",
    },
    "demo": {
        "--output": "-o text.pt",
        "--seed": "--seed 4294967296",
        "--steps": "--steps 2",
        "--rule": "--rule blcks -o demo",
        "--alpha": "--alpha inf",
        "--beta": "--beta x",
        "--threads": "--threads 0",
    },
    "draw": {
        **{name: _OUTPUT[name] for name in _MODEL},
        "--output": f"{MODEL} -o nowhere/m.svg",
        "--format": f"{MODEL} -o m.svg --format bmp",
    },
    "export": {
        **_OUTPUT,
        "--output": f"{MODEL} -o text.pt/m",
        "--format": f"{MODEL} -o m --format bmp",
        "--checkpoint": f"{MODEL} -o m.pt2 --checkpoint list.pt",
    },
    "bench": {
        "--models": "--models vit_b_33",
        "--rule": "--models resnet18 --rule blcks",
        "--variants": "--models resnet18 --variants naive;nave",
        "--batch": "--batch 1",
        "--device": "--device nowhere",
        "--dtype": "--models resnet18 --dtype float33",
        "--rounds": "--rounds 0",
        "--threads": "--threads 0",
        "--ranks": "--ranks 0",
        "--seed": "--seed x",
        "--json": "--json nowhere/rows.json",
        "--output": "-o text.pt",
    },
    "evaluate": {
        "MODEL": _MODEL["MODEL"],
        "--checkpoint": f"{MODEL} --checkpoint nowhere.pt",
        "--data": f"{MODEL} --data nowhere",
        "--rule": f"{MODEL} --rule blcks",
        "--set": f"{MODEL} --set colour=3",
        "--size": f"{MODEL} --size 0",
        "--device": f"{MODEL} --device cuda:99",
        "--probe": f"{MODEL} --probe trees",
        "--semi-supervised": f"{MODEL} --semi-supervised 0.5",
        "--seed": f"{MODEL} --seed 1.5",
        "--output": f"{MODEL} -o text.pt",
    },
    "coverage": {
        "--source": "--source elsewhere",
        "--rule": "--rule blcks",
        "--json": "--json text.pt",
    },
    "reproduce": {
        "NAME": "hierarhcy",
        "--preset": "hierarchy --preset papers",
        "--data": "hierarchy --data digitss",
        "--data-root": "hierarchy --data cifar10 --data-root nowhere",
        "--classes": "hierarchy --quick --classes nowhere.json",
        "--network": "hierarchy --quick --network timm/no_such_model",
        "--arm": "hierarchy --quick --arm nothing",
        "--set": "hierarchy --quick --set colour=3",
        "--weights": "transfer --weights nowhere.pt",
        "--seeds": "hierarchy --seeds 1",
        "--output": "hierarchy -o text.pt",
        "--threads": "hierarchy --threads 0",
        "--evidence": "hierarchy --evidence nowhere",
    },
    "ablate": {
        "--task": "--task nowhere.py",
        "--rule": "--rule blcks",
        "--seeds": "--seeds 0",
        "--set": "--set alpha=strong",
        "--store": "--store text.pt",
        "--workers": "--workers 0",
        "--dask": "--dask nowhere",
        "--shard": "--shard 3",
        "--steps": "--steps 1",
        "--threads": "--threads 0",
        "--timeout": "--timeout nan",
    },
    "ablate report": {"STORE": "nowhere"},
}


def _parameters():
    """Return command and name of every argument and option that there is, but of switches."""
    found = []

    def visit(path, command):
        for parameter in command.params:
            if getattr(parameter, "is_flag", False):
                switches.append((path, parameter.opts[-1]))
            elif parameter.param_type_name == "argument":
                found.append((path, parameter.metavar))
            else:
                found.append((path, max(parameter.opts, key=len)))
        for name, below in getattr(command, "commands", {}).items():
            visit(f"{path} {name}".strip(), below)

    switches = []
    visit("", get_command(app))
    return found, switches


PARAMETERS, SWITCHES = _parameters()


def test_every_option_has_its_mistake():
    assert {(c, o) for c, options in MISTAKES.items() for o in options} == set(PARAMETERS)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")  # so that one line is one
    Path("text.pt").write_text("no pickle", "utf-8")
    torch.save([1, 2], "list.pt")


def fails(command, arguments):
    result = CliRunner().invoke(app, [*command.split(), *arguments])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in {1, 2} and result.stdout == ""
    *notes, line = result.stderr.splitlines()
    assert not any("Error" in note or "Traceback" in note for note in notes)
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize(("command", "option"), PARAMETERS)
def test_a_mistake_ends_in_one_line_that_names_the_option(here, command, option):
    arguments = MISTAKES[command][option]
    before = sorted(Path().iterdir())
    line = fails(command, arguments.split())
    assert re.search(rf"(?<![\w-]){option}(?![\w-])", line), line
    assert [path for path in Path().iterdir() if path.is_file()] == before, "nothing was begun"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("sites timm/resnet10t --input-size 3,99999999999999999999,4", "--input-size"),
        ("measure timm/resnet10t --input-size 3,1000000,10000000", "--input-size"),
        ("evaluate timm/resnet10t --size 1000000000", "--size"),
        ("bench --sites --models timm/resnet10t --batch 1000000000000", "--batch"),
    ],
)
def test_what_fits_no_memory_names_its_option(here, command, option):
    name, *arguments = command.split()
    line = fails(name, arguments)
    assert line.startswith(f"Error: {option}: this needs more memory than there is")


def test_the_digits_are_asked_for_settings_that_they_have(here):
    line = fails("ablate", ["--set", "foo=1", "--seeds", "1"])
    assert line.startswith("Error: --set: the digits have no setting foo; they have ")


@pytest.mark.parametrize(("command", "option"), SWITCHES)
def test_switches_take_no_value(here, command, option):
    assert option in fails(command, [f"{option}=3"])
