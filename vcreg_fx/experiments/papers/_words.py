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
    options = preset["options"]
    if "points" in options:
        drawn = f"{options['points']} points, drawn by the seed"
    if "largest" in options:
        drawn = (
            f"long-tailed: {options['largest']:,} images of the first class, "
            f"{options['imbalance']:g} times as many as of the last, drawn by the seed"
        )
    return (
        f"{report['data']}, {drawn}; network `{preset['network']}`; {training['epochs']} epochs of "
        f"{training['optimizer']}, batches of {training['batch_size']}, learning rate "
        f"{training['learning_rate']:g}, weight decay {training['weight_decay']:g}."
    )


def conclusions(report: dict[str, Any]) -> list[str]:
    """Return a sentence an arm: what its intervals say, whichever way they went."""
    metrics = [m for name in report["headline"] for m in report["metrics"] if m["name"] == name]
    sentences = []
    for row in report["rows"][1:]:
        settings = ", ".join(f"{k} = {v}" for k, v in row["settings"].items())
        said = "; ".join(_said(row, report["rows"][0], metric) for metric in metrics)
        sentences.append(f"{row['name']}{f' ({settings})' if settings else ''}: {said}.")
    return sentences


def _said(row: dict[str, Any], first: dict[str, Any], metric: dict[str, Any]) -> str:
    return f"{metric['title']} {span(row, first, metric)}, {verdict(row, first, metric)}"


def span(row: dict[str, Any], first: dict[str, Any], metric: dict[str, Any]) -> str:
    """Return a difference with its interval."""
    found = difference_of(row, first, metric["name"])
    scale, unit, digits = (100, " points", 2) if metric["percent"] else (1, "", 3)
    values = (scale * value for value in (found.mean, found.low, found.high))
    mean, low, high = (f"{value:+.{digits}f}" for value in values)
    return f"{mean}{unit} [{low}, {high}]".replace("-", "−")


def verdict(row: dict[str, Any], first: dict[str, Any], metric: dict[str, Any]) -> str:
    """Return what an interval says, in a word or two."""
    found = difference_of(row, first, metric["name"])
    if math.isnan(found.low):
        return "too few seeds to say more"
    if found.low > 0 or found.high < 0:
        return "better" if (found.low > 0) == (metric["higher"] is not False) else "**worse**"
    return "no clear effect"


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
