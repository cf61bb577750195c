"""Code blocks of a Markdown page, for the tests that run them.

A block behind a comment `<!-- not run: why -->` is left out.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

_BLOCK = re.compile(r"(<!-- not run: .+? -->\n+)?^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"-?\d+\.\d+")


class Block(NamedTuple):
    """A block of code: its language ("python", "bash", "text") and its lines."""

    kind: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The blocks that are to be run, in their order."""
    return [Block(kind, text) for out, kind, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if not out]


def commands(page: Path) -> list[list[str]]:
    """The page's `lacos-st` commands, each as its words; also of blocks that are not run."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    lines = "".join(text for _, kind, text in found if kind == "bash").replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("lacos-st ")]


def check_printed(shown: str, printed: str) -> None:
    """Compare what a page shows with what came: words exactly, numbers as far as processors round alike."""
    assert _NUMBER.sub("#", printed).split() == _NUMBER.sub("#", shown).split()
    numbers = ([float(value) for value in _NUMBER.findall(text)] for text in (shown, printed))
    assert next(numbers) == pytest.approx(next(numbers), abs=0.02)
