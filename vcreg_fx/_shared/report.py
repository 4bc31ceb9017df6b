"""A report: the verdict and one picture first, then all else; as Markdown and as one page."""

from __future__ import annotations

import base64
import html
import importlib.metadata
import mimetypes
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .files import write_text
from .tables import in_markdown, markdown_table

_PACKAGES = ("vcreg-fx", "torch", "torchvision", "timm", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Report:
    """What a command found.

    **Arguments:**

    - `title`: stands above.
    - `verdict`: sentences that say what was found, in Markdown.
    - `figure`: the headline picture: what it shows, and the name of its file beside the report.
    - `body`: all else, in Markdown; pictures by the names of their files.
    - `settings`: what was asked for.
    """

    title: str
    verdict: Sequence[str]
    figure: tuple[str, str] | None
    body: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_markdown(self) -> str:
        """Return it as Markdown."""
        parts = [f"# {in_markdown(self.title)}"]
        parts += ["\n".join(f"- {sentence}" for sentence in self.verdict)] if self.verdict else []
        if self.figure is not None:
            parts.append("![{}]({})".format(*self.figure))
        parts.append(self.body.strip())
        if self.settings:
            rows = [(name, str(value)) for name, value in self.settings.items()]
            parts += ["## Settings", markdown_table(("setting", "value"), rows, 2)]
        parts.append("## How to repeat it")
        if command := _command_line():
            parts.append(f"```bash\n{command}\n```")
        versions = ", ".join(f"{name} {found}" for name, found in _versions())
        return "\n\n".join([*parts, f"Versions: {versions}."]) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write ``report.md`` and ``report.html`` beside the pictures, and return their paths."""
        text, paths = self.to_markdown(), [folder / "report.md", folder / "report.html"]
        write_text(paths[0], text)
        write_text(paths[1], to_html(text, folder))
        return paths


def to_html(markdown: str, folder: Path) -> str:
    """Return Markdown as one page that needs no other file: its pictures are in it.

    HTML in the text is shown as text. The page is light or dark as its reader is.

    **Arguments:**

    - `markdown`: what begins with its title.
    - `folder`: where its pictures lie.
    """
    from jinja2 import Environment
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for token in tokens:
        for inner in token.children or ():
            if inner.type == "image":
                inner.attrs["src"] = _inlined(folder / str(inner.attrs["src"]))
    body = parser.renderer.render(tokens, parser.options, {})
    body = body.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )
    title = html.unescape(next((t.content for t in tokens if t.type == "inline"), ""))
    template = Path(__file__).with_suffix(".html").read_text("utf-8")
    page = Environment(autoescape=True).from_string(template)
    return page.render(title=title, body=Markup(body))


def _inlined(picture: Path) -> str:
    kind = mimetypes.guess_type(picture.name)[0]
    return f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _command_line() -> str:
    """Return the command that this process was started with, if it is one of ours."""
    program = Path(sys.argv[0])
    own = program.stem == "vcreg-fx" or program.parts[-2:] == ("vcreg_fx", "__main__.py")
    return shlex.join(["vcreg-fx", *sys.argv[1:]]) if own else ""


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
