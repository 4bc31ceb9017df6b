"""The folder of one experiment: what it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ._errors import ReproductionError

_NAME = "experiment.json"
_FREE = ("seeds",)  # more seeds may be added to what is there
_FREE_TRAINING = ("workers", "device")


def claim_folder(folder: Path, asked: dict[str, Any]) -> None:
    """Make the folder of an experiment, or check that it is this one's.

    **Arguments:**

    - `asked`: ``experiment``, ``data`` and ``preset``, as plain data.

    **Raises:** `ReproductionError` if it holds another experiment, or other settings; `OSError` if
    it cannot be made.
    """
    path = folder / _NAME
    mine = json.loads(json.dumps(_comparable(asked)))
    if path.exists():
        theirs = json.loads(path.read_text("utf-8"))
        if other := _differences(theirs, mine):
            raise ReproductionError(
                f"{folder} holds another experiment: {'; '.join(other)}. Choose another folder "
                "with -o, or remove it."
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise ReproductionError(
            f"{folder} is not empty, and holds no experiment. Choose another folder with -o."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(mine, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _comparable(asked: dict[str, Any]) -> dict[str, Any]:
    preset = {name: value for name, value in asked["preset"].items() if name not in _FREE}
    training = {k: v for k, v in preset["training"].items() if k not in _FREE_TRAINING}
    return {**asked, "preset": {**preset, "training": training}}


def _differences(theirs: dict[str, Any], mine: dict[str, Any], where: str = "") -> list[str]:
    found = []
    for name in sorted({*theirs, *mine}):
        a, b = theirs.get(name), mine.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{where}{name}.")
        elif a != b:
            found.append(f"{where}{name} is {a!r} there, {b!r} here")
    return found
