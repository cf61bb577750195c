"""The site: it builds without a warning and fetches nothing, and what its pages show runs.

Python and cheap commands run in this process, page by page, in the order of the page.
"""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from snippets import blocks, check_printed, commands

import lacos_st
from lacos_st.cli import main
from lacos_st.cli.parser import build_parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TUTORIAL, FRAMEWORKS = DOCS / "tutorial.md", DOCS / "howto" / "frameworks.md"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "benchmarks" not in page.parts)
CHEAP = ("init", "memory", "similarity")  # commands that need no file of the reader's and take a second


def named(page):
    return page.relative_to(DOCS).as_posix()


def cheap(page):
    return [command for command in commands(page) if command[1] in CHEAP]


def has_python(page):
    return any(block.kind == "python" for block in blocks(page))


def can_run(page):
    return page not in (TUTORIAL, FRAMEWORKS) and (cheap(page) or has_python(page))


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=named)
def test_commands_are_understood(page):
    for command in commands(page):
        build_parser().parse_args(command[1:])


@pytest.mark.parametrize("page", filter(can_run, PAGES), ids=named)
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in cheap(page):
        assert main(command[1:]) == 0
    printed = shown = ""
    names = {"__name__": page.stem}
    capsys.readouterr()
    for block in blocks(page):
        if block.kind == "python":
            exec(compile(block.text, str(page), "exec"), names)
            printed += capsys.readouterr().out
        elif block.kind == "text":
            shown += block.text
    if has_python(page):  # else what is shown comes of commands that take longer
        check_printed(shown, printed)


@pytest.mark.slow
def test_the_tutorial(tmp_path):
    """All of it, as its reader would: files are written, commands run, and the figures come out better than before."""
    text = TUTORIAL.read_text(encoding="utf-8")
    for name in re.findall(r"\]\((\w+\.csv)\)", text):
        (tmp_path / name).write_bytes((DOCS / name).read_bytes())
    for name, code in re.findall(r'^```python title="(\S+)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(code, encoding="utf-8")
    printed = ""
    for block in blocks(TUTORIAL):
        for line in block.text.replace("\\\n", " ").splitlines() if block.kind == "bash" else ():
            if line.startswith(("lacos-st ", "python ")):
                line = line.replace("lacos-st ", "-m lacos_st.cli ", 1).removeprefix("python ")
                done = subprocess.run(
                    f'"{sys.executable}" {line}', shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=1500
                )
                assert done.returncode == 0, done.stderr
                printed += done.stdout
    right = [int(number) for number in re.findall(r"(\d+) of \d+ tickets", printed)]
    shown = [int(number) for number in re.findall(r"(\d+) of \d+ tickets", text)]
    assert right == pytest.approx(shown, abs=6)  # of 88: other processors round otherwise
    assert right[-1] > right[0] + 10


class _Links(HTMLParser):
    """What a browser would fetch to show a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.found.append(given["src"])
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="the extra `docs` is not installed: make docs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_fetches_nothing(site):
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]  # which a server shows, from its root
    assert len(pages) > 20
    for page in pages:
        links = _Links()
        links.feed(page.read_text(encoding="utf-8"))
        assert links.found
        for link in links.found:
            assert not re.match(r"(\w+:)?//", link), f"{page.name} fetches {link}"
            assert (page.parent / re.split("[?#]", link)[0]).exists(), f"{page.name}: {link}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8"))


def test_the_command_line_is_there_whole(site):
    text = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    subcommands = next(action for action in build_parser()._actions if action.dest == "command").choices
    for name, command in subcommands.items():
        assert f'id="{name}"' in text
        assert all(flag in text for flag in command.flags)


def test_every_public_name_is_documented():
    shown = re.findall(r"^::: (\S+)$", (DOCS / "reference" / "python.md").read_text(encoding="utf-8"), re.MULTILINE)
    public = [getattr(lacos_st, name) for name in lacos_st.__all__ if name != "__version__"]
    assert sorted(shown) == sorted(f"{item.__module__}.{item.__name__}" for item in public)
