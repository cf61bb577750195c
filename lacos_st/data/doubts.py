"""Doubts about a layout that was found, not given: what the values of the first rows say against it.

* **A column that is not read and says something about the rows.** Beside two texts, `is_duplicate`, `match` or
  `relevance` says which rows are pairs; reading past it would train non-duplicates as positives. Whatever its name, a
  column of flags, of few numbers, of fractions or of labels is an error. Let be are columns whose names say that they
  are about something else: ids, languages, dates.
* **A column of texts that holds none**: flags, few numbers, or labels.
* **A header that may be the first row**, where its names are not known.

Every error shows the values and what to write. A layout that was given is never doubted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import median
from typing import Any

from lacos_st.data.columns import (
    FLAGS,
    HEADER,
    NAMES,
    NLI_WORDS,
    Layout,
    is_missing,
    is_negative,
    nli_label,
    override,
    plain_name,
)
from lacos_st.data.readers import DataError, Row, Table
from lacos_st.errors import listed, shown

_FEW = 20  # different values
_ENOUGH = 10  # rows to tell labels from texts by how they repeat
_WORDS, _SIGNS = 3, 30  # of a label or a column's name; what has more is a text
_ID = re.compile(
    r"|_*index(_level_\d+_*)?|unnamed:_\d+|_*((q|p|d|s|t|doc|document|pair|row|line|query|question|answer|passage|text"
    r"|sentence|caption|prompt|item|example|record|user|post|article|page|image)_?)?(id|ids|idx|uid|guid|uuid|hash)_?\d*"
)
_ABOUT = re.compile(
    r"((source|target|src|tgt)_)?(lang|language|locale)_?\d*|split|url|uri|link|genre|domain|topic|dataset|corpus"
    r"|license|author|file|path|file_?name"
)
_TEXTS = {name for role, names in NAMES.items() if role not in ("label", "score") for name in names}
_TIME = re.compile(r"year|month|day|date|time|timestamp|(created|updated)(_at)?")


def check(table: Table, layout: Layout) -> None:
    """Compare a layout with the first rows.

    Raises:
        DataError: It was found by names or by order, and the values make it doubtful.
    """
    if layout.found == "given" or table.kind == "text":
        return
    rows = [row for row in table.head() if any(name in row.values for name in layout.texts)]  # others are bad rows
    if layout.found == "order" and table.kind in ("csv", "tsv"):
        check_header(table, layout.texts, override(layout.texts))
    for name in layout.texts:
        _check_text(table, layout, name, _values(rows, name, layout))
    if layout.kind == "nli":
        _check_nli(table, layout, _values(rows, str(layout.extra), layout))
    for name in dict.fromkeys(name for row in rows for name in row.values if name not in layout.columns):
        values = _values(rows, name, layout)
        if _says_something(name, values, layout):
            raise DataError(
                f"{table.name}: what does column {shown(name)} mean, with the values {_listed(table, name, values)}? "
                f"{_how_to_read(table, layout, name, values)} To leave it out: {_as_found(layout)}."
            )


def _values(rows: Sequence[Row], name: str, layout: Layout) -> list[Any]:
    """What a column holds; of lists the items, where a column of texts has as many (a label for each positive)."""
    values: list[Any] = []
    for row in rows:
        value = row.values.get(name)
        if isinstance(value, list):
            others = (row.values.get(text) for text in layout.texts)
            values += value if any(isinstance(other, list) and len(other) == len(value) for other in others) else []
        else:
            values.append(value)
    return [value for value in values if not is_missing(value)]


def _kind(values: Sequence[Any]) -> str | None:
    """What the values are: "flag", "number" (few, or fractions), "label"; None for texts, ids and all else."""
    if not values or not all(
        isinstance(value, str) or _is_flag(value) or _number(value) is not None for value in values
    ):
        return None
    if all(map(_is_flag, values)):
        return "flag"
    numbers = [number for value in values if (number := _number(value)) is not None]
    if len(numbers) == len(values):
        different = len(set(numbers))
        few = different <= _FEW or 2 * different < len(numbers)
        return "number" if few or any(number != int(number) for number in numbers) else None
    texts = {str(value).strip() for value in values}
    short = all(len(text) <= _SIGNS and len(text.split()) <= _WORDS for text in texts)
    few_texts = 1 < len(texts) <= 5 and _ENOUGH * len(texts) <= len(values)
    return "label" if few_texts or (short and len(texts) <= _FEW) else None


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in FLAGS)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value.strip().rstrip("%").replace(",", ".") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _says_something(name: str, values: Sequence[Any], layout: Layout) -> bool:
    """Whether a column that is not read may say what the rows are."""
    kind, name = _kind(values), plain_name(name)
    if name in (*NAMES["label"], *NAMES["score"]):
        return bool(values)
    if _ID.fullmatch(name):  # ids do not take turns between 0 and 1
        return kind == "flag" or (kind == "number" and len(values) > _FEW and {*map(_number, values)} == {0, 1})
    if _TIME.fullmatch(name):
        return kind == "flag"
    if _ABOUT.fullmatch(name) or is_negative(name) or name in _TEXTS:
        return kind in ("flag", "number")
    if layout.kind == "nli" and kind == "label":
        return any(str(value).strip().lower() not in NLI_WORDS for value in values)  # SNLI's label1 to label5
    return kind is not None


def _check_text(table: Table, layout: Layout, name: str, values: Sequence[Any]) -> None:
    """Refuse as texts what are flags, few numbers or, where no name says so, labels."""
    texts = [value for value in values if isinstance(value, str)]
    kind = _kind(texts)
    if kind == "number" and len({*map(_number, texts)}) > _FEW:
        return
    if kind == "label" and (layout.found != "order" or 2 * len(set(texts)) > len(texts) or len(texts) < _ENOUGH):
        return
    if kind:
        raise DataError(
            f"{table.name}: column {shown(name)} would be read as texts, and holds {_listed(table, name, values)}. "
            f"Name the columns of texts: {override(['ANCHOR', 'POSITIVE'])}. If these are texts: {_as_found(layout)}."
        )


def _check_nli(table: Table, layout: Layout, values: Sequence[Any]) -> None:
    """Refuse 0 and 1 without a 2: NLI's 0 is entailment, and others' 1 is."""
    name = str(layout.extra)
    numbers = [value for value in values if _number(value) is not None or _is_flag(value)]
    if len(numbers) < len(values) or (2 in map(_number, numbers) and name not in table.labels):
        return
    raise DataError(
        f"{table.name}: what does column {shown(name)} mean, with the values {_listed(table, name, values)}? "
        f"{_how_to_read(table, layout, name, values)}"
    )


def check_header(table: Table, names: Sequence[str], given: str) -> None:
    """Refuse a first line that looks like the rows below.

    Args:
        table: A file with a header.
        names: Those of its columns that are texts, and that nobody knows.
        given: How the user says that they are names.

    Raises:
        DataError: They may be the first row.
    """
    rows = table.head()

    def is_text(name: str) -> bool:
        return len(name.split()) > _WORDS or len(name) > _SIGNS or bool(re.search(r"[\d.!?…。！？؟।]$", name))

    def is_like_the_rows(name: str) -> bool:
        texts = [str(row.values[name]) for row in rows]
        words, signs = median(len(text.split()) for text in texts), median(map(len, texts))
        language = re.fullmatch(r"[a-z]{2}([-_]\w+)?", name)
        return not language and words <= len(name.split()) and signs <= 2 * len(name)

    if any(map(is_text, names)) or all(map(is_like_the_rows, names)):
        raise DataError(
            f"{table.name}:1: are these the names of columns, or the first row: {listed(names)}?{HEADER} "
            f"If they are names: {given}."
        )


def _how_to_read(table: Table, layout: Layout, name: str, values: Sequence[Any]) -> str:
    """What to write for each meaning that the values can have."""
    if len(layout.texts) != 2:
        return "It would not be read."
    first, second = layout.texts
    ways = []
    if not any(map(_is_flag, values)) and all(nli_label(value) is not None for value in values):
        nli = override({"premise": first, "hypothesis": second, "label": name})
        ways.append(f"For NLI (0 entailment, 1 neutral, 2 contradiction): {nli}.")
    if all(_is_flag(value) or _number(value) is not None for value in values):
        scored = override({"anchor": first, "positive": second, "score": name})
        ways.append(
            "For a number that is high for the same meaning (true counts 1, false 0): "
            f"{scored}, with min_score=1 (--min-score 1), say."
        )
    return " ".join(ways) or (
        "If it says which rows are of one meaning, write these into a file of their own. Read past it, every row is."
    )


def _as_found(layout: Layout) -> str:
    """How to say what was found."""
    roles = {"nli": ("premise", "hypothesis", "label"), "scored": ("anchor", "positive", "score")}.get(layout.kind)
    return override(dict(zip(roles, layout.columns, strict=True)) if roles else layout.texts)


def _listed(table: Table, name: str, values: Sequence[Any]) -> str:
    """The different values; where a data set names them, with these names."""
    names = table.labels.get(name)
    different = list(dict.fromkeys(values))
    if names and all(isinstance(value, int) and 0 <= value < len(names) for value in different):
        return listed([f"{value}: {names[value]}" for value in sorted(different)])
    return listed(different)
