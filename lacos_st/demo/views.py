"""What the page shows, as functions of sentences and embeddings: numbers first, then HTML.

Nothing here knows Gradio or a model. Colours are the page's own CSS variables, so a picture follows its light and dark
form, and every text is escaped: sentences are whatever somebody pastes. A sentence keeps its number in all pictures,
which is how a phone, with no room for texts, still says which is which.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from lacos_st.errors import LacosError, shortened

MOST = 60  # sentences: the matrix has the square of that
_WIDE, _HIGH, _EDGE = 720, 420, 40  # of the map, in units of its own
_LABEL = 32  # characters of a label in the map; each about so wide, and a row so high
_LETTER, _ROW = 6.2, 15.0
_DOT = 6.0  # radius of a point, and a little

CSS = """
.lacos { --quiet: color-mix(in srgb, var(--body-text-color) 65%, transparent); }
.lacos table { border-collapse: collapse; width: 100%; margin: .3rem 0 0 !important; font-size: .92rem; }
.lacos table, .lacos table tr, .lacos table td, .lacos table th { border: 0 !important; }
.lacos td, .lacos th { padding: .28rem .5rem !important; color: var(--body-text-color); font-weight: 400 !important;
  text-align: left; }
.lacos .number { color: var(--quiet); text-align: right; font-variant-numeric: tabular-nums;
  width: 1%; white-space: nowrap; }
.lacos .bar { position: relative; }
.lacos .bar i { position: absolute; inset: 2px auto 2px 0; border-radius: 3px; background: var(--color-accent);
  opacity: .25; }
.lacos .bar span { position: relative; overflow-wrap: anywhere; }
.lacos .scroll { overflow-x: auto; }
.lacos .matrix .cell, .lacos .matrix .column { text-align: center; font-variant-numeric: tabular-nums;
  min-width: 2.6rem; width: 1%; }
.lacos .matrix .text { min-width: 12rem; overflow-wrap: anywhere; }
.lacos svg { width: 100%; max-width: 960px; height: auto; display: block; margin: auto; }
.lacos svg text { fill: var(--body-text-color); font-size: 12px; }
.lacos svg .name { fill: var(--quiet); }
.lacos svg circle { fill: var(--color-accent); r: 5px; }
.lacos svg .query { fill: none; stroke: var(--color-accent); stroke-width: 3; r: 11px; }
.lacos svg line { stroke: var(--quiet); stroke-width: .6; }
.lacos .note { color: var(--quiet); font-size: .88rem; margin: .4rem 0 0; }
@media (max-width: 700px) {
  .lacos .matrix { font-size: .66rem; } .lacos .matrix .text { display: none; }
  .lacos .matrix td, .lacos .matrix th { padding: .28rem .05rem !important; min-width: 1.45rem !important; }
  .lacos svg .name { display: none; } .lacos svg text { font-size: 26px; } .lacos svg circle { r: 9px; }
  .lacos svg .query { r: 18px; }
}
"""


def read_sentences(text: str) -> list[str]:
    r"""Sentences of a text, one a line; blank lines and repetitions are left out.

    Args:
        text: What stands in the page's field.

    Returns:
        The sentences in their order.

    Raises:
        LacosError: There are more than the page can show.

    Example:
        >>> read_sentences(" Bonjour. \n\nHola.\nBonjour.")
        ['Bonjour.', 'Hola.']
    """
    found = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(found) > MOST:
        raise LacosError(f"{len(found):,} sentences are more than the {MOST} that fit on the page: take some out.")
    return found


def cosines(queries: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Cosine of each query with each embedding; 0 with an embedding that is zero.

    Args:
        queries: (m, dimension).
        embeddings: (n, dimension).

    Returns:
        (m, n), between -1 and 1.

    Example:
        >>> cosines(np.array([[2.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 3.0], [0.0, 0.0]])).tolist()
        [[1.0, 0.0, 0.0]]
    """
    return np.clip(_unit(queries) @ _unit(embeddings).T, -1, 1)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(length == 0, 1, length)


def plane(embeddings: np.ndarray) -> tuple[np.ndarray, float]:
    """Embeddings of length 1 in the two directions in which they differ most (principal components).

    Args:
        embeddings: (n, dimension), n at least 1.

    Returns:
        (n, 2) coordinates, and the part of the variance that they keep, from 0 to 1. The sign of a direction, which
        is free, is such that its largest coordinate is positive: the same sentences give the same picture.

    Example:
        >>> found, kept = plane(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        >>> found.shape, round(kept, 3)
        ((3, 2), 1.0)
    """
    centred = _unit(np.asarray(embeddings, np.float64))
    centred = centred - centred.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(centred), 2))
    for axis in range(min(2, len(sizes))):
        column = left[:, axis] * sizes[axis]
        found[:, axis] = column * (1 if column[np.abs(column).argmax()] >= 0 else -1)
    total = float((sizes**2).sum())
    return found, float((sizes[:2] ** 2).sum()) / total if total > 1e-12 else 1.0


def neighbours_html(sentences: Sequence[str], scores: np.ndarray) -> str:
    """Sentences in the order of their cosine with the query, each with a bar.

    Args:
        sentences: n sentences.
        scores: (n,) cosines.
    """
    rows = "".join(
        f"<tr><td class=number>{scores[i]:z.2f}</td>"
        f"<td class=bar>{_bar(scores[i])}<span>{escape(sentences[i])}</span></td>"
        f"<td class=number>{i + 1}</td></tr>"
        for i in np.argsort(-scores, kind="stable")
    )
    return f"<div class=lacos><table class=neighbours>{rows}</table></div>"


def _bar(score: float) -> str:
    return f"<i style='width:{max(0.0, float(score)):.1%}'></i>"


def matrix_html(sentences: Sequence[str], similarity: np.ndarray) -> str:
    """The cosine of each sentence with each, as a table whose cells are the darker the nearer.

    Args:
        sentences: n sentences.
        similarity: (n, n) cosines.
    """
    head = "".join(f"<th class='number column'>{j + 1}</th>" for j in range(len(sentences)))
    rows = "".join(
        f"<tr><th class=number>{i + 1}</th><th class=text>{escape(shortened(text, 90))}</th>"
        + "".join(f"<td class=cell style='{_shade(value)}'>{_short(value)}</td>" for value in similarity[i])
        + "</tr>"
        for i, text in enumerate(sentences)
    )
    return (
        "<div class=lacos><div class=scroll><table class=matrix>"
        f"<tr><th></th><th class=text></th>{head}</tr>{rows}</table></div></div>"
    )


def _shade(value: float) -> str:
    return f"background:color-mix(in srgb,var(--color-accent) {70 * max(0.0, float(value)):.0f}%,transparent)"


def _short(value: float) -> str:
    """Two digits behind the point, without the zero before it: a column stays narrow."""
    return f"{value:z.2f}".replace("-0.", "-.").removeprefix("0") if abs(value) < 0.995 else f"{value:.0f}"


def map_html(sentences: Sequence[str], embeddings: np.ndarray, query: np.ndarray | None = None) -> str:
    """The sentences as points of a plane; the query, if there is one, as a ring.

    Args:
        sentences: n sentences, at least one.
        embeddings: (n, dimension).
        query: (dimension,).
    """
    everything = embeddings if query is None else np.vstack([embeddings, query])
    found, kept = plane(everything)
    low, high = found.min(axis=0), found.max(axis=0)
    span = np.where(high - low < 1e-9, 1.0, high - low)
    at = _EDGE + (found - low) / span * (np.array([_WIDE, _HIGH]) - 2 * _EDGE)
    at[:, 1] = _HIGH - at[:, 1]
    labels = [f"{i + 1} {text[:_LABEL]}{'…' if len(text) > _LABEL else ''}" for i, text in enumerate(sentences)]
    rows = _apart(at, labels)
    points = "".join(
        _point(float(at[i, 0]), float(at[i, 1]), rows[i], labels[i], text) for i, text in enumerate(sentences)
    )
    ring = f"<circle class=query cx={at[-1, 0]:.1f} cy={at[-1, 1]:.1f}><title>the query</title></circle>"
    note = f"The two directions in which these embeddings differ most; they hold {kept:.0%} of their variance."
    return (
        f"<div class=lacos><svg viewBox='0 0 {_WIDE} {_HIGH}' role=img aria-label='Map of the sentences'>"
        f"{ring if query is not None else ''}{points}</svg>"
        f"<p class=note>{note}{' The ring is the query.' if query is not None else ''}</p></div>"
    )


def _is_left(x: float) -> bool:
    """Whether a label stands left of its point: it is written towards the middle."""
    return x > 0.6 * _WIDE


def _apart(at: np.ndarray, labels: Sequence[str]) -> list[float]:
    """The height of each label: its point's, or below, so that none is written over another or over a point."""
    points = [(float(x) - _DOT, float(x) + _DOT, float(y)) for x, y in at]
    taken: list[tuple[float, float, float]] = []
    heights = [0.0] * len(labels)
    for i in np.argsort(at[: len(labels), 1], kind="stable"):
        (x, y), width = at[i], _LETTER * len(labels[i]) + 18
        start = x - width if _is_left(x) else x
        for low, high, height in sorted([*taken, *points[:i], *points[i + 1 :]], key=lambda box: box[2]):
            if start < high and low < start + width and abs(y - height) < _ROW:
                y = height + _ROW
        taken.append((start, start + width, y))
        heights[i] = float(y)
    return heights


def _point(x: float, y: float, row: float, label: str, text: str) -> str:
    number, name = escape(label).split(" ", 1)
    side = -1 if _is_left(x) else 1
    line = f"<line x1={x:.1f} y1={y:.1f} x2={x + 8 * side:.1f} y2={row:.1f} />" if row != y else ""
    return (
        f"{line}<circle cx={x:.1f} cy={y:.1f}><title>{escape(text)}</title></circle>"
        f"<text x={x + 10 * side:.1f} y={row + 4:.1f} text-anchor={'end' if side < 0 else 'start'}>{number} "
        f"<tspan class=name>{name}</tspan></text>"
    )
