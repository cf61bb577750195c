"""What the page shows: numbers that are right, and HTML in which a sentence stays a text."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from lacos_st.demo.views import MOST, cosines, map_html, matrix_html, neighbours_html, plane, read_sentences
from lacos_st.errors import LacosError

HOSTILE = "</td><script>alert(1)</script> & \"quoted\" 'single'"


class Tags(HTMLParser):
    """Tags and texts of a piece of HTML; a tag that closes another than the last one opened is an error."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open.append(tag) if tag not in ("circle", "line") else None

    def handle_endtag(self, tag):
        if tag not in ("circle", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_sentences_are_lines():
    assert read_sentences(" a \n\n b\na\r\nc") == ["a", "b", "c"]
    assert read_sentences(" \n ") == []
    most = "\n".join(str(i) for i in range(MOST))
    assert len(read_sentences(most)) == MOST
    with pytest.raises(LacosError, match=f"{MOST + 1} sentences are more than the {MOST}"):
        read_sentences(f"{most}\nx")


def test_cosines_ignore_length_and_bear_zeros():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 8))
    expected = (vectors @ vectors.T) / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    np.testing.assert_allclose(cosines(3 * vectors, vectors), expected, atol=1e-12)
    assert cosines(vectors, np.zeros((1, 8))).tolist() == [[0.0]] * 5


def test_the_plane_keeps_distances_that_lie_in_it():
    angles = np.array([0.1, 0.4, 1.3, 2.0])
    circle = np.stack([np.cos(angles), np.sin(angles), np.zeros(4)], axis=1)
    found, kept = plane(circle)
    assert kept == pytest.approx(1)
    for i in range(4):
        np.testing.assert_allclose(
            np.linalg.norm(found - found[i], axis=1), np.linalg.norm(circle - circle[i], axis=1), atol=1e-9
        )
    np.testing.assert_array_equal(found, plane(circle.copy())[0])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_or_equal_sentences_have_a_map(count):
    texts = [f"text {i}" for i in range(count)]
    html = map_html(texts, np.ones((count, 4)))
    assert Tags(html).tags.count("circle") == count
    assert "nan" not in html


def test_neighbours_come_nearest_first():
    html = neighbours_html(["far", "near", "middle"], np.array([-0.001, 0.9, 0.5]))
    assert re.findall(r"<span>(\w+)</span>", html) == ["near", "middle", "far"]
    assert "-0.00" not in html


def test_the_matrix_is_darker_where_it_is_nearer():
    html = matrix_html(["a", "b"], np.array([[1.0, 0.25], [0.25, 1.0]]))
    assert re.findall(r"accent\) (\d+)%", html) == ["70", "18", "18", "70"]
    assert re.findall(r"transparent\)'>([^<]+)<", html) == ["1", ".25", ".25", "1"]


@pytest.mark.parametrize("text", [HOSTILE, "日本語 עברית", "x" * 500, "a b"])
def test_a_sentence_stays_a_text(text):
    embeddings = np.eye(2)
    for html in (
        neighbours_html([text, "b"], np.array([0.5, 0.2])),
        matrix_html([text, "b"], embeddings),
        map_html([text, "b"], embeddings, embeddings[0]),
    ):
        tags = Tags(html)
        assert "script" not in tags.tags
        assert text[:20] in "".join(tags.texts)


def test_labels_of_the_map_do_not_lie_over_each_other():
    rng = np.random.default_rng(0)
    texts = [f"a sentence of some length, number {i}" for i in range(12)]
    embeddings = np.ones((12, 6)) + 1e-3 * rng.normal(size=(12, 6))  # near to each other
    embeddings[0] = -1
    labels = re.findall(r"<text x=([\d.]+) y=([\d.]+) text-anchor=(\w+)", map_html(texts, embeddings))
    rows = sorted(float(y) for _, y, anchor in labels if anchor == labels[-1][2])
    assert len(rows) == 11
    assert np.diff(rows).min() >= 14.9
