"""A small model that needs no transformer, and a file of texts."""

from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from static import TEXTS, static_model


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    return static_model()


@pytest.fixture
def lines(tmp_path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path
