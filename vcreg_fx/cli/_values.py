"""Values as they are written on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import typer


def parse_value(text: str) -> Any:
    """Return a number, true, false or null, as JSON or Python write them; else the string."""
    try:
        return json.loads({"None": "null", "True": "true", "False": "false"}.get(text, text))
    except json.JSONDecodeError:
        return text


def parse_settings(texts: Iterable[str] | None) -> dict[str, Any]:
    """Read ``NAME=VALUE``, again and again."""
    found = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise typer.BadParameter(
                f"{text!r} is no setting. Write NAME=VALUE: num_classes=10.", param_hint="--set"
            )
        found[name] = parse_value(value)
    return found
