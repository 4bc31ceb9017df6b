"""Run a good part of the tests with the oldest versions that pyproject.toml allows.

    python .ci/lower_bounds.py FOLDER    make an environment there, install, run the tests
    python .ci/lower_bounds.py --list    print what would be installed

Every dependency, those of the extra "test" among them, is installed in exactly its lower bound: a
bound that is too low, or is no release, fails here and not at a user's. What these need in turn is
left to the installer. Python 3.11 or newer reads pyproject.toml.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "test_private_names.py",
    "test_functional.py",
    "test_gradient.py",
    "test_inside.py",
    "test_numbers.py",
    "test_ratio.py",
    "test_get_config.py",
    "test_self_supervised.py",
    "test_video.py",
)
# torch 2.9 cannot compile some of it for every batch size: see Versions in docs/start.md.
LEFT_OUT = "not compiled"


def pinned(requirements: Iterable[str]) -> list[str]:
    """Return each requirement as ``name==bound``.

    **Raises:** `ValueError` for one that is more, or less, than a name with a lower bound.
    """
    found = []
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+(?:\[[\w,.-]+\])?)>=([\w.]+)", requirement)
        if match is None:
            raise ValueError(f"{requirement!r} in pyproject.toml is no name with a lower bound")
        found.append(f"{match[1]}=={match[2]}")
    return list(dict.fromkeys(found))


def required(project: dict[str, Any], extra: str) -> Iterator[str]:
    """Yield what a project requires with an extra, which may name other extras."""
    yield from project["dependencies"]
    waiting = [extra]
    while waiting:
        for requirement in project["optional-dependencies"][waiting.pop()]:
            own = re.fullmatch(re.escape(project["name"]) + r"\[(.+)\]", requirement)
            if own is None:
                yield requirement
            else:
                waiting += own[1].split(",")


def settings() -> dict[str, Any]:
    """Return what pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def lowest() -> list[str]:
    """Return the lower bound of every dependency that the tests need."""
    return pinned(required(settings()["project"], "test"))


def install(folder: Path) -> Path:
    """Make an environment with the lower bounds, and return its Python.

    uv installs, since it downloads side by side. What builds this project is at its bound, too.
    """
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    with tempfile.TemporaryDirectory() as notes:
        constraints = Path(notes, "build.txt")
        constraints.write_text("\n".join(pinned(settings()["build-system"]["requires"])), "utf-8")
        command = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python]
        command += ["--build-constraints", constraints, *lowest(), "--editable", ROOT]
        subprocess.run(command, check=True)
    return python


def main(target: str) -> int:
    """Install, run the tests, and return pytest's exit status."""
    print(*lowest(), flush=True)
    if target == "--list":
        return 0
    python = install(Path(target))
    tests = [f"tests/{name}" for name in TESTS]
    # The same examples each time: versions are compared here, and other examples drawn elsewhere.
    options = ["-q", "-n", "2", "--hypothesis-seed=0", "-k", LEFT_OUT]
    command = [python, "-m", "pytest", *options, *tests]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
