"""A file that names superclasses, for subsets of ImageNet."""

from __future__ import annotations

import json
from pathlib import Path

from ._errors import DataError


def read_classes(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read superclasses from a JSON file: ``{"dog": ["n02085620", …], …}``.

    The names are those of the class folders. Only these classes are used.

    **Raises:** `DataError` if the file holds something else, or a class twice; `OSError` if it
    cannot be read.
    """
    form = '{"superclass": ["class folder", …], …}'
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is no JSON ({error}). A class file has the form {form}."
        ) from error
    if (
        not isinstance(found, dict)
        or len(found) < 2
        or not all(isinstance(names, list) and names for names in found.values())
    ):
        raise DataError(
            f"{path} must name two superclasses or more, with one class or more each: {form}."
        )
    classes = [str(name) for names in found.values() for name in names]
    if twice := sorted({name for name in classes if classes.count(name) > 1}):
        raise DataError(f"{path} names {', '.join(twice)} twice; a class has one superclass.")
    return {group: tuple(map(str, names)) for group, names in found.items()}
