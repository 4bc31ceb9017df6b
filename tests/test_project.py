"""The shape of the project: what imports what, what lies where, and what the README promises."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ("functional", "gradient", "site", "surgery", "exporting", "_shared")
UPPER = tuple(
    f"vcreg_fx.{name}"
    for name in (
        "ablation",
        "benchmark",
        "evaluation",
        "integrations",
        "experiments",
        "cli",
    )
)
FLOORS = ("axes", "recording", "structure", "rules")  # of placement_rules, the lowest first
WITHOUT_CIRCLES = ("placement_rules", "vcreg_fx")
CORE_FLOORS = ("functional", "gradient", "site", "surgery", "exporting")  # of vcreg_fx
TOP_LEVEL = {
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "docs",
    "mkdocs.yml",
    "placement_rules",
    "pyproject.toml",
    "tests",
    "vcreg_fx",
}


# What imports what --------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["vcreg_fx", "placement_rules"])
def test_import_is_light(package):
    """Importing the library imports nothing heavy, and using it torch and what torch imports."""
    heavy = {"torchvision", "timm", "sklearn", "matplotlib", "typer", "rich", "transformers"}
    heavy |= {"onnx", "onnxruntime", "onnxscript", "safetensors"}
    heavy |= {"accelerate", "lightning", "pytorch_lightning"}
    code = (
        f"import sys, {package}; print('torch' in sys.modules); dir({package})\n"
        f"print('torch' in sys.modules, *sorted(set(sys.modules) & {heavy}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("package", ["vcreg_fx", "placement_rules"])
def test_a_star_imports_every_public_name(package):
    names: dict[str, object] = {}
    exec(f"from {package} import *", names)
    module = importlib.import_module(package)
    public = {name for name in dir(module) if not name.startswith("_")}
    assert {"vcreg_fx": "insert", "placement_rules": "blocks"}[package] in public
    assert public <= set(names)


def test_operators_are_known_where_torch_was_imported_before():
    """``torch.export.load`` finds the operators of a program by their names alone."""
    code = "import torch, vcreg_fx; print(torch.ops.vcreg_fx.vcreg)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def imported_names(source: str, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield line and absolute name of everything that a module's source imports, at any depth."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"


def imports_below(forbidden: tuple[str, ...], paths: list[Path]) -> list[str]:
    """Return where the files below the paths import a forbidden module or something inside it."""
    found = []
    files = {file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])}
    for file in sorted(files):
        parts = file.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        for line, name in imported_names(file.read_text("utf-8"), module, is_package=is_package):
            if any(name == other or name.startswith(f"{other}.") for other in forbidden):
                found.append(f"{file.relative_to(ROOT)}:{line} imports {name}")
    return found


def imports_between(package: Path) -> dict[str, set[str]]:
    """Return, for every module of a package, those of it that it imports, at any depth."""
    files = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    found = {}
    for module, file in files.items():
        is_package = file.name == "__init__.py"
        names = imported_names(file.read_text("utf-8"), module, is_package=is_package)
        pairs = [(name, name.rpartition(".")[0]) for _, name in names]
        found[module] = {name if name in files else owner for name, owner in pairs} & set(files)
    return found


def circles(imports: dict[str, set[str]]) -> Iterator[set[str]]:
    """Yield what of one folder, modules or folders in it, imports each other in a circle.

    What lies in a folder is looked at as one, so that two folders form no circle either. The face
    of a folder, its ``__init__``, is a module in it.
    """
    inside: dict[tuple[str, ...], dict[str, set[str]]] = {}
    for module, others in imports.items():
        for other in others - {module}:
            here, there = (f"{name}.__init__".split(".") for name in (module, other))
            depth = next(i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b)
            folder = inside.setdefault(tuple(here[:depth]), {})
            folder.setdefault(here[depth], set()).add(there[depth])
            folder.setdefault(there[depth], set())
    for above in inside.values():
        while free := [name for name, others in above.items() if not others & set(above)]:
            for name in free:
                del above[name]
        if above:
            yield set(above)


@pytest.mark.parametrize("package", WITHOUT_CIRCLES)
def test_nothing_imports_in_a_circle(package):
    """Imports inside functions and under TYPE_CHECKING count."""
    assert list(circles(imports_between(ROOT / package))) == []


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"a": "from .b import x", "b": "import top.c", "c": ""}, []),
        ({"a": "from .b import x", "b": "def f():\n    from .a import y"}, [{"a", "b"}]),
        ({"a": "if TYPE_CHECKING:\n    from . import b", "b": "import top.a"}, [{"a", "b"}]),
        ({"__init__": "from .a import x", "a": "from . import x"}, [{"__init__", "a"}]),
        ({"r/a": "from ..s.b import x", "s/b": "", "s/c": "from ..r import a"}, [{"r", "s"}]),
        ({"r/a": "from .b import x", "r/b": "from top.r.a import y", "c": ""}, [{"a", "b"}]),
        ({"r/a": "from ..s import x", "s/__init__": "from .b import x", "s/b": ""}, []),
    ],
)
def test_circles_are_found(tmp_path, files, found):
    for name, source in files.items():
        file = tmp_path / "top" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    assert list(circles(imports_between(tmp_path / "top"))) == found


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_of_placement_rules_uses_those_below_it(floor):
    upper = FLOORS[FLOORS.index(floor) + 1 :]
    forbidden = tuple(f"placement_rules.{name}" for name in upper)
    assert imports_below(forbidden, [ROOT / "placement_rules" / floor]) == []


@pytest.mark.parametrize("floor", CORE_FLOORS)
def test_a_floor_of_the_core_uses_those_below_it(floor):
    upper = CORE_FLOORS[CORE_FLOORS.index(floor) + 1 :]
    path = ROOT / "vcreg_fx" / floor
    forbidden = tuple(f"vcreg_fx.{name}" for name in upper)
    assert imports_below(forbidden, [path if path.is_dir() else path.with_suffix(".py")]) == []


def test_the_shared_room_stands_on_nothing():
    rooms = [path.stem for path in (ROOT / "vcreg_fx").iterdir() if path.stem != "_shared"]
    forbidden = ("placement_rules", *(f"vcreg_fx.{name}" for name in rooms))
    assert imports_below(forbidden, [ROOT / "vcreg_fx" / "_shared"]) == []


def test_contributing_names_what_there_is():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    cells = [cell for line in text.splitlines() if line.startswith("|") for cell in line.split("|")]
    named = [name for cell in cells for name in re.findall(r"`([\w/.]+)`", cell)]
    paths = [name for name in named if "/" in name or name.endswith(".py")]
    assert len(paths) > 20
    for name in paths:
        below = ("", "vcreg_fx/", "placement_rules/", "vcreg_fx/experiments/")
        assert any((ROOT / folder / name).exists() for folder in below), name


def test_placement_rules_know_nothing_of_vcreg():
    """But for the four rules that carry its name."""
    paths = [ROOT / "placement_rules"]
    assert list(paths[0].glob("*.py"))
    assert imports_below(("vcreg_fx",), paths) == []
    for file in paths[0].rglob("*.py"):
        assert not re.findall(r"(?i)vcreg(?![1-4]\b).*", file.read_text("utf-8")), file


def test_the_core_knows_nothing_of_what_is_built_on_it():
    package = ROOT / "vcreg_fx"
    names = [path for path in package.iterdir() if path.stem in CORE]
    faces = {"__init__.py", "__main__.py"}
    private = [path for path in package.glob("_*.py") if path.name not in faces]
    assert names
    assert imports_below(UPPER, names + private) == []


def test_the_shared_room_knows_nothing_of_those_that_share_it():
    found = imports_below(("vcreg_fx",), [ROOT / "vcreg_fx" / "_shared"])
    assert [line for line in found if " imports vcreg_fx._shared." not in line] == []


HELP = """
import sys
from typer.main import get_command
from typer.testing import CliRunner
from vcreg_fx.cli._app import app
names = [[], *([name] for name in get_command(app).commands), ["ablate", "report"]]
for name in names:
    assert CliRunner().invoke(app, [*name, "--help"]).exit_code == 0, name
    found = CliRunner().invoke(app, [*name, "--no-such-option"])
    assert found.exit_code == 2 and "--no-such-option" in found.output, (name, found.output)
print(len(names), *sorted(set(sys.modules) & {"torch", "numpy", "matplotlib"}))
"""


def test_help_and_mistyped_options_need_no_torch():
    result = subprocess.run(
        [sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    count, *imported = result.stdout.split()
    assert int(count) >= 11
    assert imported == []


def test_errors_of_users_have_one_base():
    """The command line prints them as one message, and knows them by it."""
    own = {"SourceError"}  # of surgery, which turns it into an InsideError
    files = [*(ROOT / "placement_rules").rglob("*.py"), *(ROOT / "vcreg_fx").rglob("*.py")]
    classes = [
        node
        for file in files
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    ]
    found = {node.name: {ast.unparse(base) for base in node.bases} for node in classes}
    known = {"UserError"}
    while more := {name for name, bases in found.items() if bases & known} - known:
        known |= more
    assert {"InsertionError", "ExportError", "AblationError", "ModelError"} <= known
    assert set(found) - known == own


def test_what_is_imported_is_declared():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    lists = text[text.index("\ndependencies = [") : text.index("\n[project.scripts]")]
    declared = set(re.findall(r'"([a-z][\w-]*)[\[>]', lists))
    known = {*sys.stdlib_module_names, "placement_rules", "vcreg_fx"}
    names = {"sklearn": "scikit-learn", "distributed": "dask", "PIL": "pillow"}
    names["markdown_it"] = "markdown-it-py"
    files = [
        file for name in ("placement_rules", "vcreg_fx") for file in (ROOT / name).rglob("*.py")
    ]
    for file in files:
        for _, name in imported_names(file.read_text("utf-8"), "vcreg_fx.x.y.z", is_package=False):
            found = name.split(".")[0]
            if found not in known:
                assert names.get(found, found.replace("_", "-")) in declared, (file, name)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import a.b as c", "a.b"),
        ("from a import b", "a.b"),
        ("from . import b", "top.sub.b"),
        ("from .b import c", "top.sub.b.c"),
        ("from .. import b", "top.b"),
        ("from ..b import c", "top.b.c"),
        ("def f():\n    from ..b import c", "top.b.c"),
    ],
)
def test_imports_are_found(line, name):
    assert [found for _, found in imported_names(line, "top.sub.module", is_package=False)] == [
        name
    ]
    if "from ." in line:
        inside = imported_names(line, "top.sub", is_package=True)
        assert [found for _, found in inside] == [name]


# What lies where ----------------------------------------------------------------------------


def git(*arguments: str) -> str:
    """Return what git prints about the project; nothing where there is no git."""
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return result.stdout if result.returncode == 0 else ""


def top_level() -> set[str]:
    """Return what lies at the top: what git tracks, or without git all but what it would ignore."""
    repository = git("rev-parse", "--show-toplevel").strip()
    tracked = {file.split("/")[0] for file in git("ls-files", "-z").split("\0") if file}
    if tracked and Path(repository) == ROOT:
        return tracked
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    return {path.name for path in ROOT.iterdir()} - {line.strip("/") for line in ignored}


def test_top_level_stays_tidy():
    entries = {name for name in top_level() if not name.startswith(".")}
    assert entries <= TOP_LEVEL


# What the README promises -------------------------------------------------------------------


def readme_command(name: str) -> str:
    """Return the fenced bash block that follows a marker in the README."""
    marker = re.escape(f"<!-- command: {name} -->")
    readme = (ROOT / "README.md").read_text("utf-8")
    found = re.findall(rf"^{marker}\n```bash\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"README.md must have one bash block after <!-- command: {name} -->"
    return found[0].strip()


@pytest.mark.parametrize(
    ("name", "install", "run"),
    [("demo", "pip install .", "vcreg-fx demo"), ("test", 'pip install -e ".[dev]"', "pytest")],
)
def test_readme_commands_start_from_nothing(name, install, run):
    steps = [step.strip() for step in readme_command(name).split("&&")]
    assert steps[:3] == ["python3 -m venv .venv", ". .venv/bin/activate", install]
    assert steps[3].startswith(run)


@pytest.mark.parametrize("name", ["demo", "test"])
def test_ci_reads_the_readme(name):
    result = subprocess.run(
        ["bash", ROOT / ".ci" / "run", "--print-command", name],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == readme_command(name)


@pytest.mark.parametrize("right", [True, False])
def test_ci_runs_the_readmes_test_command_and_then_the_linters(tmp_path, right):
    """In a copy of a project whose linters are functions that say what they are asked for."""
    tools = ("ruff", "mypy", "mkdocs")
    linters = "".join(f"{name}() {{ echo {name} ran: $@; }}\n" for name in tools)
    (tmp_path / "activate").write_text(linters)
    steps = ["mkdir -p .venv/bin", "cp activate .venv/bin", "echo tests run"]
    block = " && ".join([*steps, *["false"] * (not right)])
    (tmp_path / "README.md").write_text(f"<!-- command: test -->\n```bash\n{block}\n```\n")
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / ".ci" / "lower_bounds.py").write_text("print('bounds ran')")
    command = ["bash", tmp_path / ".ci" / "run"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == (0 if right else 1), result.stderr
    asked = ("ruff ran: check", "ruff ran: format --check", "mypy ran:", "mkdocs ran: build")
    order = [result.stdout.index(text) for text in ("\ntests run", "bounds ran", *asked)]
    assert order == sorted(order)
    assert not (tmp_path / ".venv").exists(), "it is run in a copy"


# What the oldest dependencies are -------------------------------------------------------------


@pytest.fixture
def lower_bounds():
    pytest.importorskip("tomllib")  # since Python 3.11
    return runpy.run_path(str(ROOT / ".ci" / "lower_bounds.py"))


def test_ci_installs_the_lower_bounds_and_no_others(lower_bounds):
    declared = (ROOT / "pyproject.toml").read_text("utf-8")
    lowest = lower_bounds["lowest"]()
    assert {"torch", "timm", "transformers", "onnx", "pytest"} <= {
        requirement.split("==")[0] for requirement in lowest
    }
    for requirement in lowest:
        assert f'"{requirement.replace("==", ">=")}"' in declared


@pytest.mark.parametrize("requirement", ["a", "a>=1,<2", "a==1", "a>1", "a>=1; python_version>'3'"])
def test_a_requirement_without_a_lower_bound_is_refused(lower_bounds, requirement):
    with pytest.raises(ValueError, match="is no name with a lower bound"):
        lower_bounds["pinned"]([requirement])


def test_the_tests_for_the_lower_bounds_exist(lower_bounds):
    assert [name for name in lower_bounds["TESTS"] if not (ROOT / "tests" / name).exists()] == []
