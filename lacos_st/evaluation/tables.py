"""Summary tables of an evaluation: text for the terminal, Markdown, CSV.

Three questions, one table each: how good is each model on each set (with its interval, beside the lexical
baseline), where does it stand among published results on the *same* sets, and is the second model better than
the first. Sets of another metric than Spearman's have a table and a mean of their own. A mean always says over how
many sets it was taken, and a published mean is shown only over sets that the publication has, all of them.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lacos_st.evaluation.metrics import SPEARMAN, metric_name
from lacos_st.evaluation.results import LEXICAL, Evaluation, SetResult, column
from lacos_st.evaluation.tasks import ENGLISH

Table = tuple[str, list[str], list[list[str]]]
"""Title, header, rows."""

CSV_COLUMNS = [
    "kind",
    "model",
    "revision",
    "set",
    "split",
    "languages",
    "group",
    "pairs",
    "score",
    "low",
    "high",
    "seconds",
    "source",
    "metric",
]


@cache
def published() -> list[dict[str, Any]]:
    """Published results: rows of `model`, `source`, `nli_only` and `scores` (set -> points)."""
    content = json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))
    rows: list[dict[str, Any]] = content["rows"]
    return rows


def tables(evaluation: Evaluation) -> list[Table]:
    """All tables of an evaluation, in the order in which they are read."""
    found = [_scores(evaluation), *other_metrics(evaluation), _means(evaluation), *beside_published(evaluation)]
    found = [table for table in found if table[2]]
    models = evaluation.models
    found += [_comparison(evaluation, models[0], other) for other in models[1:]]
    return found


def text(evaluation: Evaluation) -> str:
    """Tables for the terminal, columns aligned."""
    parts = []
    for title, header, rows in tables(evaluation):
        widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
        lines = [
            "  ".join(_pad(cell, w, i) for i, (cell, w) in enumerate(zip(r, widths, strict=True))).rstrip()
            for r in [header, *rows]
        ]
        parts.append("\n".join([title, *lines]))
    return "\n\n".join([*parts, *notes(evaluation)])


def markdown(evaluation: Evaluation) -> str:
    """The same tables as GitHub Markdown."""
    parts = []
    for title, header, rows in tables(evaluation):
        rule = ["---"] + ["---:"] * (len(header) - 1)
        cells = [[*map(_no_markup, header)], rule, *([*map(_no_markup, row)] for row in rows)]
        parts.append("\n".join([f"### {_no_markup(title)}", "", *(f"| {' | '.join(row)} |" for row in cells)]))
    return "\n\n".join([*parts, *map(_no_markup, notes(evaluation))]) + "\n"


def _no_markup(text: str) -> str:
    """Markdown that shows a text as it is; `_` inside words and `*` and brackets by themselves are no markup."""
    return re.sub(r"[\\`~<>|$&]|\*(?=\S)|(?<=\S)\*|(?<!\w)_|_(?!\w)|\](?=[(\[:])", r"\\\g<0>", text)


def csv_rows(evaluation: Evaluation) -> str:
    """Long form: one row a model and set, the baseline, the published results and the means included.

    A name that a spreadsheet would take for a formula has an apostrophe before it.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for name in [*evaluation.models, LEXICAL]:
        for result in evaluation.of(name).values():
            low, high = result.interval
            kind = "baseline" if name == LEXICAL else "model"
            facts = [result.split, " ".join(result.languages), result.group, result.count]
            numbers = [f"{v:.4f}" for v in (result.score, low, high)] + [f"{result.seconds:.2f}"]
            names = [_no_formula(name) for name in (result.model, result.revision, result.name)]
            writer.writerow([kind, *names, *facts, *numbers, "measured", result.metric])
            for metric, score in result.more.items():
                writer.writerow([kind, *names, *facts, f"{score:.4f}", "", "", "", "measured", metric])
        for mean in evaluation.means(name):
            low, high = mean.interval
            numbers = [f"{v:.4f}" for v in (mean.score, low, high)]
            writer.writerow(
                [
                    "mean",
                    _no_formula(name),
                    "",
                    f"mean of {mean.sets}",
                    "",
                    "",
                    mean.group,
                    "",
                    *numbers,
                    "",
                    "measured",
                    "",
                ]
            )
    sets = {result.name: result for name in evaluation.models for result in evaluation.of(name).values()}
    for row in published():
        for name, score in row["scores"].items():
            if name in sets and sets[name].split == "test":
                place = ["test", " ".join(sets[name].languages), sets[name].group, ""]
                writer.writerow(
                    ["published", row["model"], "", name, *place, score, "", "", "", row["source"], SPEARMAN]
                )
    return stream.getvalue()


def _no_formula(name: str) -> str:
    return f"'{name}" if name[:1] in "=+-@" else name


def _scores(evaluation: Evaluation) -> Table:
    columns = [*evaluation.models, LEXICAL]
    by_model = {name: evaluation.of(name) for name in columns}
    rows = []
    for name in evaluation.names:
        present = [by_model[c][name] for c in columns if name in by_model[c]]
        first = present[0]
        if not first.is_sts:
            continue
        cells = [name, " ".join(first.languages), str(first.count or "")]
        for c in columns:
            result = by_model[c].get(name)
            cells.append("–" if result is None else figure(result.score) if c == LEXICAL else with_interval(result))
        seconds = [by_model[c][name].seconds for c in evaluation.models if name in by_model[c]]
        rows.append([*cells, f"{sum(seconds):.1f}"])
    return "Spearman x 100, with 95 % interval", ["set", "lang", "pairs", *columns, _seconds(evaluation)], rows


def _seconds(evaluation: Evaluation) -> str:
    return "seconds" if len(evaluation.models) == 1 else "seconds, all"


def other_metrics(evaluation: Evaluation) -> list[Table]:
    """Tables of the sets that are no STS, one a main metric; of each set a row a metric."""
    by_model = {name: evaluation.of(name) for name in evaluation.models}
    found: dict[str, list[list[str]]] = {}
    for name in evaluation.names:
        results = [by_model[model].get(name) for model in evaluation.models]
        first = next((result for result in results if result is not None and not result.is_sts), None)
        if first is None:
            continue
        seconds = sum(result.seconds for result in results if result is not None)
        rows = found.setdefault(first.metric, [])
        cells = ["–" if result is None else with_interval(result) for result in results]
        queries = str(first.count or "")
        rows.append([name, " ".join(first.languages), queries, metric_name(first.metric), *cells, f"{seconds:.1f}"])
        for metric in first.more:
            values = [None if result is None else result.more.get(metric) for result in results]
            rows.append(["", "", "", metric_name(metric), *("–" if v is None else figure(v) for v in values), ""])
    header = ["set", "lang", "queries", "metric", *evaluation.models, _seconds(evaluation)]
    return [(f"{metric_name(metric)} x 100, with 95 % interval", header, rows) for metric, rows in found.items()]


def _means(evaluation: Evaluation) -> Table:
    columns = [*evaluation.models, LEXICAL]
    means = {name: {mean.group: mean for mean in evaluation.means(name)} for name in columns}
    groups = [mean.group for mean in evaluation.means(columns[0])]
    rows = []
    for group in groups:
        count = means[columns[0]][group].sets
        cells = [
            f"{figure(means[c][group].score)} {_range(means[c][group].interval)}" if group in means[c] else "–"
            for c in columns
        ]
        rows.append([group, str(count), *cells])
    return "Means over the sets that all of them have", ["mean of", "sets", *columns], rows


def beside_published(evaluation: Evaluation) -> list[Table]:
    """A table a family of sets: ours, the baseline, and what was published, on the sets that are present."""
    present = {name for m in evaluation.models for name, r in evaluation.of(m).items() if r.split == "test"}
    found: list[Table] = []
    families = {"English": list(ENGLISH), "STS17": [], "STSBenchmarkMultilingualSTS": []}
    for row in published():
        for name in row["scores"]:
            family = name.split("/")[0]
            if "/" in name and name not in families[family]:
                families[family].append(name)
    for family, sets in families.items():
        known = [name for name in sets if name in present and any(name in row["scores"] for row in published())]
        if not known:
            continue
        rows = []
        for c in [*evaluation.models, LEXICAL]:
            scores = {name: r.score for name, r in evaluation.of(c).items()}
            rows.append([f"{c} (here)", *_line(scores, known), "measured here"])
        for row in published():
            if any(name in row["scores"] for name in known):
                label = row["model"] + (" *" if row["nli_only"] else "")
                rows.append([label, *_line(row["scores"], known), row["source"]])
        header = ["model", *(name.split("/")[-1] for name in known), f"mean of {len(known)}", "source"]
        found.append((f"Beside published results: {family} (* trained on NLI alone)", header, rows))
    return found


def _line(scores: dict[str, float], known: Sequence[str]) -> list[str]:
    cells = [figure(scores[name]) if name in scores else "–" for name in known]
    whole = all(name in scores for name in known)
    return [*cells, figure(sum(scores[name] for name in known) / len(known)) if whole else "–"]


def _comparison(evaluation: Evaluation, first: str, second: str) -> Table:
    rows = [
        [name, f"{d.delta:+.2f}", f"[{d.low:+.2f}, {d.high:+.2f}]", f"{d.p:.3f}"]
        for name, d in evaluation.compare(first, second).items()
    ]
    header = ["set or mean", "difference", "95 % interval", "p"]
    return f"{second} less {first} (paired bootstrap)", header, rows


def figure(score: float) -> str:
    """Two decimals; `nan` where a model gave every pair the same similarity."""
    return "nan" if math.isnan(score) else f"{score:.2f}"


def with_interval(result: SetResult) -> str:
    """A score with its interval."""
    return f"{figure(result.score)} {_range(result.interval)}".strip()


def _range(ends: tuple[float, float]) -> str:
    return "" if math.isnan(ends[0]) else f"[{ends[0]:.2f}, {ends[1]:.2f}]"


def _pad(cell: str, width: int, position: int) -> str:
    return cell.ljust(width) if position == 0 else cell.rjust(width)


def notes(evaluation: Evaluation) -> list[str]:
    """What a reader of the figures has to know: constant similarities, known differences, missing sets."""
    found = []
    flat = [f"{column(r)} on {r.name}" for r in evaluation.sets if math.isnan(r.score)]
    if flat:
        found.append(f"nan: every pair got the same similarity, so there is no correlation ({', '.join(flat)}).")
    if any(r.name == "BIOSSES" and r.data.startswith("local-") for r in evaluation.sets):
        found.append(
            "BIOSSES: the authors' file differs from MTEB's copy in one annotator's mark of one of 100 pairs "
            "(mean 2.198 against 2.196) and in 183 of 31,313 characters: near the published score, not "
            "equal."
        )
    if evaluation.missing:
        found.append("Not run:\n" + "\n".join(f"- {line}" for line in evaluation.missing))
    return found
