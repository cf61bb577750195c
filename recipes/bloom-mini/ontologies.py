"""What biology's terms mean, as the Gene, Sequence and Pathway Ontologies define them.

English, but not that of captions, news and forums: a small model hardly knows it, so its tokens are counted as a
language's of its own (`lexical.py`). Debian's package `emboss-data` holds the three, in OBO format (its specification,
1.4), below usr/share/EMBOSS/data/OBO. Evidence codes (GPL) and chemicals (their names are formulas) are left there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

BIOLOGY = "en-biology"
FILES = ("go.obo", "pathway.obo", "so.obo")
LICENCE = "CC BY 3.0 (Gene and Pathway Ontologies) / public domain (Sequence Ontology)"
_DEFINITION = re.compile(r'def: "((?:[^"\\]|\\.)*)"')


def definitions(folder: Path) -> Iterator[str]:
    """The text of each definition."""
    for name in FILES:
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            if found := _DEFINITION.match(line):
                text = re.sub(r"\\(.)", lambda escaped: " " if escaped[1] in "nt" else escaped[1], found[1])
                yield " ".join(text.split()).removeprefix("OBSOLETE").lstrip(". ")
