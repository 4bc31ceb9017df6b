"""Sites as a text table."""

from __future__ import annotations

from collections.abc import Sequence

from placement_rules import Site

from .._shared.tables import align


def table(sites: Sequence[Site]) -> str:
    """Return a table of sites with aligned columns."""
    rows = [("site", "shape", "layout", "channels", "calls", "form")]
    for site in sites:
        if not site.shape:
            rows.append((site.name, "not recorded", str(site.layout), "?", "?", site.form))
            continue
        shape = " × ".join(str(size) for size in site.shape)
        form = site.form if site.clone is None else f"{site.form}, cloned"
        rows.append((site.name, shape, str(site.layout), str(site.channels), str(site.calls), form))
    return "\n".join([align(rows), *notes(sites)])


def notes(sites: Sequence[Site]) -> list[str]:
    """Return what a reader of the table should know: clones, and sites with few samples."""
    found = [
        f"{site.name}: returned as a clone, because {site.clone} writes to it in place."
        for site in sites
        if site.clone is not None and site.shape
    ]
    if lost := [site.name for site in sites if not site.leads_on]:
        found.append(
            f"{', '.join(lost)}: the model's output does not depend on it, so no gradient comes "
            'back there; mode="gradient" adds nothing, mode="loss" does.'
        )
    if narrow := [site for site in sites if site.samples < site.channels]:
        batch = max(-(-site.channels * site.shape[0] // site.samples) for site in narrow)
        names = narrow[0].name if len(narrow) == 1 else f"{len(narrow)} sites"
        found.append(
            f"{names}: fewer samples than channels (n < d) in batches below {batch}; the "
            "covariance matrix then lacks full rank and is noisy."
        )
    return found
