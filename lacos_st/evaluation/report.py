"""`write_report(results, output)`: an evaluation as one HTML page that needs nothing else.

Style, script and data are inside the page: it opens from a mail or a USB stick, without a network, on a phone, and
prints. Tables and bars are plain HTML, written here; the script only sorts and draws the scatter plots, so a
reader without it loses little. Beside the page lie the plots as PNG and SVG, for slides and papers.

The page's skeleton is `report.html`; places to fill are HTML comments (`<!--cards-->`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence, Sized
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from lacos_st.errors import LacosError
from lacos_st.evaluation.languages import language_name
from lacos_st.evaluation.plots import COLOURS, write_plots
from lacos_st.evaluation.results import LEXICAL, Evaluation, Mean, SetResult, mean
from lacos_st.evaluation.statistics import Difference
from lacos_st.evaluation.tables import beside_published, figure, notes, other_metrics
from lacos_st.files import atomic

_TEMPLATE = Path(__file__).with_name("report.html")
_POINTS = 400  # a scatter plot; a page with 60 sets and two models stays below a megabyte


def write_report(
    results: Evaluation | Iterable[str | Path] | str | Path,
    output: str | Path = "report.html",
    *,
    title: str = "Evaluation",
    split: str | None = None,
) -> list[Path]:
    """Write an evaluation as a self-contained page, and its plots.

    Args:
        results: What `evaluate` returned, or one or more of its output directories. The others are
            compared with the first model.
        output: The page; the plots take its name: `report-languages.png`, `.svg`, `report-scatter.png`, `.svg`.
        title: Heading of the page.
        split: Which results of the directories to show, `test` or `dev`. Default: test, where there are any.

    Returns:
        The files that were written, the page first.

    Raises:
        LacosError: If there are no results, or a directory holds none.
    """
    evaluation = results if isinstance(results, Evaluation) else Evaluation.load(results, split)
    if not evaluation.models:
        raise LacosError("There is nothing to report: the evaluation has no models.")
    page = Path(output)
    if page.suffix.lower() not in (".html", ".htm"):
        raise LacosError(f"The report is a page, so its name should end in .html, not {page.name!r}.")
    points = _scatter_data(evaluation)
    parts = {
        "title": escape(title),
        "intro": _intro(evaluation),
        "legend": _legend(evaluation),
        "cards": _cards(evaluation),
        "comparison": _comparisons(evaluation),
        "bars": _bars(evaluation),
        "sets": _sets(evaluation),
        "metrics": _other_metrics(evaluation),
        "sts": "" if any(r.is_sts for r in evaluation.sets) else " hidden",
        "published": _published(evaluation),
        "notes": "".join(f"<p class=soft>{escape(note)}</p>" for note in notes(evaluation)),
        # "</script" would end the script element and "<!--<script" keep it open; JSON allows the escaped form.
        "data": json.dumps(points).replace("<", "\\u003c"),
    }
    html = _TEMPLATE.read_text("utf-8")
    for place, content in parts.items():
        html = html.replace(f"<!--{place}-->", content)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with atomic(page) as temporary:
            temporary.write_text(html, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise LacosError(f"The report cannot be written to {str(page)!r}: {error.strerror}. Choose another.") from error
    rows = [
        (f"{_language_label(codes)}{' *' if _other(means) else ''}", means) for codes, means in _by_language(evaluation)
    ]
    return [page, *write_plots(rows, points, evaluation.models, page)]


def _colour(position: int) -> str:
    return f"var(--m{position % len(COLOURS)})"


def _intro(evaluation: Evaluation) -> str:
    similarity = {r.name: r for r in evaluation.sets if r.is_sts}
    others = {r.name: r for r in evaluation.sets if not r.is_sts}
    parts = []
    if similarity:
        languages = {code for r in similarity.values() for code in r.languages}
        pairs = sum(r.count for r in similarity.values())
        parts.append(
            f"Spearman correlation of the cosine with the annotators, × 100. {_many(similarity, 'set')}, "
            f"{pairs:,} pairs, {_many(languages, 'language')}."
        )
    if others:
        metrics = ", ".join(dict.fromkeys(r.group for r in others.values()))
        parts.append(f"{metrics}, × 100: {_many(others, 'set')}, {sum(r.count for r in others.values()):,} queries.")
    return " ".join([*parts, "A model’s revision is a digest of its content."])


def _many(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'s' if len(things) != 1 else ''}"


def _legend(evaluation: Evaluation) -> str:
    keys = [
        f'<span><span class=key style="background:{_colour(i)}"></span>{escape(name)}</span>'
        for i, name in enumerate(evaluation.models)
    ]
    if evaluation.of(LEXICAL):
        keys.append("<span><span class='key tick'></span>lexical baseline</span>")
    return "".join(keys)


def _cards(evaluation: Evaluation) -> str:
    columns = [*evaluation.models, *([LEXICAL] if evaluation.of(LEXICAL) else [])]
    means = {name: {m.group: m for m in evaluation.means(name)} for name in columns}
    cards = []
    for group, first in means[columns[0]].items():
        rows = "".join(
            f"<div class=row><span>{_key(i, name)}{escape(name)}</span><span>{figure(means[name][group].score)}"
            f"</span></div>"
            for i, name in enumerate(columns)
            if group in means[name]
        )
        cards.append(f"<div class=card><b>{escape(group)}, mean of {first.sets}</b>{rows}</div>")
    return "".join(cards)


def _key(position: int, name: str) -> str:
    if name == LEXICAL:
        return "<span class='key tick'></span>"
    return f'<span class=key style="background:{_colour(position)}"></span>'


def _by_language(evaluation: Evaluation) -> list[tuple[tuple[str, ...], dict[str, Mean]]]:
    """Languages (or pairs of them) with the mean of every column, BLOOM's first, English at the top."""
    columns = [*evaluation.models, LEXICAL]
    found: dict[tuple[str, ...], dict[str, list[SetResult]]] = {}
    for column in columns:
        for result in evaluation.of(column).values():
            if len(result.gold):
                found.setdefault(result.languages, {}).setdefault(column, []).append(result)
    rows = [
        (languages, {c: mean(results[0].group, results) for c, results in by.items()})
        for languages, by in found.items()
    ]
    return sorted(rows, key=lambda row: (_other(row[1]), len(row[0]), row[0] != ("en",), _language_label(row[0])))


def _other(means: dict[str, Mean]) -> bool:
    return next(iter(means.values())).group == "other languages"


def _language_label(languages: Sequence[str]) -> str:
    return " – ".join(language_name(code) for code in languages)


def _bars(evaluation: Evaluation) -> str:
    rows = _by_language(evaluation)
    parts = []
    for other, heading in ((False, "Languages that BLOOM was trained on"), (True, "Other languages")):
        chosen = [row for row in rows if _other(row[1]) == other]
        if not chosen:
            continue
        blocks = []
        for languages, means in chosen:
            models = [name for name in evaluation.models if name in means]
            count = next(iter(means.values())).sets
            block = [
                f"<div class=label style='--rows:{len(models)}'>{escape(_language_label(languages))}"
                f"<small>{count} set{'s' if count > 1 else ''}</small></div>"
            ]
            for name in models:
                block.append(_bar(means[name], means.get(LEXICAL), evaluation.models.index(name)))
            blocks.append("".join(block))
        parts.append(f"<h3>{heading}</h3><div class=bars>{'<div class=rule></div>'.join(blocks)}</div>")
    return "".join(parts)


def _bar(value: Mean, lexical: Mean | None, position: int) -> str:
    low, high = (_clip(end) for end in value.interval)
    tick = "" if lexical is None else f"<div class=mark style='left:calc({_clip(lexical.score):.2f}% - 1.5px)'></div>"
    return (
        f"<div class=track title='95 % interval {value.interval[0]:.2f} to {value.interval[1]:.2f}'>"
        f"<div class=fill style='width:{_clip(value.score):.2f}%;background:{_colour(position)}'></div>"
        f"<div class=whisker style='left:{low:.2f}%;width:{high - low:.2f}%'></div>{tick}</div>"
        f"<div class=value>{figure(value.score)}</div>"
    )


def _clip(score: float) -> float:
    """A bar starts at 0: below it there is nothing to draw, the figure says it."""
    return 0.0 if math.isnan(score) else min(max(score, 0.0), 100.0)


def _sets(evaluation: Evaluation) -> str:
    columns = [*evaluation.models, *([LEXICAL] if evaluation.of(LEXICAL) else [])]
    by = {name: evaluation.of(name) for name in columns}
    heads = ["set", *columns, "languages", "pairs", "seconds"]
    head = "".join(f"<th scope=col><button type=button>{escape(h).replace('@', '<wbr>@')}</button></th>" for h in heads)
    rows = []
    for name in evaluation.names:
        present = [by[c][name] for c in columns if name in by[c]]
        if not present[0].is_sts:
            continue
        cells = [f"<td>{_breakable(name)}</td>"]
        for column in columns:
            result = by[column].get(name)
            if result is None:
                cells.append("<td data-value=''>–</td>")
                continue
            low, high = result.interval
            span = "" if column == LEXICAL or math.isnan(low) else f" <small>{low:.2f} to {high:.2f}</small>"
            cells.append(_cell(figure(result.score) + span, result.score))
        seconds = sum(by[c][name].seconds for c in evaluation.models if name in by[c])
        cells.append(f"<td>{escape(' '.join(present[0].languages))}</td>")
        cells.append(_cell(str(len(present[0].gold)), len(present[0].gold)))
        cells.append(_cell(f"{seconds:.1f}", seconds))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _other_metrics(evaluation: Evaluation) -> str:
    """Tables of the sets that are no STS, under a heading each."""
    parts = []
    for title, header, rows in other_metrics(evaluation):
        head = "".join(f"<th>{escape(name).replace('@', '<wbr>@')}</th>" for name in header)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        parts.append(_table(title.replace(" x ", " × "), head, body))
    return "".join(parts)


def _table(title: str, head: str, body: str) -> str:
    return (
        f"<h2>{escape(title)}</h2><div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _breakable(name: str) -> str:
    """A set's name that may wrap after its task on a narrow screen."""
    return escape(name).replace("/", "/<wbr>")


def _cell(shown: str, value: float) -> str:
    return f"<td data-value='{'' if math.isnan(value) else f'{value:.6g}'}'>{shown}</td>"


def _comparisons(evaluation: Evaluation) -> str:
    first, *others = evaluation.models
    parts = []
    for other in others:
        found = evaluation.compare(first, other)
        scores = {name: r.score for name, r in evaluation.of(first).items()}
        scores |= {f"mean: {m.group}": m.score for m in evaluation.means(first)}
        rows = "".join(_comparison_row(name, scores[name], d) for name, d in found.items())
        names = "".join(
            f"<th>{_key(evaluation.models.index(m), m)}<span class=wide>{_breakable(m)}</span></th>"
            for m in (first, other)
        )
        parts.append(
            f"<h2>{escape(other)} less {escape(first)}</h2><p class=soft>Paired bootstrap on the same pairs, with 95 % "
            "intervals; green and red: the interval leaves out zero.</p><div class=scroll><table class=comparison>"
            f"<thead><tr><th>set or mean</th>{names}<th>difference</th><th>p</th></tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )
    return "".join(parts)


def _comparison_row(name: str, first: float, found: Difference) -> str:
    kind = "better" if found.low > 0 else "worse" if found.high < 0 else ""
    cells = [
        f"<td>{_breakable(name)}</td>",
        f"<td>{figure(first)}</td><td>{figure(first + found.delta)}</td>",
        f"<td><span class='{kind}'>{found.delta:+.2f}</span> <small>{found.low:+.2f} to {found.high:+.2f}</small></td>",
        f"<td>{found.p:.3f}</td>",
    ]
    row = " class=mean" if name.startswith("mean: ") else ""
    return f"<tr{row}>{''.join(cells)}</tr>"


def _published(evaluation: Evaluation) -> str:
    parts = []
    for title, header, rows in beside_published(evaluation):
        head = "".join(f"<th{' class=text' if h == 'source' else ''}>{escape(h)}</th>" for h in header)
        body = ""
        for row in rows:
            ours = " class=ours" if row[-1] == "measured here" else ""
            cells = "".join(f"<td>{escape(c)}</td>" for c in row[:-1]) + f"<td class=text>{escape(row[-1])}</td>"
            body += f"<tr{ours}>{cells}</tr>"
        parts.append(_table(title, head, body))
    return "".join(parts)


def _scatter_data(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Points of every set, thinned evenly and rounded to what a screen can show."""
    found = []
    for name in evaluation.names:
        results = [(i, evaluation.of(m).get(name)) for i, m in enumerate(evaluation.models)]
        present = [(i, r) for i, r in results if r is not None and len(r.gold)]
        if not present:
            continue
        gold = present[0][1].gold
        chosen = np.unique(np.linspace(0, len(gold) - 1, min(_POINTS, len(gold))).astype(int))
        found.append(
            {
                "name": name,
                "pairs": len(gold),
                "range": [float(gold.min()), float(gold.max())],
                "gold": [round(float(v), 3) for v in gold[chosen]],
                "models": [
                    {
                        "name": evaluation.models[i],
                        "score": figure(r.score),
                        "colour": _colour(i),
                        "similarity": [round(float(v), 3) for v in r.similarity[chosen]],
                    }
                    for i, r in present
                    if len(r.gold) == len(gold)
                ],
            }
        )
    return found
