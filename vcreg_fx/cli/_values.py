"""Values as they are written on the command line."""

from __future__ import annotations

import json
from typing import Any


def parse_value(text: str) -> Any:
    """Return a number, true, false or null, as JSON or Python write them; else the string."""
    try:
        return json.loads({"None": "null", "True": "true", "False": "false"}.get(text, text))
    except json.JSONDecodeError:
        return text
