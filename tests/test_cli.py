"""The command line: every kind of model, JSON, and errors without tracebacks."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from typer.main import get_command
from typer.testing import CliRunner

import placement_rules
import vcreg_fx
from vcreg_fx.cli._app import app
from vcreg_fx.cli._errors import clear_errors
from vcreg_fx.cli._model import load_model

ROOT = Path(__file__).resolve().parent.parent

OWN = """\
from torch import nn

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)

def make():
    return nn.Sequential(nn.Conv2d(3, 8, 3), Residual(), Residual())

class Family:
    make = staticmethod(make)

ready = make()
number = 3

def broken():
    raise KeyError("a reason")

def wrong():
    return 3
"""


def run(*arguments):
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def fails(*arguments):
    """Run a command that must fail with one message; return the message."""
    result = run(*arguments)
    assert result.exit_code in {1, 2}
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a user's own models, as the current directory."""
    (tmp_path / "own_models.py").write_text(OWN, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "own_models"
    sys.modules.pop("own_models", None)


# Models -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "rule", "sites", "layout"),
    [
        ("convnext_atto", "blocks | downsample", 15, "NCHW"),
        ("torchvision/vit_b_32", "blocks", 12, "NLC"),
        ("torchvision/r3d_18", "VCReg3", 3, "NCTHW"),
        ("torchvision/fcn_resnet50", "blocks", 16, "NCHW"),
    ],
)
def test_sites_as_json(model, rule, sites, layout):
    result = run("sites", model, "--rule", rule, "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert data["rule"] == str(placement_rules.parse(rule))
    assert [site["layout"] for site in data["sites"]] == [layout] * sites


def test_transformers_class():
    pytest.importorskip("transformers")
    result = run("sites", "transformers/ViTForImageClassification", "--rule", "head", "--json")
    assert [site["name"] for site in json.loads(result.stdout)["sites"]] == ["classifier:input"]


def test_table_has_every_column_in_full():
    result = run("sites", "timm/convnext_atto", "--rule", "VCReg4")
    assert result.exit_code == 0
    assert "15 sites for the rule blocks | downsample" in result.stdout
    for text in ("site", "shape", "layout", "channels", "calls", "form"):
        assert text in result.stdout
    line = next(x for x in result.stdout.splitlines() if "stages.1.downsample.1:output" in x)
    assert line.split() == [
        *["stages.1.downsample.1:output", "2", "×", "80", "×", "28", "×", "28"],
        *["NCHW", "80", "1", "boundary"],
    ]


def test_table_names_clones(own):
    Path("cloning.py").write_text(
        OWN + "def clones():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), Residual(), nn.ReLU(inplace=True))\n",
        "utf-8",
    )
    result = run("sites", "cloning:clones")
    assert "boundary, cloned" in result.stdout
    assert "1:output: returned as a clone" in result.stdout


@pytest.mark.parametrize("factory", ["make", "Family.make", "ready"])
def test_own_factory(own, factory):
    result = run("sites", f"{own}:{factory}", "--json", "--input-size", "3,12,12")
    sites = json.loads(result.stdout)["sites"]
    assert [(site["name"], site["shape"]) for site in sites] == [
        ("1:output", [2, 8, 10, 10]),
        ("2:output", [2, 8, 10, 10]),
    ]


def test_factories_and_tasks_in_files(own, tmp_path, monkeypatch):
    """Modules by their paths, from anywhere; a name that is taken is refused."""
    from vcreg_fx.cli._ablate import _functions

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    text = "".join(f"def {name}(*_):\n    pass\n" for name in ("build", "train", "evaluate"))
    (folder / "a_task.py").write_text(f"{text}TITLE = 'Mine'\n", "utf-8")
    (folder / "json.py").write_text(text, "utf-8")
    functions, options = _functions("elsewhere/a_task.py")
    assert {f.__module__ for f in functions.values()} == {"a_task"} and options == {"title": "Mine"}
    sys.modules.pop("a_task")
    assert "'json' is also the name of" in fails("ablate", "--task", "elsewhere/json.py")
    assert "--task: There is no file elsewhere/b.py" in fails("ablate", "--task", "elsewhere/b.py")
    monkeypatch.chdir(folder)
    size = ("--json", "--input-size", "3,12,12")
    assert len(json.loads(run("sites", "../own_models.py:make", *size).stdout)["sites"]) == 2


@pytest.mark.parametrize(
    ("model", "rule", "same"),
    [
        ("torchvision/resnet18", "blocks | downsample", "blocks"),
        ("torchvision/resnet18", "VCReg2", "blocks | downsample"),
        ("timm/test_convnext", "blocks | downsample", None),
    ],
)
def test_rules_that_select_the_same_are_named(model, rule, same):
    text = " ".join(run("sites", model, "--rule", rule).stdout.split())
    said = f"The same sites are selected here by {same}."
    assert (said in text) if same else ("The same sites" not in text)


def test_layout_and_size_are_passed_on(own):
    result = run("sites", f"{own}:make", "--layout", "NHWC", "--input-size", "3x9x9", "--json")
    assert {site["channels"] for site in json.loads(result.stdout)["sites"]} == {7}


def test_models_of_libraries_need_no_memory():
    model = load_model("torchvision/vgg16", meta=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(p.is_meta for p in load_model("timm/test_convnext").parameters())


# Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("timm/convnext_ato", "Did you mean convnext_atto or"),
        ("timm/hf_hub:someone/something", "timm has no model 'hf_hub:someone/something'"),
        ("torchvision/resnet5", "Did you mean resnet50"),
        ("torchvision", "'torchvision' names a library and no model"),
        ("resnet50", "'resnet50' is in several libraries. Write timm/resnet50 or torchvision/"),
        ("vit_b_32", "'vit_b_32' is no model of timm's. Write torchvision/vit_b_32."),
        ("convnext_ato", "is not a model. Write timm/NAME, torchvision/NAME"),
        ("convnext_ato", "Did you mean convnext_atto"),
        ("google/vit-base-patch16-224", "such as transformers/ViTForImageClassification"),
        ("microsoft/resnet-50", "such as transformers/ResNetForImageClassification"),
        ("facebook/dinov2-base", "such as transformers/Dinov2ForImageClassification"),
        ("no_such_file.py:make", "There is no file no_such_file.py"),
        ("no_such_package.models:make", "There is no module 'no_such_package'"),
        ("own_models:mak", "own_models has no 'mak'. Did you mean make"),
        ("own_models:", "a part is missing"),
        ("own_models:number", "neither callable nor a module"),
        ("own_models:broken", "own_models:broken() raised KeyError: 'a reason'"),
        ("own_models:wrong", "own_models:wrong() returned a int"),
    ],
)
def test_unknown_models(own, model, message):
    assert message in fails("sites", model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("transformers/VitModel", "Did you mean ViTModel"),
        ("transformers/ViTConfig", "transformers/ViTConfig is no model class"),
    ],
)
def test_unknown_transformers_models(model, message):
    pytest.importorskip("transformers")
    assert message in fails("sites", model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rule", "blcks"], "There is no rule 'blcks'"),
        (["--rule", "downsample"], "selects nothing"),
        (["--layout", "NQ"], "'NQ' is not a layout"),
        (["--input-size", "abc"], "'abc' is not a size"),
        (["--input-size", "5,9,9"], "failed on the given inputs"),
    ],
)
def test_errors_of_placement(own, options, message):
    text = " ".join(fails("sites", f"{own}:make", *options).replace("│", " ").split())
    assert message in text


def test_an_input_that_cannot_be_worked_out_names_the_option(own):
    Path("odd.py").write_text("from torch import nn\nmake = nn.ReLU\n", "utf-8")
    assert "--input-size" in fails("sites", "odd:make")


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("onnxscript", 'pip install "vcreg-fx[export]"'),
        ("safetensors.torch", 'pip install "vcreg-fx[export]"'),
        ("distributed", 'pip install "vcreg-fx[dask]"'),
        ("lightly.loss", 'pip install "vcreg-fx[ssl]"'),
        ("transformers", 'pip install "vcreg-fx[transformers]"'),
        ("av", 'pip install "vcreg-fx[video]"'),
        ("some_package", "pip install some-package"),
    ],
)
def test_a_missing_package_is_named_by_its_extra(monkeypatch, capsys, package, command):
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    extras = text[text.index("[project.optional-dependencies]") : text.index("[project.scripts]")]
    requirements = [  # as the metadata of an installed package lists them
        f"{requirement}; extra == '{name}'"
        for name, listed in re.findall(r"^(\w+) = \[(.*?)\n?\]$", extras, re.DOTALL | re.MULTILINE)
        for requirement in re.findall(r'"([^"]+)"', listed)
    ]
    assert len(requirements) > 15
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requirements)
    with pytest.raises(typer.Exit) as caught, clear_errors():
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    assert caught.value.exit_code == 1
    found = " ".join(capsys.readouterr().err.split())
    assert found.startswith("Error: ") and found.endswith(f"is needed for this: {command}")


def test_the_coverage_of_a_missing_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = CliRunner().invoke(app, ["coverage", "--source", "transformers"])
    assert isinstance(result.exception, (SystemExit, ModuleNotFoundError))
    assert result.exit_code == 1 and "failed" not in result.output


def test_mistakes_of_the_library_are_not_hidden():
    with pytest.raises(ZeroDivisionError), clear_errors():
        raise ZeroDivisionError


# The command --------------------------------------------------------------------------------


def vcreg_fx_command(*arguments, check=True, **environment):
    """Run the command in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "vcreg_fx", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        check=False,
    )
    assert not check or result.returncode == 0, result.stderr
    return result


def test_python_dash_m():
    text = vcreg_fx_command("--help").stdout.decode()
    for word in ("sites", "demo", "--version", "--install-completion"):
        assert word in text


def test_the_version():
    assert run("--version").stdout == f"vcreg-fx {vcreg_fx.__version__}\n"


COMPLETION = """
import sys
from vcreg_fx.cli import main
try:
    main()
finally:
    print(sorted(set(sys.modules) & {"torch", "numpy"}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("shell", "written", "place", "expected"),
    [
        ("bash", "vcreg-fx e", 1, ["evaluate", "export"]),
        ("bash", "vcreg-fx draw --for", 2, ["--format"]),
        ("zsh", "vcreg-fx cov", 1, ["coverage"]),
        ("fish", "vcreg-fx rep", 1, ["reproduce"]),
    ],
)
def test_completion_needs_no_torch(shell, written, place, expected):
    asked = {
        "_VCREG_FX_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": written,
        "COMP_CWORD": str(place),
        "_TYPER_COMPLETE_ARGS": written,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": written.split()[-1],
    }
    result = subprocess.run(
        [sys.executable, "-c", COMPLETION],
        env={**os.environ, "PYTHONPATH": str(ROOT), **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert all(name in result.stdout for name in expected), result
    assert result.stderr.splitlines()[-1] == "[]"


PLAIN = {"LC_ALL": "C", "LANG": "", "PYTHONUTF8": "0", "PYTHONIOENCODING": "", "COLUMNS": "80"}


def test_help_in_plain_letters():
    """A terminal that has no Greek letters and no frames."""
    text = vcreg_fx_command("measure", "--help", **PLAIN).stdout.decode("ascii")
    assert "alpha, of the variance loss" in text
    result = vcreg_fx_command("measure", "x", "--alpha", "α", check=False, **PLAIN)
    assert result.returncode == 2
    assert "--alpha" in result.stderr.decode("ascii") and b"Traceback" not in result.stderr


@pytest.mark.slow
def test_commands_in_plain_letters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = "timm/test_convnext"
    text = vcreg_fx_command("sites", model, **PLAIN).stdout.decode("ascii")
    assert "2 x 24 x 40 x 40" in text
    text = vcreg_fx_command("measure", model, "--batch", "2", **PLAIN).stdout.decode("ascii")
    assert "of alpha" in text
    vcreg_fx_command("draw", model, "-o", "é.svg", **PLAIN)
    assert Path("é.svg").stat().st_size > 1000


NARROW = 44


@pytest.mark.parametrize(
    "arguments",
    [
        ["sites", "timm/test_convnext", "--rule", "blocks | head"],
        ["sites", "timm/test_vit", "--rule", "blcks"],
        ["measure", "timm/test_convnext", "--batch", "2", "--calibrate", "0.1"],
        ["draw", "timm/test_vit", "-o", "m.dot"],
        ["coverage", "--json", "rows.json"],
        ["ablate", "report", "store"],
    ],
)
def test_no_line_is_wider_than_the_terminal(tmp_path, monkeypatch, arguments):
    """But for single words, such as paths, and Python to copy."""
    from vcreg_fx import ablation
    from vcreg_fx.cli import _zoo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_zoo, "zoo", lambda source, everything: ["timm/test_vit", "timm/vgg11"])
    if arguments[0] == "ablate":
        ablation.ablate(
            lambda: torch.nn.Linear(2, 2),
            lambda model, trial: None,
            lambda model, trial: {f"a metric with a long name {k}": k / 3 for k in range(4)},
            rules=["head"],
            store="store",
            options=ablation.AblationOptions(example_inputs=(torch.zeros(4, 2),)),
        )
    result = CliRunner(env={"COLUMNS": str(NARROW)}).invoke(app, arguments)
    text, _, _ = result.output.partition("What to pass to insert:")
    assert len(text.splitlines()) > 1
    for line in text.splitlines():
        assert len(line.rstrip()) <= NARROW or len(line.split()) == 1, line


# Ctrl-C -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sites", "x"], "Nothing was kept; the same command begins anew."),
        (["coverage"], "Nothing was kept; with --json FILE the same command goes on where it was."),
        (["coverage", "--json", "r.json"], "The same command goes on where it was: r.json."),
        (["ablate", "--store", "mine"], "The same command goes on where it was: mine."),
        (["ablate", "report", "mine"], "Nothing was kept; the same command begins anew."),
        (["reproduce", "hierarchy"], "The same command goes on where it was."),
    ],
)
@pytest.mark.parametrize("hidden", [False, True])
def test_a_stop_ends_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, sentence, hidden):
    """Also where an import has made another error of it."""
    monkeypatch.chdir(tmp_path)

    def stopped(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if hidden:
                raise ImportError("numpy is half there")  # noqa: B904
            raise

    root = command = get_command(app)
    for name in arguments:
        command = getattr(command, "commands", {}).get(name, command)
    monkeypatch.setattr(command, "callback", stopped)
    with pytest.raises(SystemExit) as caught:
        root.main(arguments, prog_name="vcreg-fx")
    assert caught.value.code == 130
    assert " ".join(capsys.readouterr().err.split()) == f"Stopped. {sentence}"


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_stops_a_study_in_a_sentence(tmp_path, workers):
    """As Ctrl-C does: it goes to the workers, too."""
    store = tmp_path / "store"
    asked = ["ablate", "--steps", "2000", "--workers", workers, "--store", str(store)]
    process = subprocess.Popen(
        [sys.executable, "-m", "vcreg_fx", *asked],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "400"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(600):
        if list(store.glob("claims/*")) or process.poll() is not None:
            break
        time.sleep(0.5)
    time.sleep(8)  # into the first trial
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out == "" and "Traceback" not in err
    assert err.splitlines()[-1] == f"Stopped. The same command goes on where it was: {store}."
    assert err.count("Stopped") == 1


# The picture --------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_draw_an_inserted_model(tmp_path, ending):
    from vcreg_fx.exporting import draw

    model = load_model("timm/test_vit")
    vcreg_fx.insert(model, "blocks")
    vcreg_fx.insert(model, "head")
    path = tmp_path / f"model.{ending}"
    draw(model, path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if ending == "png" else b"<?xml")


def test_outline_shows_every_site_once():
    from vcreg_fx.exporting._outline import outline

    for name, rule in [
        ("timm/convnext_atto", "blocks | downsample | head"),
        ("torchvision/vit_b_32", "residual"),
        ("torchvision/vgg11", "head"),
        ("torchvision/swin_t", "VCReg4"),
    ]:
        plan = vcreg_fx.plan(load_model(name, meta=True), rule)
        parts = outline(plan.recording, plan.sites)
        marks = [site.name for part in parts for site in part.marks]
        assert sorted(marks) == sorted(site.name for site in plan.sites)


def test_outline_of_convnext():
    from vcreg_fx.exporting._outline import outline

    plan = vcreg_fx.plan(load_model("timm/convnext_atto", meta=True), "blocks")
    parts = outline(plan.recording, plan.sites)
    assert [part.kind for part in parts].count("block") == 12
    assert [part.kind for part in parts].count("downsample") == 3
    stages = [f"stages.{k}" for k in range(4)]
    assert [frame for frame in dict.fromkeys(part.frame for part in parts) if frame] == stages
    assert (parts[0].path, parts[0].shape, parts[0].layout) == ("stem", "N × 40 × 56 × 56", "NCHW")


def test_pages_hold_every_part():
    from vcreg_fx.exporting._draw import make_page
    from vcreg_fx.exporting._outline import Part

    for count in (1, 2, 14, 15, 40, 101):
        for frame_length in (1, 3, 200):
            parts = [
                Part(f"s{k // frame_length}.{k}", "Block", "block", "N × 3", "NC")
                for k in range(count)
            ]
            for part in parts:
                part.frame = part.path.partition(".")[0]
            page = make_page(parts)
            assert [box.part for box in page.boxes] == parts
            assert all(0 < box.y < page.height and 0 < box.x < page.width for box in page.boxes)


def test_arrows_cross_no_text():
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

    from vcreg_fx.exporting._draw import _paint, make_page
    from vcreg_fx.exporting._outline import Part

    frames = [
        "",
        "stages.0",
        "vision_model.encoder.layers",
        "a.name.of.forty.letters.and.more.of.them",
    ]
    parts = [Part(f"{f}.{k}", "Block", "block", "N × 3", "NC", f) for f in frames for k in range(5)]
    page = make_page(parts)
    figure = _paint(page, "A name", "a rule", True)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    texts = [t for t in axes.texts if t.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    arrows = [t.arrow_patch.get_window_extent() for t in axes.texts if isinstance(t, Annotation)]
    for line in axes.lines:
        corners = axes.transData.transform(line.get_xydata())
        arrows += [Bbox([a, b]).padded(0.5) for a, b in itertools.pairwise(corners)]
    assert len(arrows) > len(parts)
    for text, box in zip(texts, boxes, strict=True):
        assert not any(box.overlaps(arrow) for arrow in arrows), text.get_text()
        assert box.x1 < figure.bbox.x1, text.get_text()


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("timm/convnext_atto", "convnext_atto"),
        ("convnext_atto", "convnext_atto"),
        ("torchvision/resnet18", "resnet18"),
        ("own_models:make", "Sequential"),
    ],
)
def test_pictures_are_named_after_the_model(own, name, title):
    assert run("draw", name, "-o", "m.dot", "--input-size", "3,64,64").exit_code == 0
    assert Path("m.dot").read_text("utf-8").startswith(f'digraph "{title}" {{')


def test_models_know_their_names(tmp_path):
    vcreg_fx.draw(load_model("timm/test_vit", meta=True), tmp_path / "m.dot")
    assert (tmp_path / "m.dot").read_text("utf-8").startswith('digraph "test_vit" {')


def test_draw_without_a_site_leaves_the_model_alone(tmp_path):
    from vcreg_fx.exporting import draw

    model = torch.nn.Linear(4, 2)
    draw(model, tmp_path / "linear.png")
    assert (tmp_path / "linear.png").stat().st_size > 1000


def test_coverage_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    from vcreg_fx.cli import _zoo

    names = ["timm/resnet18", "timm/vgg11", "timm/vit_tiny_patch16_224"]
    monkeypatch.setattr(_zoo, "zoo", lambda source, everything: names)
    file = tmp_path / "rows.json"
    result = run("coverage", "--json", str(file))
    assert result.exit_code == 0
    assert (
        "2 of 3 models planned (66.7 %), 1 without such a site, 0 refused with a reason, 0 failed."
    ) in result.output
    assert "8 boundary" in result.output and "plain stack" in file.read_text()
    rows = json.loads(file.read_text())["rows"]
    assert [(row["model"], row["outcome"], row["sites"]) for row in rows] == [
        (names[0], "planned", 8),
        (names[1], "none", 0),
        (names[2], "planned", 12),
    ]

    rows[0]["sites"] = 99  # a row that is there is not measured again
    del rows[2]
    file.write_text(json.dumps({"rows": rows}))
    assert "99" in run("coverage", "--json", str(file)).output
    again = json.loads(file.read_text())["rows"]
    assert [row["sites"] for row in again] == [99, 0, 12]
    assert run("coverage", "--json", str(file), "--rule", "head").exit_code == 0
    assert len(json.loads(file.read_text())["rows"]) == 6


def test_coverage_tells_a_failure_from_a_refusal(monkeypatch):
    from vcreg_fx.cli import _row, _zoo

    def broken(*_, **__):
        raise ZeroDivisionError("a mistake of the library")

    monkeypatch.setattr(_zoo, "zoo", lambda source, everything: ["timm/resnet18"])
    monkeypatch.setattr(_row, "plan", broken)
    result = run("coverage")
    assert result.exit_code == 1
    assert "failed" in result.output and "ZeroDivisionError" in result.output


def test_coverage_tells_models_without_a_site_from_refusals(monkeypatch):
    from vcreg_fx.cli import _row

    assert _row.coverage_of("timm/vgg11", "residual").outcome == "none"

    def refuses(*_, **__):
        raise vcreg_fx.InsertionError("it is a lambda")

    monkeypatch.setattr(_row, "plan", refuses)
    row = _row.coverage_of("timm/resnet18", "residual")
    assert (row.outcome, row.reason) == ("refused", "it is a lambda")


def test_coverages_a_training_step(tmp_path, monkeypatch):
    from vcreg_fx.cli import _row, _zoo

    names = ["timm/resnet18", "timm/vgg11"]
    monkeypatch.setattr(_zoo, "zoo", lambda source, everything: names)
    file = tmp_path / "rows.json"
    options = ("coverage", "--rule", "residual", "--json", str(file))
    assert "bit for bit" not in run(*options).output
    result = run(*options, "--check")  # rows without a check are measured again
    assert result.exit_code == 0 and "1 of 1 models checked" in result.output
    rows = {row["model"]: row for row in json.loads(file.read_text())["rows"]}
    assert [rows[name]["outcome"] for name in names] == ["planned", "none"]
    assert float(rows[names[0]]["check"].split()[0]) < 1e-5

    naive = _row.vcreg_loss
    monkeypatch.setattr(_row, "vcreg_loss", lambda *a, **k: 1.01 * naive(*a, **k))
    names[:] = ["timm/resnet18"]
    result = run("coverage", "--rule", "residual", "--check")
    assert result.exit_code == 1 and "the gradient is off by" in result.output
    monkeypatch.setattr(_row, "vcreg_loss", naive)

    class Tells(torch.nn.Module):
        """Gives another output where VCReg has been inserted."""

        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x):
            x = x + self.linear(x)
            return x.tanh() * (2 if hasattr(type(self), "vcreg_original") else 1)

    example = (torch.randn(6, 4),), {}
    model = torch.nn.Sequential(Tells(), torch.nn.Linear(4, 2))
    monkeypatch.setattr(_row, "small", lambda name: (model, example))
    assert _row.check("own", "residual") == (False, "outputs differ in eval mode")


def test_the_zoo_holds_what_is_covered():
    from vcreg_fx.cli._zoo import zoo

    timm = zoo("timm", everything=True)
    one_each = zoo("timm", everything=False)
    assert len(timm) > 1000 and 90 < len(one_each) < 120 and set(one_each) < set(timm)
    transformers = zoo("transformers", everything=True)
    for family in ("VideoMAE", "Vivit", "Timesformer", "Segformer", "Dinov2", "CLIPVision"):
        assert any(family in name for name in transformers)
    assert "torchvision/mvit_v2_s" in zoo("torchvision", everything=True)
    fails("coverage", "--source", "elsewhere")


def test_measure(tmp_path):
    rows = json.loads(run("measure", "timm/resnet10t", "--batch", "4", "--json").output)
    assert [row["d"] for row in rows] == [64, 128, 256, 512]
    assert all(row["ratio"] > 0 and row["correlation"] > 0 for row in rows)
    state = load_model("timm/resnet10t").state_dict()
    torch.save(state, tmp_path / "weights.pt")
    result = run("measure", "timm/resnet10t", "--checkpoint", str(tmp_path / "weights.pt"))
    assert "VCReg / task" in result.output and "layer4.0:output" in result.output


def test_measure_says_when_noise_is_no_input():
    message = fails("measure", "transformers/BertModel", "--rule", "blocks")
    assert "vcreg_fx.measure(model, inputs, loss)" in message


@pytest.mark.parametrize("ending", ["dot", "gv"])
def test_draw_as_dot(tmp_path, ending):
    path = tmp_path / f"model.{ending}"
    vcreg_fx.draw(vcreg_fx.plan(load_model("torchvision/vit_b_32", meta=True), "residual"), path)
    text = path.read_text("utf-8")
    assert text.startswith('digraph "VisionTransformer" {') and text.endswith("}\n")
    assert text.count("{") == text.count("}") == 2  # the graph, and the encoder as a cluster
    assert text.count(r"VCReg: add, output, d = 768") == 12
    nodes = [
        line for line in text.splitlines() if line.strip().startswith("n") and "[label" in line
    ]
    assert text.count(" -> ") == len(nodes) - 1 == 14


def test_pictures_in_unknown_formats(tmp_path):
    plan = vcreg_fx.plan(load_model("timm/test_vit", meta=True), "blocks")
    with pytest.raises(vcreg_fx.ExportError, match=r"'bmp' is no format.*\.svg, \.png"):
        vcreg_fx.draw(plan, tmp_path / "model.bmp")
    vcreg_fx.draw(plan, tmp_path / "model.bmp", format="png")
    assert (tmp_path / "model.bmp").read_bytes().startswith(b"\x89PNG")


def test_draw_shows_what_was_inserted_by_any_rule(tmp_path):
    model = load_model("timm/test_vit")
    vcreg_fx.insert(model, placement_rules.custom(placement_rules.blocks.find))
    vcreg_fx.draw(model, tmp_path / "model.dot")
    assert (tmp_path / "model.dot").read_text("utf-8").count("VCReg: output") == 6


def test_long_stages_fill_their_columns():
    from vcreg_fx.exporting._draw import make_page
    from vcreg_fx.exporting._outline import outline

    plan = vcreg_fx.plan(load_model("torchvision/vit_b_32", meta=True), "blocks")
    page = make_page(outline(plan.recording, plan.sites))
    columns = [box.column for box in page.boxes]
    assert [columns.count(0), columns.count(1)] == [8, 7]
    assert [(frame.name, frame.continued) for frame in page.frames] == [
        ("encoder", False),
        ("encoder", True),
    ]


# draw and export ----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["svg", "png", "dot"])
def test_draw_command(tmp_path, ending):
    path = tmp_path / f"model.{ending}"
    result = run("draw", "timm/test_convnext", "--rule", "blocks | downsample", "-o", str(path))
    assert result.exit_code == 0
    assert "12 sites for the rule blocks | downsample\n" in result.stdout
    assert result.stdout.endswith(f"Written: {path}\n")
    assert path.stat().st_size > 500


def test_draw_command_reports_errors(tmp_path):
    assert "no format" in fails("draw", "timm/test_vit", "-o", str(tmp_path / "model.bmp"))
    text = fails("draw", "timm/test_vit", "-o", str(tmp_path / "nowhere" / "model.svg"))
    assert "There is no folder" in text


@pytest.mark.parametrize(("form", "name"), [("fx", "folder"), ("pt2", "model"), ("onnx", "m")])
def test_export_command(own, tmp_path, form, name):
    from vcreg_fx.exporting import read_metadata

    model = load_model(f"{own}:make")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, "c.pt")
    path = tmp_path / (name if form == "fx" else f"{name}.{form}")
    result = run(
        *["export", f"{own}:make", "--format", form, "-o", str(path), "--input-size", "3,12,12"],
        *["--checkpoint", "c.pt", "--alpha", "0.32"],
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"Sequential: 2 sites, checked\nWritten: {path}\n"
    assert "random" not in result.stderr
    assert {site["alpha"] for site in read_metadata(path)["sites"]} == {0.32}
    if form == "pt2":
        x = torch.randn(3, 3, 12, 12)
        assert torch.equal(torch.export.load(path).module()(x), model.eval()(x))


def test_models_are_built_as_asked(tmp_path, monkeypatch):
    """A checkpoint of other classes than the model's usual ones needs ``--set``."""
    monkeypatch.chdir(tmp_path)
    settings = ["--set", "num_classes=7", "--set", "in_chans=1"]
    model = load_model("timm/test_convnext", options={"num_classes": 7, "in_chans": 1})
    torch.save(model.state_dict(), "w.pt")
    common = ["timm/test_convnext", "--rule", "head"]
    result = run("export", *common, "--checkpoint", "w.pt", "-o", "m.pt2", *settings)
    assert result.exit_code == 0, result.stderr
    assert torch.export.load("m.pt2").module()(torch.randn(2, 1, 160, 160)).shape == (2, 7)
    assert "--set num_classes=10" in fails("export", *common, "--checkpoint", "w.pt", "-o", "m.pt2")
    assert run("draw", *common, "-o", "m.dot", *settings).exit_code == 0
    assert "N × 7" in Path("m.dot").read_text("utf-8")
    assert run("sites", *common, *settings, "--json").exit_code == 0
    size = ["--input-size", "1,64,64", "--batch", "2"]
    result = run("measure", *common, "--checkpoint", "w.pt", *settings, *size)
    assert result.exit_code == 0, result.stderr
    for command in ("export", "draw", "sites", "measure"):
        output = ["-o", "m.svg"] if command in {"export", "draw"} else []
        assert "is no setting" in fails(command, *common, *output, "--set", "num_classes")


@pytest.mark.parametrize("command", ["export", "measure"])
def test_coefficients_below_zero(command):
    output = ["-o", "m.pt2"] if command == "export" else []
    assert "--alpha" in fails(command, "timm/test_convnext", "--alpha", "-1", *output)


def test_export_command_of_training(own, tmp_path):
    path = tmp_path / "t.pt2"
    path.write_text("notes")
    command = ["export", f"{own}:make", "-o", str(path), "--input-size", "3,12,12", "--training"]
    assert "overwrite" in fails(*command) and path.read_text() == "notes"
    result = run(*command, "--overwrite")
    assert result.exit_code == 0 and "random" in result.stderr
    targets = [node.target for node in torch.export.load(path).graph.nodes]
    assert targets.count(torch.ops.vcreg_fx.vcreg.default) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(1)}, "it lacks 0.weight, 0.bias"),
        ({"model": {"epoch": 3}}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        (torch.nn.Linear(2, 2), "cannot be read as weights"),
    ],
)
def test_checkpoints_that_do_not_fit(own, content, message):
    torch.save(content, "c.pt")
    assert message in fails("export", f"{own}:make", "-o", "m.pt2", "--checkpoint", "c.pt")


def test_checkpoints_of_other_kinds(own):
    from safetensors.torch import save_file

    from vcreg_fx.cli._model import load_checkpoint

    model, other = load_model(f"{own}:make"), load_model(f"{own}:make")
    save_file(model.state_dict(), "c.safetensors")
    load_checkpoint(other, Path("c.safetensors"))
    assert torch.equal(other[0].weight, model[0].weight)
    Path("broken.safetensors").write_bytes(b"nothing")
    Path("broken.pt").write_bytes(b"nothing")
    for file in ("broken.safetensors", "broken.pt"):
        text = fails("export", f"{own}:make", "-o", "m.pt2", "--checkpoint", file)
        assert "cannot be read as weights" in text
    model[0] = torch.nn.Conv2d(3, 8, 5)
    torch.save(model.state_dict(), "c.pt")
    text = fails("export", f"{own}:make", "-o", "m.pt2", "--checkpoint", "c.pt")
    assert "0.weight (8, 3, 5, 5) instead of (8, 3, 3, 3)" in text
    assert "nowhere.pt: No such file" in fails(
        "export", f"{own}:make", "-o", "m.pt2", "--checkpoint", "nowhere.pt"
    )
