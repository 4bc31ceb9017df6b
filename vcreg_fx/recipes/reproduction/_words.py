"""A report in plain words."""

from __future__ import annotations

import math
from typing import Any

from ._numbers import difference_of


def how(report: dict[str, Any]) -> str:
    """Return what was trained on what."""
    preset, training = report["preset"], report["preset"]["training"]
    images = preset["train_images"]
    drawn = f"{images:,} training images, drawn by the seed" if images else "all training images"
    if "points" in preset["options"]:
        drawn = f"{preset['options']['points']} points, drawn by the seed"
    return (
        f"{report['data']}, {drawn}; network `{preset['network']}`; {training['epochs']} epochs of "
        f"{training['optimizer']}, batches of {training['batch_size']}, learning rate "
        f"{training['learning_rate']:g}, weight decay {training['weight_decay']:g}."
    )


def conclusions(report: dict[str, Any]) -> list[str]:
    """Return a sentence an arm: what its interval says, whichever way it went."""
    metric = next(m for m in report["metrics"] if m["name"] == report["criterion"])
    first = report["rows"][0]
    return [_conclusion(row, first, metric) for row in report["rows"][1:]]


def _conclusion(row: dict[str, Any], first: dict[str, Any], metric: dict[str, Any]) -> str:
    found = difference_of(row, first, metric["name"])
    scale, unit = (100, " points") if metric["percent"] else (1, "")
    mean, low, high = (scale * value for value in (found.mean, found.low, found.high))
    span = f"{mean:+.2f}{unit} [{low:+.2f}, {high:+.2f}]".replace("-", "−")
    higher = metric["higher"] is not False
    if math.isnan(low):
        verdict = "there are too few seeds to say more"
    elif low > 0 or high < 0:
        verdict = "it helped" if (low > 0) == higher else "**it did harm**"
    else:
        verdict = "no effect can be told from chance"
    settings = ", ".join(f"{k} = {v}" for k, v in row["settings"].items())
    chosen = f" ({settings})" if settings else ""
    return f"{row['name']}{chosen}, {metric['title']}: {span}; {verdict}."


def searched(report: dict[str, Any]) -> str:
    """Return every attempt of the search."""
    metric = next(m for m in report["metrics"] if m["name"] == report["criterion"])
    lines = []
    for part in report["search"]:
        if not part["attempts"]:
            continue
        varying = [
            name
            for name in part["attempts"][0]["settings"]
            if len({str(a["settings"][name]) for a in part["attempts"]}) > 1
        ]
        tried = "; ".join(_attempt(attempt, varying, metric) for attempt in part["attempts"])
        lines.append(f"- {part['name']}: {tried}.")
    if not lines:
        return ""
    runs = report["preset"]["search_seeds"]
    return (
        f"The search, {metric['title']} on validation data, {runs} run{'s' * (runs > 1)} a "
        "point; the best was tested:\n\n" + "\n".join(lines)
    )


def _attempt(attempt: dict[str, Any], varying: list[str], metric: dict[str, Any]) -> str:
    settings = ", ".join(f"{name} {attempt['settings'][name]:g}" for name in varying)
    return f"{settings}: {_value(attempt['mean'], metric)}"


def repeat(report: dict[str, Any]) -> str:
    """Return how to do it again."""
    options = {"quick": " --quick", "paper": " --preset paper"}.get(report["scale"], "")
    if report["data"] != "two moons":
        options += f" --data {report['preset']['data']}"
    seeds = report["preset"]["seeds"]
    versions = ", ".join(f"{name} {found}" for name, found in report["versions"].items())
    return (
        f"```bash\nvcreg-fx reproduce {report['experiment']}{options} --seeds {seeds}\n```\n\n"
        f"Versions: {versions}."
    )


def _value(value: float, metric: dict[str, Any]) -> str:
    if not math.isfinite(value):
        return "failed"
    return f"{100 * value:.2f} %" if metric["percent"] else f"{value:.3f}"
