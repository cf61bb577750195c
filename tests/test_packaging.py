"""What an index page would show of the package."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_an_index_page_has_no_links_into_the_repository(monkeypatch):
    setuptools = pytest.importorskip("setuptools")
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    links = re.findall(r"\]\(([^)]+)\)", given["long_description"])
    assert links
    assert all(link.startswith("https://") for link in links)
    assert "`docs/howto/many-gpus.md`" in given["long_description"]


def test_the_citation_names_this_version():
    import lacos_st

    assert f"version: {lacos_st.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
