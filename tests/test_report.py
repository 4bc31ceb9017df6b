"""Reports: one page that needs no other file, and that a browser shows as it should."""

from __future__ import annotations

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from vcreg_fx._shared import report as of_reports
from vcreg_fx._shared.report import Report, to_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DOT = (
    "<svg xmlns='http://www.w3.org/2000/svg' width='900' height='40'>"
    "<rect width='900' height='40' fill='red'/></svg>"
)
WIDE = "| " + " | ".join(f"a column {n}" for n in range(20)) + " |\n|" + " --- |" * 20 + "\n"

# Reports in an iframe of a width, and tells what a reader would miss.
FRAME = """<iframe src="report.html" style="width:{width}px;height:2000px;border:0"></iframe>
<script>
const frame = document.querySelector("iframe");
window.onerror = message => document.body.dataset.error = message;
frame.onload = () => {{
  const page = frame.contentDocument;
  frame.contentWindow.onerror = window.onerror;
  document.title = JSON.stringify({{
    width: page.documentElement.scrollWidth,
    pictures: [...page.images].map(image => image.naturalWidth),
    text: page.body.innerText,
    color: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
  }});
}};</script>"""


def seen(folder: Path, width: int, *options: str) -> dict[str, object]:
    """Return what Chromium shows of ``report.html`` in a folder at a width."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    (folder / "frame.html").write_text(FRAME.format(width=width))
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/frame.html"
        command = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
            "--virtual-time-budget=20000", *options, address,
        ]  # fmt: skip
        found = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        server.shutdown()
    assert "data-error" not in found.stdout
    (title,) = re.findall("<title>(.*?)</title>", found.stdout, re.DOTALL)
    return json.loads(html.unescape(title))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dot.svg").write_text(DOT)
    body = f"{WIDE}\nSee `code` and <script>alert(1)</script>."
    settings = {"rule": "blocks | head", "<b>": "&"}
    made = Report("What <i> found", ["It is **better**."], ("a dot", "dot.svg"), body, settings)
    assert [path.name for path in made.write(tmp_path)] == ["report.md", "report.html"]
    return tmp_path


def test_the_verdict_comes_first(folder: Path) -> None:
    lines = (folder / "report.md").read_text("utf-8").split("\n\n")
    assert lines[:3] == ["# What &lt;i&gt; found", "- It is **better**.", "![a dot](dot.svg)"]
    assert "Versions: python 3." in lines[-1] and "torch 2." in lines[-1]
    assert "| rule | blocks \\| head |" in (folder / "report.md").read_text("utf-8")


def test_a_page_needs_no_other_file_and_runs_nothing(folder: Path) -> None:
    page = (folder / "report.html").read_text("utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<b>" not in page and "<title>What &lt;i&gt; found</title>" in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "prefers-color-scheme: dark" in page


def test_it_says_how_to_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Report("A", [], None, "")
    monkeypatch.setattr(of_reports.sys, "argv", ["/lib/pytest/__main__.py", "-q"])
    assert "```bash" not in made.to_markdown()
    monkeypatch.setattr(of_reports.sys, "argv", ["/bin/vcreg-fx", "demo", "--rule", "a | b"])
    assert "```bash\nvcreg-fx demo --rule 'a | b'\n```" in made.to_markdown()


def test_a_picture_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing.png"):
        to_html("![a](missing.png)", tmp_path)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it(folder: Path, width: int) -> None:
    found = seen(folder, width)
    assert found["width"] == width  # a table that is wider scrolls in its own place
    assert found["pictures"] == [900]
    assert "What <i> found" in found["text"] and "alert(1)" in found["text"]
    assert found["color"] == "rgb(255, 255, 255)"


def test_it_is_dark_where_its_reader_is(folder: Path) -> None:
    found = seen(folder, 800, "--blink-settings=preferredColorScheme=0")
    assert found["color"] == "rgb(20, 23, 26)"
