"""The plots beside a report: bars by language, and similarities against annotated scores, for slides and papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lacos_st.evaluation.results import LEXICAL, Mean
from lacos_st.files import atomic

_LABEL = 48  # characters of a name in a plot
COLOURS = ("#1f6fb2", "#d9730d", "#2b8a3e", "#8e44ad", "#b03060", "#00838f")
"""Of models, by their position; `report.html` has as many."""
_GREY = "#50575e"


def write_plots(
    rows: Sequence[tuple[str, dict[str, Mean]]], sets: Sequence[dict[str, Any]], models: Sequence[str], page: Path
) -> list[Path]:
    """Draw bars by language and a scatter of up to six sets, as PNG and SVG.

    Args:
        rows: A language's label and the mean of every column, from the top.
        sets: Points of sets, as the page has them.
        models: Their names, in the order of their colours.
        page: The page that they lie beside.

    Returns:
        The files; none where there are no rows.
    """
    from matplotlib import rc_context

    if not rows:
        return []
    with rc_context({"text.parse_math": False, "text.usetex": False}):  # names are text, dollars too
        return _bars(rows[::-1], models, page) + _scatter(sets[:6], models, page)


def _bars(rows: Sequence[tuple[str, dict[str, Mean]]], models: Sequence[str], page: Path) -> list[Path]:
    from matplotlib.figure import Figure

    count = len(models)
    bars = Figure(figsize=(8, 1.2 + 0.18 * len(rows) * (count + 0.6)), layout="constrained")
    axes = bars.subplots()
    height = 0.8 / count
    for i, name in enumerate(models):
        places = [y + 0.4 - height * (i + 0.5) for y in range(len(rows))]
        means = [means.get(name) for _, means in rows]
        scores = [0.0 if m is None else m.score for m in means]
        ends = [(0.0, 0.0) if m is None else m.interval for m in means]
        errors = np.nan_to_num([[s - low, high - s] for s, (low, high) in zip(scores, ends, strict=True)])
        colour = COLOURS[i % len(COLOURS)]
        axes.barh(places, scores, height, color=colour, label=_label(name), xerr=errors.T.clip(0), error_kw={"lw": 0.8})
    lexical = [means[LEXICAL].score if LEXICAL in means else math.nan for _, means in rows]
    axes.vlines(
        lexical, np.arange(len(rows)) - 0.42, np.arange(len(rows)) + 0.42, color=_GREY, lw=2, label="lexical baseline"
    )
    axes.set_yticks(range(len(rows)), [_label(label) for label, _ in rows], fontsize=8)
    axes.set_xlabel("Spearman × 100, mean over the sets of a language (* not in BLOOM's training data)", fontsize=8)
    axes.margins(y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    bars.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    return _save(bars, page, "languages")


def _scatter(data: Sequence[dict[str, Any]], models: Sequence[str], page: Path) -> list[Path]:
    from matplotlib.figure import Figure

    count = len(models)
    scatter = Figure(figsize=(3 * len(data), 2.8 * count), layout="constrained")
    grid = scatter.subplots(count, len(data), squeeze=False, sharey=True)
    for column, entry in enumerate(data):
        for model in entry["models"]:
            row = models.index(model["name"])
            axes = grid[row][column]
            axes.plot(
                entry["gold"], model["similarity"], ".", ms=4, alpha=0.5, color=COLOURS[row % len(COLOURS)], mew=0
            )
            axes.set_title(f"{_label(entry['name'])}: {model['score']}", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axes.set_ylabel(f"{_label(model['name'])}\ncosine", fontsize=7)
    scatter.supxlabel("annotated score", fontsize=8)
    return _save(scatter, page, "scatter")


def _label(name: str) -> str:
    """A name that fits into a plot; Matplotlib leaves out of legends what begins with `_`."""
    short = name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…"
    return f" {short}" if short.startswith("_") else short


def _save(plot: Any, page: Path, name: str) -> list[Path]:
    written = []
    for kind in ("png", "svg"):
        path = page.with_name(f"{page.stem}-{name}.{kind}")
        with atomic(path) as temporary:
            plot.savefig(temporary, format=kind, dpi=150)
        written.append(path)
    return written
