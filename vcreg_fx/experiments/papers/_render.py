"""A report as Markdown: its numbers over seeds in tables, and what they say in plain words."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from ..._shared.statistics import Difference, difference_of, summary_of
from ..._shared.tables import difference_and_interval, markdown_table, mean_and_spread, written
from ..images import long_tail_counts

_MOST_CLASSES = 20  # in a table
UNTESTED = "every point of its search diverged"
_NOTE = (
    "Paired by seed, with the 95 % interval of the t-test; percentages in points. An interval "
    "without 0 is bold. No correction is made for the number of comparisons."
)


def render(report: dict[str, Any], *, verdicts: bool = True) -> str:
    """Return what was done, our numbers, the paper's, the differences, and what they say."""
    parts = [
        how(report),
        _ours(report),
        *_all_differences(report),
        _NOTE,
        _rival(report),
        _differences(report, "mean removal alone", _beyond_the_layer(report)),
        _per_class(report),
        said(report) if verdicts else "",
        _paper(report),
        searched(report),
        repeat(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shown(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        metric
        for metric in report["metrics"]
        if any(summary_of(row["by_seed"], metric["name"]).count for row in report["rows"])
    ]


def _ours(report: dict[str, Any]) -> str:
    metrics = _shown(report)
    header = ["ours", *(metric["title"] for metric in metrics), "seeds"]
    body = []
    for row in report["rows"]:
        cells = [
            mean_and_spread(
                found := summary_of(row["by_seed"], metric["name"]),
                partial(number, metric),
                " %" * metric["percent"],
            )
            + of_seeds(found.count, len(row["by_seed"]))
            for metric in metrics
        ]
        finished, lost = len(row["by_seed"]), row.get("diverged", 0)
        seeds = f"{finished}, {lost} diverged" if lost else str(finished)
        body.append([row["name"], *cells, f"0, {row['untested']}" if "untested" in row else seeds])
    note = "Mean ± standard deviation over seeds, on the test data."
    if any(row.get("diverged") for row in report["rows"]):
        note += " Seeds of which the training diverged are left out of an arm's numbers."
    if any(" of " in cell for cells in body for cell in cells[1:-1]):
        note += " (k of n): the number was finite with k seeds alone."
    return f"{markdown_table(header, body)}\n\n{note}"


def of_seeds(count: int, every: int) -> str:
    """Return how many seeds something is of, if not of all; nothing of none."""
    return f" ({count} of {every})" if 0 < count < every else ""


_Pairs = list[tuple[dict[str, Any], dict[str, Any]]]


def compared(report: dict[str, Any]) -> _Pairs:
    """Return each arm with the one that it is compared with, by default the first.

    An arm that others are compared with, though it is not the first, is compared with none.
    """
    by_name = {row["name"]: row for row in report["rows"]}
    first, *others = report["rows"]
    pairs = [(row, by_name.get(row.get("versus"), first)) for row in others]
    own = {other["name"] for _, other in pairs}
    return [(row, other) for row, other in pairs if row["name"] not in own]


def _all_differences(report: dict[str, Any]) -> list[str]:
    """Return a table of differences for each arm that others are compared with."""
    by_other: dict[str, _Pairs] = {}
    for row, other in compared(report):
        by_other.setdefault(other["name"], []).append((row, other))
    return [_differences(report, name, pairs) for name, pairs in by_other.items()]


def _rival(report: dict[str, Any]) -> str:
    """Return the differences of VCReg to the arm that it is to be compared with, too."""
    rows = [row for row in report["rows"] if row["name"] == report.get("rival")]
    ours = [row for row in report["rows"] if row["rule"] is not None]
    return _differences(report, rows[0]["name"], [(row, rows[0]) for row in ours]) if rows else ""


def _beyond_the_layer(report: dict[str, Any]) -> _Pairs:
    """Return each arm behind a mean removal layer with the one that has this layer alone."""
    removed = [row for row in report["rows"] if row["settings"].get("demean") == "activations"]
    alone = {_place(row): row for row in removed if row["settings"].get("alpha") == 0}
    return [
        (row, alone[_place(row)])
        for row in removed
        if row["settings"].get("alpha") and _place(row) in alone
    ]


def _place(row: dict[str, Any]) -> tuple[Any, Any]:
    return row["rule"], row.get("versus")


def _differences(report: dict[str, Any], first: str, pairs: _Pairs) -> str:
    """Return a table of differences, each of a row to another one; nothing without pairs."""
    metrics = _shown(report)
    body = [
        [
            row["name"],
            *(
                difference_and_interval(gain, partial(number, metric)) + _pairs(row, other, gain)
                for metric in metrics
                for gain in [_gain(row, other, metric)]
            ),
        ]
        for row, other in pairs
    ]
    header = [f"difference to {first}", *(metric["title"] for metric in metrics)]
    return markdown_table(header, body) if body else ""


def _per_class(report: dict[str, Any]) -> str:
    """Return the mean accuracy of each class, where it was measured and there are not too many."""
    metrics = next(iter(report["rows"][0]["by_seed"].values()))
    names = sorted((k for k in metrics if k.startswith("class_")), key=lambda k: int(k[6:]))
    if not 0 < len(names) <= _MOST_CLASSES:
        return ""
    header = ["accuracy of class, in %", *(name[6:] for name in names)]
    body = [
        [row["name"], *(written(100 * summary_of(row["by_seed"], name).mean, 1) for name in names)]
        for row in report["rows"]
    ]
    return markdown_table(header, body)


def _paper(report: dict[str, Any]) -> str:
    paper = report["paper"]
    if not paper["rows"]:
        return f"The paper ({paper['where']}): {paper['protocol']}" if paper["protocol"] else ""
    header = [f"the paper, {paper['where']}", *paper["columns"]]
    body = []
    for name, values in paper["rows"].items():
        cells = ["collapse" if value is None else f"{value:g}" for value in values]
        body.append([name, *cells, *["–"] * (len(paper["columns"]) - len(cells))])
    notes = [f"In {paper['unit']}." if paper["unit"] else "", paper["protocol"]]
    return f"{markdown_table(header, body)}\n\n{' '.join(note for note in notes if note)}"


def directed(metric: dict[str, Any]) -> str:
    """Return a metric's title with the direction that is better, if it has one."""
    words = {True: ", higher is better", False: ", lower is better", None: ""}
    return f"{metric['title']}{words[metric['higher']]}"


def number(metric: dict[str, Any], value: float, sign: str = "") -> str:
    """Return a number as it is shown, without its unit."""
    scaled = value * (100 if metric["percent"] else 1)
    return written(scaled, 2 if metric["percent"] or abs(scaled) >= 1 else 3, sign)


def _gain(row: dict[str, Any], first: dict[str, Any], metric: dict[str, Any]) -> Difference:
    return difference_of(row["by_seed"], first["by_seed"], metric["name"])


def _pairs(row: dict[str, Any], first: dict[str, Any], found: Difference) -> str:
    """Return of how many seeds a difference is, if not of all that were to be compared."""
    every = max(len(each["by_seed"]) + each.get("diverged", 0) for each in (row, first))
    return of_seeds(found.count, every)


# Words ----------------------------------------------------------------------------------------


def how(report: dict[str, Any]) -> str:
    """Return what was trained on what."""
    preset, training = report["preset"], report["preset"]["training"]
    images = preset["train_images"]
    drawn = f"{images:,} training images, drawn by the seed" if images else "all training images"
    options = preset["options"]
    if "points" in options:
        drawn = f"{options['points']} points, drawn by the seed"
    if "clips" in options and "frames" not in options:  # of sounds, not of videos
        drawn += f", and {options['clips']:,} sounds"
    if "largest" in options:
        first, last = long_tail_counts(2, options["largest"], options["imbalance"])
        drawn = f"long-tailed: {first:,} images of the first class, {last:,} of the last"
        drawn += ", drawn by the seed"
    if "frames" in options:
        drawn = drawn.replace("images", "videos") + f", clips of {options['frames']} frames"
    steps = training.get("steps")
    length = f"{steps:,} steps" if steps else f"{training['epochs']} epochs"
    return (
        f"{report['data']}, {drawn}; network `{preset['network']}`; {length} of "
        f"{training['optimizer']}, batches of {training['batch_size']}, learning rate "
        f"{training['learning_rate']:g}, weight decay {training['weight_decay']:g}."
        f"{_begun(options) if 'frames' in options else _taken(report)}"
    )


def _taken(report: dict[str, Any]) -> str:
    """Return whose weights a model without VCReg has, if it was not trained."""
    weights = report["preset"]["options"].get("weights")
    untrained = [row["name"] for row in report["rows"] if row["rule"] is None]
    if weights is None or not untrained:
        return ""
    return f" **{untrained[0]} was not trained**: it has the weights in `{weights}` in every run."


def _begun(options: dict[str, Any]) -> str:
    """Return what a video network was before it was fine-tuned, and how it is tested."""
    begun = "with **random weights**, which the paper's does not"
    if options["weights"] is not None:
        begun = f"with the weights in `{options['weights']}`"
    elif options["pretraining"]:
        begun = (
            f"pretrained by masking, {options['pretraining']['epochs']} epochs on "
            f"{options['unlabelled']:,} other videos"
        )
    return f" It begins {begun}. Tested on {options['clips']} clips × {options['crops']} crops."


def said(report: dict[str, Any]) -> str:
    """Return a sentence an arm: what its intervals say, whichever way they went."""
    metrics = [m for name in report["headline"] for m in _shown(report) if m["name"] == name]
    sentences = []
    for row, other in compared(report):
        settings = ", ".join(f"{k} = {v}" for k, v in row["settings"].items())
        named = f"- {row['name']}{f' ({settings})' if settings else ''}: "
        if not row["by_seed"]:
            seeds = row.get("untested") or f"**diverged** with all {row['diverged']} seeds"
            sentences.append(f"{named}{seeds}.")
            continue
        each = "; ".join(
            f"{metric['title']} {span(row, other, metric)}, {verdict(row, other, metric)}"
            for metric in metrics
        )
        lost = row.get("diverged", 0)
        also = f"; **diverged** with {lost} seed{'s' * (lost > 1)} more" if lost else ""
        sentences.append(f"{named}{each}{also}.")
    return "\n".join(sentences)


def span(row: dict[str, Any], first: dict[str, Any], metric: dict[str, Any]) -> str:
    """Return a difference with its interval."""
    found = _gain(row, first, metric)
    scale, unit, digits = (100, " points", 2) if metric["percent"] else (1, "", 3)
    values = (found.mean, found.low, found.high)
    mean, low, high = (written(scale * value, digits, "+") for value in values)
    return f"{mean}{unit} [{low}, {high}]"


def verdict(row: dict[str, Any], first: dict[str, Any], metric: dict[str, Any]) -> str:
    """Return what an interval says, in a word or two."""
    found = _gain(row, first, metric)
    if missing := [each["name"] for each in (row, first) if not each["by_seed"]]:
        return f"{missing[0]} diverged"
    if math.isnan(found.low):
        return "too few seeds to say more"
    said = "no clear effect"
    if not found.has_spread:
        said = "no spread, no verdict"
    elif found.is_clear:
        said = "better" if (found.low > 0) == (metric["higher"] is not False) else "**worse**"
    return said + _pairs(row, first, found)


def searched(report: dict[str, Any]) -> str:
    """Return every attempt of the search."""
    metric: dict[str, Any] = next(
        (m for m in report["metrics"] if m["name"] == report["criterion"]), {}
    )
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
    if not math.isfinite(mean := attempt["mean"]):
        return f"{settings}: diverged"
    return f"{settings}: {f'{100 * mean:.2f} %' if metric['percent'] else f'{mean:.3f}'}"


def repeat(report: dict[str, Any]) -> str:
    """Return how to do it again."""
    versions = ", ".join(f"{name} {found}" for name, found in report["versions"].items())
    if (command := report["command"]) is None:
        how = (
            "It was started from Python, with settings, data or a network that no command names: "
            "`vcreg_fx.experiments.reproduce` with the same repeats it."
        )
    else:
        how = f"```bash\n{command}\n```"
    return f"{how}\n\nVersions: {versions}."
