"""The picture as text in the DOT language, for Graphviz and tools that read it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ._outline import Part


def dot_text(
    parts: Sequence[Part], title: str, subtitle: str, fill: dict[str, str], edge: dict[str, str]
) -> str:
    """Return a digraph: a node for each part, a cluster for each stage, sites in the labels.

    **Arguments:**

    - `parts`: in the order in which they run.
    - `title`, `subtitle`: what stands above.
    - `fill`, `edge`: the colours of each kind of part.
    """
    heading = f"{title}\n{subtitle}"
    lines = [
        f"digraph {_quoted(title)} {{",
        f"  label={_quoted(heading)};",
        '  labelloc="t";',
        '  node [shape=box, style="rounded,filled", fontname="Helvetica"];',
        '  graph [fontname="Helvetica"];',
    ]
    numbered = list(enumerate(parts))
    for index, (frame, group) in enumerate(groupby(numbered, key=lambda pair: pair[1].frame)):
        nodes = [f"n{k} {_attributes(part, fill, edge)};" for k, part in group]
        if frame:
            lines += [f"  subgraph cluster_{index} {{", f"    label={_quoted(frame)};"]
            lines += [*(f"    {node}" for node in nodes), "  }"]
        else:
            lines += [f"  {node}" for node in nodes]
    lines += [f"  n{k} -> n{k + 1};" for k in range(len(parts) - 1)]
    return "\n".join([*lines, "}"]) + "\n"


def _attributes(part: Part, fill: dict[str, str], edge: dict[str, str]) -> str:
    label = [f"{part.short_path}  ({part.class_name})", f"{part.shape}  {part.layout}".rstrip()]
    label += [f"VCReg: {part.note}"] * bool(part.marks)
    text = "\n".join(line for line in label if line)
    width = 2 if part.marks else 1
    return (
        f'[label={_quoted(text)}, fillcolor="{fill[part.kind]}", '
        f'color="{edge[part.kind]}", penwidth={width}]'
    )


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
